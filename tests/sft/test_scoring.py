"""Scores are what their definition says, whatever the batching; statistics are those of the textbook."""

import math
from itertools import pairwise

import pytest

from sft.chat import split_completions
from sft.scoring import floors, mcnemar_p, option_log_likelihoods, option_tokens, wilson_interval

QUESTIONS = [
    {"question": "Which stain shows iron?", "choices": ["Congo red", "Prussian blue", "Oil Red O", "Von Kossa"]},
    {"question": "What is it?", "choices": ["Yes", "Yes, and more of it"]},
    {"question": "Which part of the eye becomes cloudy in cataract, as this figure shows?", "choices": list("abcd")},
    {"question": "How many?", "choices": ["1", "12", "123"]},
]


def rows(answer_format: str) -> list[dict]:
    return [{**question, "answer_format": answer_format, "gold": 0} for question in QUESTIONS]


@pytest.fixture(scope="module")
def model(tiny_deepseek):
    import torch
    from transformers import AutoModelForCausalLM

    # float32, so that the order of summation is the only difference between two ways to compute the same score.
    return AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float32).eval()


def log_probability(model, ids: list[int], start: int) -> float:
    """log p(ids[start:] | ids[:start]) from one plain forward pass."""
    import torch

    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_text_scores_are_the_log_likelihoods_of_the_whole_completions(model, deepseek_tokenizer, batch_size):
    questions = rows("text")
    scores = dict(option_log_likelihoods(model, deepseek_tokenizer, questions, batch_size))
    assert sorted(scores) == list(range(len(questions)))
    for index, question in enumerate(questions):
        tokens = option_tokens(deepseek_tokenizer, question["question"], question["choices"], "text")
        expected = [log_probability(model, tokens["shared"] + o, len(tokens["shared"])) for o in tokens["options"]]
        assert scores[index] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("answer_format", ["letter", "letter_text"])
def test_letter_scores_are_the_log_likelihoods_of_the_letters(model, deepseek_tokenizer, answer_format):
    questions = rows(answer_format)
    scores = dict(option_log_likelihoods(model, deepseek_tokenizer, questions, 3))
    for index, question in enumerate(questions):
        tokens = option_tokens(deepseek_tokenizer, question["question"], question["choices"], answer_format)
        shared = tokens["shared"]
        expected = [log_probability(model, [*shared, o[0]], len(shared)) for o in tokens["options"]]
        assert scores[index] == pytest.approx(expected, abs=1e-4)
        assert [deepseek_tokenizer.decode(o[0]) for o in tokens["options"]] == list("ABCD")[: len(expected)]


def test_options_are_the_completions_of_training(deepseek_tokenizer):
    from data_prep.prompts import completion_messages, prompt_messages

    question, choices = QUESTIONS[0]["question"], QUESTIONS[0]["choices"]
    tokens = option_tokens(deepseek_tokenizer, question, choices, "text")
    (row,) = split_completions(
        deepseek_tokenizer, [prompt_messages(question, choices, "text")], [completion_messages("Prussian blue")]
    )
    assert tokens["shared"] + tokens["options"][1] == row["prompt_ids"] + row["completion_ids"]
    assert tokens["options"][1][-1] == deepseek_tokenizer.eos_token_id


def test_wilson_interval_of_the_literature():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20.
    for (correct, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
    }.items():
        assert wilson_interval(correct, n) == pytest.approx(expected, abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_mcnemar_is_the_exact_binomial_test():
    for b in range(7):
        for c in range(7):
            n = b + c
            tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
            assert mcnemar_p(b, c) == pytest.approx(min(1.0, 2 * tail) if n else 1.0)
    assert mcnemar_p(4000, 4500) == pytest.approx(mcnemar_p(4500, 4000))
    values = [mcnemar_p(0, c) for c in range(1, 40)]
    assert all(later <= earlier for earlier, later in pairwise(values))


def test_floors_need_no_model():
    questions = [
        {"choices": ["a", "bb", "c"], "gold": 1},
        {"choices": ["a", "bb", "c"], "gold": 1},
        {"choices": ["aaa", "bb", "c"], "gold": 2},
        {"choices": ["a", "bb", "ccc"], "gold": 0},
    ]
    assert floors(questions) == {"majority_letter": 0.5, "longest_option": 0.5}
