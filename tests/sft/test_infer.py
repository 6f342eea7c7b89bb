"""Asking a model from the command line."""

import re

import pytest

GREEDY = ("--temperature", "0", "--max_new_tokens", "8", "--chat_template", "recipes/templates/smollm2.jinja")


def test_one_question_with_options_gets_an_answer_and_probabilities(here, embedded_model):
    question = ("--question", "Which technique uses sound waves?", "--choices", "Ultrasound", "CT", "MRI")
    done = here("sft/infer.py", "--model_path", embedded_model, *question, *GREEDY)
    assert done.returncode == 0, done.stderr
    probabilities = [float(p) for p in re.findall(r"([\d.]+)%", done.stdout)]
    assert len(probabilities) == 3
    assert sum(probabilities) == pytest.approx(100, abs=0.2)
    assert re.search(r"^A: \S", done.stdout, re.MULTILINE)
    assert "not medical advice" in done.stdout


def test_an_open_question_needs_no_options(here, embedded_model):
    done = here("sft/infer.py", "--model_path", embedded_model, "--question", "What is an X-ray?", *GREEDY)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^A: \S", done.stdout, re.MULTILINE)
    assert "%" not in done.stdout


def test_without_a_question_the_five_built_in_ones_are_asked(here, tiny_deepseek):
    done = here("sft/infer.py", "--model_path", tiny_deepseek, "--temperature", "0", "--max_new_tokens", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Q: ") == 5


def test_same_seed_samples_the_same_answer(here, tiny_deepseek):
    def answer(seed):
        words = ("--question", "Why?", "--max_new_tokens", "12", "--temperature", "1.5", "--seed", seed)
        return here("sft/infer.py", "--model_path", tiny_deepseek, *words).stdout

    assert answer(1) == answer(1) != answer(2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--question", " "], "--question is empty"),
        (["--question", "Q?", "--choices", "a"], "two to four"),
        (["--question", "Q?", "--choices", *"abcde"], "two to four"),
        (["--question", "Q?", "--choices", "a", ""], "empty"),
        (["--question", "Q?", "--choices", "a", "a"], "twice"),
        (["--choices", "a", "b"], "goes with --question"),
    ],
)
def test_bad_questions_are_refused_in_one_line(refused, words, reason):
    assert reason in refused("sft/infer.py", "--model_path", "recipes", *words)


def test_a_folder_that_is_no_model_is_refused(refused):
    assert "is no model" in refused("sft/infer.py", "--model_path", "recipes")
