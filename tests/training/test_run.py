"""Training as a user starts it: `accelerate launch sft/run.py RECIPE`, at toy size."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# TRL's own for DeepSeek's distilled models.
STOCK_TEMPLATE = Path(find_spec("trl").origin).with_name("chat_templates") / "deepseek_r1_distill.jinja"


@pytest.fixture(scope="module")
def pmcvqa_run(recipe_run) -> Path:
    """Output folder of the main recipe, run with the DeepSeek template on a tiny random Llama, 8-bit."""
    return recipe_run("pmcvqa")[0]


@pytest.fixture
def train(succeeds, toy_options, tmp_path):
    """Run the main recipe as a toy inside this process; returns the completed command. Output: tmp_path/out."""

    def run(*options: object, **data: Path) -> subprocess.CompletedProcess:
        return succeeds("sft/run.py", *toy_options("pmcvqa", **data), "--output_dir", tmp_path / "out", *options)

    return run


def test_main_recipe_leaves_checkpoints_a_final_model_and_results(pmcvqa_run):
    assert {path.name for path in pmcvqa_run.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    results = json.loads((pmcvqa_run / "eval_results.json").read_text())
    assert results["best_checkpoint"] in ("checkpoint-2", "checkpoint-4")
    final = {path.name for path in (pmcvqa_run / "final_model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= final
    assert not list(pmcvqa_run.glob(".final_model*"))
    # Nothing that has to be unpickled: whoever loads the folder need not trust it.
    assert not [name for name in final if name.endswith((".bin", ".pt", ".pkl"))]


def test_final_model_brings_the_template_and_the_prompt_it_was_trained_with(pmcvqa_run):
    final = pmcvqa_run / "final_model"
    template = Path("recipes/templates/deepseek_r1.jinja").read_text(encoding="utf-8")
    assert (final / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert json.loads((final / "prompt_format.json").read_text())["answer_format"] == "letter_text"


def test_every_checkpoint_brings_the_answer_format_it_was_trained_with(pmcvqa_run):
    from sft.common.models import prompt_format

    for checkpoint in pmcvqa_run.glob("checkpoint-*"):
        assert prompt_format(str(checkpoint)) == "letter_text"
        assert "prompt_format.json" in json.loads((checkpoint / "run_manifest.json").read_text())["files"]


def test_tokens_made_beforehand_train_the_same_model(train, pmcvqa_run, prepare, tiny_deepseek, tmp_path):
    template = "recipes/templates/deepseek_r1.jinja"
    done = train(data=prepare("--dev_size", 24, "--pretokenize", tiny_deepseek, "--chat_template", template))
    assert "Tokenizing" not in done.stderr
    adapters = [run / "final_model/adapter_model.safetensors" for run in (pmcvqa_run, tmp_path / "out")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_same_seed_trains_the_same_adapter_and_draws_the_same_curve(train, pmcvqa_run, tmp_path):
    train()
    for name in ("final_model/adapter_model.safetensors", "checkpoint-2/adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (pmcvqa_run / name).read_bytes()
    curves = [json.loads((run / "history.json").read_text()) for run in (pmcvqa_run, tmp_path / "out")]
    losses = [[row["loss"] for row in curve if "loss" in row] for curve in curves]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def test_a_recipe_mixes_data_sets(train, prepared):
    done = train("--max_steps", "2", "--dataset_mixture", json.dumps({str(prepared): 0.5}))
    questions = json.loads((prepared / "report.json").read_text())["splits"]["train"]
    assert f"Data: {round(questions / 2)} rows" in done.stdout


def test_results_hold_loss_and_accuracy_of_base_and_best_on_dev(pmcvqa_run):
    results = json.loads((pmcvqa_run / "eval_results.json").read_text())
    history = json.loads((pmcvqa_run / "history.json").read_text())
    best = int(results["best_checkpoint"].rsplit("-", 1)[1])
    at_start, at_best = (
        {key: value for row in history if row["step"] == step for key, value in row.items()} for step in (0, best)
    )
    for key in ("eval_loss", "eval_mcq_accuracy", "eval_mcq_accuracy_low", "eval_mcq_accuracy_high"):
        assert results["base"][key] == at_start[key]
        # A kept model that is not the last was loaded and evaluated anew: it is the one that won.
        assert results["best"][key] == pytest.approx(at_best[key], rel=1e-5)
    accuracies = [row["eval_mcq_accuracy"] for row in history if row["step"] > 0 and "eval_mcq_accuracy" in row]
    assert at_best["eval_mcq_accuracy"] == max(accuracies)
    assert results["best"]["eval_mcq_questions"] == 8


def test_dev_answers_are_shown_while_training(recipe_run):
    _, done = recipe_run("pmcvqa")
    shown = [line for line in (done.stdout + done.stderr).splitlines() if "  dev: " in line]
    assert len(shown) >= 3 * 3
    assert all("(right)" in line or "(wrong, gold " in line for line in shown)


@pytest.mark.parametrize("script", ["sft/run.py", "sft/preflight.py"])
def test_an_earlier_run_is_not_overwritten(refused, pmcvqa_run, toy_options, script):
    line = refused(script, *toy_options("pmcvqa"), "--output_dir", pmcvqa_run)
    assert "holds an earlier run" in line
    assert "--resume_from_checkpoint auto" in line


def test_output_that_cannot_be_written_does_not_end_a_run(toy_options, tmp_path):
    """Log on a full disk, reader of the errors gone, terminal in Latin-1: all at once, in a process of its own."""
    read, write = os.pipe()
    os.close(read)
    options = ("--output_dir", tmp_path / "out", "--max_steps", "2", "--save_steps", "2", "--eval_steps", "2")
    words = [sys.executable, "sft/run.py", *map(str, (*toy_options("pmcvqa"), *options))]
    with open("/dev/full", "wb") as full:
        encoding = {**os.environ, "PYTHONIOENCODING": "iso-8859-1", "LC_ALL": "C"}
        done = subprocess.run(words, stdout=full, stderr=write, env=encoding, check=False)
    os.close(write)
    assert done.returncode == 0
    assert (tmp_path / "out/final_model/adapter_model.safetensors").is_file()


def test_the_end_of_text_token_of_the_recipe_ends_the_rows(train):
    rows = train("--dry_run", "yes", "--eos_token", "<think>").stdout.split("--- ")[1:]
    assert len(rows) == 3
    assert all(row.split("]]")[0].endswith("<think>") for row in rows)


def test_adapters_are_in_float32_where_the_precision_is_not_bf16(train):
    done = train("--dry_run", "yes", "--bf16", "no", "--dtype", "float32")
    assert re.search(r"Trained parameters: float32 \S+M \(", done.stdout)
    assert "bfloat16" not in re.search(r"Frozen parameters: (.*)", done.stdout)[1]


def test_dry_run_shows_three_rows_and_takes_one_step_on_the_longest(train, tmp_path):
    done = train("--dry_run", "yes")
    shown = done.stdout.split("--- ")[1:]
    assert len(shown) == 3
    for row in shown:
        prompt, _, completion = row.partition("[[")
        assert int(row.split(" tokens")[0]) >= 100  # the longest that there are
        assert "<｜Assistant｜><think>\n" in prompt
        assert completion.startswith("</think>")
        assert completion.strip().split("]]")[0].endswith("<｜end▁of▁sentence｜>")
    assert "Dry run: one step on the longest rows" in done.stdout
    assert re.search(r"Peak memory: [\d.]+ GiB of the first process on the CPU; estimated [\d.]+ GiB", done.stdout)
    assert not (tmp_path / "out").exists()


def test_probe_reports_speed_memory_time_and_cost_of_the_whole_run(train, tmp_path):
    done = train("--probe_steps", "2", "--price_per_hour", "3600", "--max_steps", "1000")
    speed = re.search(r"([\d.]+) s a step, ([\d,]+) tokens/s", done.stdout)
    seconds, tokens = float(speed[1]), int(speed[2].replace(",", ""))
    assert tokens * seconds == pytest.approx(4 * 256, rel=0.2)  # four packs, nearly full
    cost = re.search(r"Whole run: 1,000 steps, .* (?:h \d+ min|min|s) without evaluations, ([\d.]+) at", done.stdout)
    assert float(cost[1]) == pytest.approx(1000 * seconds, rel=0.05)  # a unit of money a second
    assert "Model FLOPs utilisation: not known" in done.stdout
    assert "Peak memory:" in done.stdout
    assert not (tmp_path / "out").exists()


def test_the_resolved_configuration_is_printed_with_its_sources(succeeds):
    done = succeeds("sft/run.py", "recipes/pmcvqa.yaml", "--print_config", "yes", "--learning_rate", "1e-4")
    lines = {line.split(":")[0]: line for line in done.stdout.splitlines()}
    assert re.search(r"0\.0001\s+# command line", lines["learning_rate"])
    assert re.search(r"16\s+# recipes/pmcvqa.yaml", lines["lora_r"])
    assert re.search(r"8\s+# global_batch_size", lines["gradient_accumulation_steps"])
    assert re.search(r"# default", lines["adam_beta1"])


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_report_to_writes_locally_and_offline(train, tmp_path, monkeypatch, tracker):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    train("--report_to", tracker, "--max_steps", "2", "--run_name", "toy", "--project", "toys")
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        logged = events.Tags()["scalars"]
    else:
        import sqlite3

        (file,) = Path(os.environ["TRACKIO_DIR"]).glob("toys*.db")
        with sqlite3.connect(file) as database:
            logged = "".join(str(row) for row in database.execute("select * from metrics"))
    assert all(name in logged for name in ("train/loss", "eval/loss", "eval/mcq_accuracy"))


@pytest.mark.parametrize(("given", "off"), [({}, "1 0"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "0 0")])
def test_telemetry_is_off_unless_the_user_turns_it_on(given, off):
    names = ("HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")
    others = {name: value for name, value in os.environ.items() if name not in names}
    show = f"import os, sft; print(*(os.environ[name] for name in {names}))"
    done = subprocess.run([sys.executable, "-c", show], env=others | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == off


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset_name", "nowhere"], "data set nowhere does not exist"),
        (["--dataset_name", "recipes"], "not a prepared data set"),
        (["--dataset_test_split", "test"], "use dev"),
        (["--dataset_test_split", "validation"], "no split validation: it has train, dev, test"),
        (["--model_name_or_path", "recipes"], "is no model"),
        (["--model_name_or_path", "./nowhere"], "does not exist"),
        (["--model_name_or_path", "nobody/nothing"], "nobody/nothing cannot be loaded"),
        (["--chat_template_path", "nowhere.jinja"], "choose one of recipes/templates"),
        (["--chat_template_path", STOCK_TEMPLATE], "breaks parity"),
        (["--max_length", "32"], "their answers would be cut: set max_length to"),
        (["--resume_from_checkpoint", "nowhere"], "is no checkpoint"),
        (["--max_seq_length", "32"], "use max_length"),
    ],
)
def test_wrong_settings_are_refused_before_the_model_loads(refused, tiny_deepseek, prepared, tmp_path, options, words):
    line = refused(
        *("sft/run.py", "recipes/pmcvqa.yaml", "--use_cpu", "yes", "--model_name_or_path", tiny_deepseek),
        *("--dataset_name", prepared, "--output_dir", tmp_path / "out", *options),
    )
    assert words in line
    assert not (tmp_path / "out").exists()


def test_8bit_lora_trains_the_embedded_model(succeeds, embedded_model, prepare, tmp_path):
    """With bitsandbytes int8 weights under it, every adapter of the seven projections moves and the loss falls.

    Real weights, because a random model has nothing to learn from; in float32, which every CPU multiplies fast.
    """
    out = tmp_path / "out"
    done = succeeds(
        *("sft/run.py", "recipes/quickstart.yaml", "--dataset_name", prepare("--answer_format", "text")),
        *("--model_name_or_path", embedded_model, "--output_dir", out, "--load_in_8bit", "yes"),
        *("--max_steps", "6", "--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"),
        *("--load_best_model_at_end", "no", "--mcq_eval_samples", "0", "--per_device_train_batch_size", "2"),
        *("--bf16", "no", "--dtype", "float32"),
    )
    assert "int8 106.2M" in done.stdout
    assert "MatMul8bitLt" not in done.stdout + done.stderr
    losses = [row["loss"] for row in json.loads((out / "history.json").read_text()) if "loss" in row]
    assert len(losses) == 6
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])

    import torch
    from safetensors.torch import load_file

    weights = load_file(out / "final_model/adapter_model.safetensors")
    moved = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert len(moved) == 7 * 30
    assert all(torch.isfinite(tensor).all() and tensor.abs().max() > 0 for tensor in moved)
