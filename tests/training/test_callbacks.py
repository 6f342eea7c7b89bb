"""Dev accuracy during training is the accuracy that sft/evaluate.py measures, and the curve can be looked at."""

import json
from types import SimpleNamespace

import pytest

from sft.common.display import duration
from sft.training.callbacks import LogLinesCallback, plot


def test_accuracy_during_training_is_that_of_evaluate_on_the_same_questions(
    succeeds, toy_options, tiny_deepseek, few_dev, tmp_path
):
    """In float32, so that no tie is decided by rounding; all dev questions."""
    options = ("--bf16", "no", "--dtype", "float32", "--max_steps", "2", "--mcq_eval_samples", "1000")
    succeeds("sft/run.py", *toy_options("pmcvqa_bf16_lora"), *options, "--output_dir", tmp_path / "out")
    results = json.loads((tmp_path / "out/eval_results.json").read_text())
    report = json.loads((few_dev / "report.json").read_text())
    assert results["best"]["eval_mcq_questions"] == report["splits"]["dev"] >= 12
    for model, which in ((tiny_deepseek, "base"), (tmp_path / "out/final_model", "best")):
        succeeds(
            *("sft/evaluate.py", "--model_path", model, "--split", "dev", "--dtype", "float32", "--name", which),
            *("--dataset_path", few_dev, "--output_dir", tmp_path),
            *("--chat_template", "recipes/templates/deepseek_r1.jinja"),
        )
        measured = json.loads((tmp_path / which / "results.json").read_text())["scores"]["option_likelihood"]
        assert results[which]["eval_mcq_accuracy"] == measured["accuracy"]
        assert [results[which][f"eval_mcq_accuracy_{end}"] for end in ("low", "high")] == measured["ci95"]


def test_every_question_is_scored_once_however_they_are_spread(recipe_run):
    """Eight questions over two processes, under DDP, ZeRO-2 and ZeRO-3: the base model's answers are the same."""
    accuracies = []
    for name in ("pmcvqa_zero2", "pmcvqa_zero3"):
        out, _ = recipe_run(name)
        results = json.loads((out / "eval_results.json").read_text())["base"]
        assert results["eval_mcq_questions"] == 8
        accuracies.append(results["eval_mcq_accuracy"])
    assert accuracies[0] == accuracies[1]


HISTORY = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 0, "eval_mcq_accuracy": 0.25, "eval_mcq_accuracy_low": 0.2, "eval_mcq_accuracy_high": 0.3},
    {"step": 10, "loss": 2.0},
    {"step": 20, "loss": 1.5},
    {"step": 20, "eval_loss": 1.6},
    {"step": 20, "eval_mcq_accuracy": 0.5, "eval_mcq_accuracy_low": 0.4, "eval_mcq_accuracy_high": 0.6},
]


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": 1.0}], HISTORY], ids=["empty", "loss only", "all"])
def test_a_plot_is_made_from_what_was_logged_and_the_same_history_gives_the_same_bytes(history, tmp_path):
    for name in ("one.png", "two.png"):
        plot(history, tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two
    assert one.startswith(b"\x89PNG")
    assert len(one) > 1000
    assert {file.name for file in tmp_path.iterdir()} == {"one.png", "two.png"}


def test_a_log_line_has_step_and_time_left_and_leaves_values_that_are_no_numbers_as_they_are(capsys):
    state = SimpleNamespace(global_step=0, max_steps=10, is_world_process_zero=True)
    callback = LogLinesCallback()
    callback.on_train_begin(None, state, None)
    state.global_step = 5
    callback.on_log(None, state, None, {"loss": 1.23456, "learning_rate": "2e-4", "note": None, "epoch": 0.5})
    callback.on_log(None, state, None, {"epoch": 0.5})
    assert capsys.readouterr().out == "step 5/10 (0 s, 0 s left): loss 1.235, learning_rate 2e-4, note None\n"


@pytest.mark.parametrize(("seconds", "text"), [(48.2, "48 s"), (720, "12 min"), (11_100, "3 h 05 min")])
def test_a_length_of_time_is_short(seconds, text):
    assert duration(seconds) == text
