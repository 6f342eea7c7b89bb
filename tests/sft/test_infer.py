"""Asking a model from the command line."""

import io
import json
import re
import signal
import subprocess
import sys

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
        words = (
            "--question",
            "Why?",
            "--max_new_tokens",
            "12",
            "--temperature",
            "1.5",
            "--seed",
            seed,
            "--thinking",
            "off",
        )
        return here("sft/infer.py", "--model_path", tiny_deepseek, *words).stdout

    assert answer(1) == answer(1) != answer(2)


CHOICES = ("Congo red", "Prussian blue", "Giemsa")


def test_json_holds_the_answer_its_probabilities_and_what_it_cost(here, embedded_model):
    words = ("--question", "Which stain shows iron?", "--choices", *CHOICES, "--json", *GREEDY)
    done = here("sft/infer.py", "--model_path", embedded_model, *words)
    answer = json.loads(done.stdout)
    assert answer["choices"] == dict(zip("ABC", CHOICES, strict=True))
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["outcome"] in ("answered", "unparsed", "truncated")
    if answer["answer"]:
        assert answer["answer_text"] == answer["choices"][answer["answer"]]
    assert 0 < answer["tokens"] <= 8
    assert answer["seconds"] > 0
    assert answer["reasoning"] == ""
    assert "not medical advice" in done.stderr


def test_probabilities_are_those_that_evaluation_ranks_by(here, embedded_model, smollm2_tokenizer):
    from sft.metrics import softmax
    from sft.models import load_model
    from sft.scoring import option_log_likelihoods

    words = ("--question", "Which stain shows iron?", "--choices", *CHOICES, "--json", *GREEDY, "--dtype", "float32")
    found = json.loads(here("sft/infer.py", "--model_path", embedded_model, *words).stdout)["probabilities"]
    model, _ = load_model(str(embedded_model), "float32", "recipes/templates/smollm2.jinja")
    row = {"question": "Which stain shows iron?", "choices": CHOICES, "answer_format": "letter_text"}
    ((_, scores),) = option_log_likelihoods(model, smollm2_tokenizer, [row], 1)
    assert list(found.values()) == pytest.approx(softmax(scores), abs=1e-5)


def test_thinking_can_be_left_out(tiny_deepseek, deepseek_tokenizer):
    """Off, the model is asked behind a closed think block, as it was trained without reasoning."""
    from sft.chat import answer_opening, thinking_opening
    from sft.generation import Sampling, generate, split_thinking
    from sft.models import load_model
    from sft.scoring import option_tokens

    model, tokenizer = load_model(str(tiny_deepseek), "float32")
    assert thinking_opening(tokenizer) == "<think>\n"
    row = {"question": "Which?", "choices": ["a", "b"], "answer_format": "letter"}
    (tokens,) = option_tokens(tokenizer, [row])
    closing = answer_opening(tokenizer)
    assert tokens["shared"][-len(closing) :] == closing
    prompt = tokens["shared"][: -len(closing)]
    on, off = (
        generate(model, tokenizer, [prompt], Sampling(max_new_tokens=4, temperature=0, thinking=thinking))[0].text
        for thinking in (True, False)
    )
    assert on.startswith("<think>\n")
    assert off.startswith("<think>\n</think>\n\n")
    assert split_thinking(on)[1] == ""  # it never stopped to think
    assert split_thinking(off)[0] == ""


def test_batched_generation_is_generation_one_by_one(tiny_deepseek):
    """Padding stands on the left and changes no text; in float32, so that rounding decides nothing."""
    from sft.chat import token_ids
    from sft.generation import Sampling, generate
    from sft.models import load_model

    model, tokenizer = load_model(str(tiny_deepseek), "float32")
    asked = ["Why?", "Which of these stains is used to show iron in tissue of the liver?", "What is it here?"]
    prompts = token_ids(tokenizer, [[{"role": "user", "content": text}] for text in asked], True)
    greedy = Sampling(max_new_tokens=10, temperature=0)
    together = generate(model, tokenizer, prompts, greedy)
    assert together == [generate(model, tokenizer, [prompt], greedy)[0] for prompt in prompts]
    assert len({generated.text for generated in together}) == 3


@pytest.mark.parametrize("kind", ["csv", "pmc_vqa.csv", "jsonl"])
def test_many_questions_from_a_file(here, tiny_deepseek, tmp_path, kind):
    questions = tmp_path / f"questions.{kind}"
    questions.write_text(
        {
            "csv": "question,A,B,C,D\nWhich stain shows iron?,Congo red,Prussian blue,,\nWhy?,,,,\n",
            "pmc_vqa.csv": "Figure_path,Question,Choice A,Choice B\nx,Which stain shows iron?, A:Congo red, "
            "B:Prussian blue\nx,Why?,,\n",
            "jsonl": json.dumps({"question": "Which stain shows iron?", "choices": ["Congo red", "Prussian blue"]})
            + "\n\n"
            + json.dumps({"question": "Why?", "note": "one\u2028line"}, ensure_ascii=False)
            + "\n",
        }[kind]
    )
    out = tmp_path / "answers.jsonl"
    words = ("--input", questions, "--output", out, "--max_new_tokens", 4)
    done = here("sft/infer.py", "--model_path", tiny_deepseek, *words)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, out.read_text().splitlines())
    assert first["question"] == "Which stain shows iron?"
    assert first["choices"] == {"A": "Congo red", "B": "Prussian blue"}
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert second["choices"] == second["probabilities"] == {}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("q.csv", "ask,A\nWhy?,x\n", "needs the columns question, A, B, C, D"),
        ("q.csv", "question,A,A,B\nWhy?,x,y,z\n", "each once"),
        ("q.csv", "question,A,B\nWhy, oh why?,x,y\n", "row 1: more cells than columns"),
        ("q.csv", 'question,A,B\n"Why?,x,y\nWhat?,x,y\n', "is not sound CSV"),
        ("q.csv", "question,A,B\nWhy?,one,\n", "row 1: give two to four options"),
        ("q.csv", "question,A,B\nWhy?,x,y\n,x,y\n", "row 2: the question is empty"),
        ("q.csv", "question,A,B\n", "holds no question"),
        ("q.jsonl", "{\n", "line 1: not JSON"),
        ("q.jsonl", '{"question": 3}\n', "question has to be a text"),
        ("q.jsonl", '{"question": "Q?", "choices": "ab"}\n', "choices a list of texts"),
        ("q.jsonl", '{"question": "Q?", "choices": {"B": "x", "A": "y"}}\n', "A, B, C, D, in this order"),
        ("q.jsonl", '{"question": "Q?", "choices": ["a", "b", "c", "d", "e"]}\n', "line 1: give two to four"),
        ("q.txt", "Why?", "give a .csv or a .jsonl file"),
    ],
)
def test_a_file_with_a_bad_row_is_refused_before_the_model_loads(refused, tiny_deepseek, tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    words = ("--input", tmp_path / name, "--output", tmp_path / "out.jsonl")
    assert reason in refused("sft/infer.py", "--model_path", tiny_deepseek, *words)
    assert not (tmp_path / "out.jsonl").exists()


def test_evaluate_calls_the_evaluator(here, tiny_deepseek, prepared, tmp_path, monkeypatch):
    words = ("--evaluate", "--num_samples", 5, "--dataset_path", prepared, "--max_new_tokens", 4)
    done = here("sft/infer.py", "--model_path", tiny_deepseek, *words, "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "option likelihood" in done.stdout
    assert json.loads((tmp_path / f"{tiny_deepseek.name}-sample/results.json").read_text())["n"] == 5


def talk(here, monkeypatch, model, lines, *words):
    """What an interactive session says when these lines are typed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    done = here("sft/infer.py", "--model_path", model, "--interactive", "--max_new_tokens", 6, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_interactive_session_goes_on_after_bad_input_and_leaves_at_end_of_file(here, monkeypatch, embedded_model):
    lines = ["/help", "/nonsense", "Which?", "only one", "", "Which stain shows iron?", *CHOICES[:2], "", "Why?"]
    said = talk(here, monkeypatch, embedded_model, lines, *GREEDY[2:])
    assert "/thinking MODE" in said
    assert "/nonsense is no command" in said
    assert "give two to four options, or none; found 1" in said
    assert len(re.findall(r"%", said)) == 2
    assert said.count(" tokens, ") == 2  # the question, and one more about it
    assert said.rstrip().endswith("Goodbye.")


def test_a_follow_up_is_asked_with_what_was_said_before(tiny_deepseek, monkeypatch, capsys):
    from sft.assistant import Assistant
    from sft.generation import Sampling
    from sft.interactive import converse
    from sft.models import load_model

    asked = []

    class Listening(Assistant):
        def reply(self, messages, *words):
            asked.append([turn["role"] for turn in messages])
            return super().reply(messages, *words)

    lines = ["Which?", "", "Why?", "", "What?", "", "/quit"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    converse(Listening(*load_model(str(tiny_deepseek)), "letter_text", 2048), Sampling(max_new_tokens=3), "hide")
    assert asked == [["user"], ["user", "assistant", "user"], ["user"]]


def test_thinking_is_shown_or_hidden(here, monkeypatch, tiny_deepseek):
    def session(mode):
        return talk(here, monkeypatch, tiny_deepseek, ["Which?", "", "", "/quit"], "--thinking", mode)

    shown, hidden, off = map(session, ("show", "hide", "off"))
    assert "Thinking ..." in shown
    assert "Thinking ..." in hidden
    assert "Thinking" not in off
    assert len(shown) > len(hidden)


def test_ctrl_c_at_the_prompt_leaves_cleanly(tiny_deepseek):
    words = [sys.executable, "sft/infer.py", "--model_path", tiny_deepseek, "--interactive"]
    session = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = ""
    while not said.endswith("question> "):
        said += session.stdout.read(1)
    session.send_signal(signal.SIGINT)
    rest, errors = session.communicate(timeout=30)
    assert session.returncode == 0
    assert rest.strip() == "Goodbye."
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--question", " "], "the question is empty"),
        (["--question", "Q?", "--choices", "a"], "two to four"),
        (["--question", "Q?", "--choices", *"abcde"], "two to four"),
        (["--question", "Q?", "--choices", "a", ""], "empty"),
        (["--question", "Q?", "--choices", "a", "a"], "twice"),
        (["--choices", "a", "b"], "goes with --question"),
        (["--json"], "goes with --question"),
        (["--input", "q.csv"], "name the file to write"),
        (["--input", "q.csv", "--output", "LICENSE"], "exists already"),
        (["--temperature", "-1", "--question", "Q?"], "give 0 (greedy)"),
        (["--top_p", "0", "--question", "Q?"], "give a share above 0"),
        (["--seed", "-1", "--question", "Q?"], "give a number from 0"),
        (["--web", "--port", "99999"], "give a number from 1"),
        (["--evaluate", "--thinking", "off"], "asks as the model was trained"),
    ],
)
def test_bad_questions_are_refused_in_one_line(refused, tiny_deepseek, words, reason):
    assert reason in refused("sft/infer.py", "--model_path", tiny_deepseek, *words)


def test_a_folder_that_is_no_model_is_refused(refused):
    assert "is no model" in refused("sft/infer.py", "--model_path", "recipes")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(refused, tiny_deepseek, tmp_path):
    (tmp_path / "q.csv").write_text("question\nWhy?\n")
    for output in (tmp_path, tmp_path / "q.csv" / "answers.jsonl", "/dev/null"):
        words = ("--input", tmp_path / "q.csv", "--output", output, "--overwrite")
        assert f"--output {output}" in refused("sft/infer.py", "--model_path", tiny_deepseek, *words)


def test_equal_questions_are_not_drawn_alike(here, tiny_deepseek, tmp_path):
    (tmp_path / "q.csv").write_text("question\n" + "Why?\n" * 4)
    words = ("--input", tmp_path / "q.csv", "--output", tmp_path / "a.jsonl", "--batch_size", 2, "--thinking", "off")
    done = here("sft/infer.py", "--model_path", tiny_deepseek, *words, "--temperature", 1, "--max_new_tokens", 6)
    assert done.returncode == 0, done.stderr
    assert len({json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()}) == 4


def test_a_prompt_longer_than_the_context_is_refused(refused, tiny_deepseek):
    line = refused("sft/infer.py", "--model_path", tiny_deepseek, "--question", "Why? " * 2000)
    assert re.search(r"has \d+ tokens, 2048 more may follow, and the model reads 2048: shorten it", line)
