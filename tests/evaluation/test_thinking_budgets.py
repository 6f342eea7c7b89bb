"""Does thinking pay: reasoning that is cut off at a budget, closed as training closes it, and an answer behind it."""

import argparse
import json

import pytest

from sft.common.chat_template import split_completions
from sft.common.models import load_tokenizer
from sft.common.prompts import completion_messages, prompt_messages
from sft.evaluation.results import thinking_budgets
from sft.evaluation.tasks import cut_tasks, generation_prompts, tasks_of, with_cut_reasoning
from sft.inference.generation import Sampling

TEMPLATE = "recipes/templates/deepseek_r1.jinja"
QUESTIONS = [
    {"id": str(i), "question": "Which organ?", "choices": ["Lung", "Heart"], "gold": 0, "answer_format": "text"}
    for i in range(4)
]
# Of each question what was written, and whether it hit the limit.
WRITTEN = [
    ("<think>\nIt is the one that breathes, and so on.\n</think>\n\nLung", False),
    ("<think>\nHm.\n</think>\n\nHeart", False),
    ("<think>\nIt could be the heart, or it could be the lung, or", True),
    ("Lung", False),
]


@pytest.fixture(scope="module")
def passes(tiny_deepseek):
    """(tokenizer, passes, cut passes with their questions, answers)."""
    tokenizer = load_tokenizer(str(tiny_deepseek), TEMPLATE)
    tasks = tasks_of(argparse.Namespace(method=["generation"], figures=[]), QUESTIONS, [Sampling(seed=1)])
    texts = [{"text": text, "tokens": len(text), "hit_limit": hit} for text, hit in WRITTEN]
    answers = {(tasks[0].name, q["id"]): answer for q, answer in zip(QUESTIONS, texts, strict=True)}
    cuts = with_cut_reasoning(tokenizer, cut_tasks(tasks, [4, 2000]), tasks, answers)
    return tokenizer, tasks, cuts, answers


def test_reasoning_is_cut_where_it_is_too_long_or_never_ended(passes):
    tokenizer, _, (short, long), _ = passes
    assert [q["id"] for q in short.questions] == ["0", "2"]
    assert [q["id"] for q in long.questions] == ["2"]
    assert long.questions[0]["reasoning"] == "It could be the heart, or it could be the lung, or"
    for q in short.questions:
        assert len(tokenizer(q["reasoning"], add_special_tokens=False)["input_ids"]) == 4


def test_the_prompt_behind_cut_reasoning_is_what_training_writes(passes):
    tokenizer, _, (short, _), _ = passes
    for q, prompt in zip(short.questions, generation_prompts(tokenizer, short), strict=True):
        messages = prompt_messages(q["question"], q["choices"], "text")
        (row,) = split_completions(tokenizer, [messages], [completion_messages("Lung", q["reasoning"])])
        trained = row["prompt_ids"] + row["completion_ids"]
        assert trained[: len(prompt)] == prompt
        answer = tokenizer.decode(trained[len(prompt) :])
        assert answer.startswith("Lung")
        assert tokenizer.decode(prompt).endswith(f"<think>\n{q['reasoning']}\n</think>\n\n")


def test_accuracy_by_budget_takes_the_later_answer_where_reasoning_was_cut(passes):
    _, tasks, cuts, answers = passes
    answers = dict(answers)
    for cut, texts in zip(cuts, ({"0": "Heart", "2": "Lung"}, {"2": "Lung"}), strict=True):
        for id, text in texts.items():
            answers[cut.name, id] = {"text": text, "tokens": 1, "hit_limit": False}
    rows = thinking_budgets(tasks, cuts, answers)
    assert [(row["tokens"], row["cut_off"], row["accuracy"]) for row in rows] == [
        (4, 0.5, 0.5),  # 2 and 3 are right
        (2000, 0.25, 0.75),  # 0, 2 and 3
        (None, 0, 0.5),  # as written: 0 and 3
    ]


def test_an_evaluation_reports_budgets_and_continues(here, refused, tiny_deepseek, prepared, tmp_path):
    words = ["sft/evaluate.py", "--model_path", tiny_deepseek, "--dataset_path", prepared, "--dtype", "float32"]
    words += ["--method", "generation", "--chat_template", TEMPLATE, "--num_samples", 4, "--max_new_tokens", 12]
    words += ["--output_dir", tmp_path, "--name", "budgets"]
    assert "--thinking_budgets goes with" in refused(*words, "--method", "likelihood", "--thinking_budgets", 4)
    words += ["--thinking_budgets", 8, 4]
    assert "needs the answers of all parts" in refused(*words, "--part", "1/2")
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert "by thinking tokens allowed 4: " in done.stdout
    results = json.loads((tmp_path / "budgets/results.json").read_text())
    rows = results["scores"]["generation"]["by_thinking_budget"]
    assert [row["tokens"] for row in rows] == [4, 8, None]
    assert [row["cut_off"] for row in rows] == [1, 1, 0]  # a random model never stops to think
    page = (tmp_path / "budgets/report.html").read_bytes()
    again = here(*words)
    assert "all 4 answers found" in again.stdout
    assert (tmp_path / "budgets/report.html").read_bytes() == page
