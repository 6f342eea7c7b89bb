"""Training as a user starts it: `accelerate launch sft/run.py RECIPE`, at toy size."""

import json
import subprocess
from pathlib import Path

import pytest

LAUNCH = ("accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml", "sft/run.py")
# What makes the 8B recipe a toy: a CPU, four steps, small packs. Everything else stays as shipped.
TOY = ("--use_cpu", "yes", "--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--max_length", "256")

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def succeed(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def pmcvqa_run(command, tiny_deepseek, prepared, tmp_path_factory) -> Path:
    """Output folder of the main recipe, run with the DeepSeek template on a tiny random Llama, 8-bit."""
    out = tmp_path_factory.mktemp("pmcvqa") / "PMC-VQA-SFT-Output"
    succeed(
        command(
            *(*LAUNCH, "recipes/pmcvqa.yaml", *TOY, "--model_name_or_path", tiny_deepseek),
            *("--dataset_name", prepared, "--output_dir", out),
        )
    )
    return out


def test_main_recipe_leaves_checkpoints_a_final_model_and_results(pmcvqa_run):
    assert {path.name for path in pmcvqa_run.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    results = json.loads((pmcvqa_run / "eval_results.json").read_text())
    assert 0 < results["eval_loss"] < 20
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


def test_tokens_made_beforehand_train_the_same_model(command, pmcvqa_run, prepare, tiny_deepseek, tmp_path):
    template = "recipes/templates/deepseek_r1.jinja"
    tokens = prepare("--pretokenize", tiny_deepseek, "--chat_template", template)
    done = succeed(
        command(
            *("sft/run.py", "recipes/pmcvqa.yaml", *TOY, "--model_name_or_path", tiny_deepseek),
            *("--dataset_name", tokens, "--output_dir", tmp_path / "out"),
        )
    )
    assert "Tokenizing" not in done.stderr
    adapters = [run / "final_model/adapter_model.safetensors" for run in (pmcvqa_run, tmp_path / "out")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_recipe_mixes_data_sets(command, prepared, tiny_deepseek, tmp_path):
    done = succeed(
        command(
            *("sft/run.py", "recipes/pmcvqa.yaml", *TOY, "--model_name_or_path", tiny_deepseek, "--max_steps", "2"),
            *("--dataset_name", prepared, "--output_dir", tmp_path / "out"),
            *("--dataset_mixture", json.dumps({str(prepared): 0.5})),
        )
    )
    questions = json.loads((prepared / "report.json").read_text())["splits"]["train"]
    assert f"Data: {round(questions / 2)} questions" in done.stdout


def test_an_earlier_run_is_not_overwritten(refused, pmcvqa_run, tiny_deepseek, prepared):
    line = refused(
        *("sft/run.py", "recipes/pmcvqa.yaml", *TOY, "--model_name_or_path", tiny_deepseek),
        *("--dataset_name", prepared, "--output_dir", pmcvqa_run),
    )
    assert "holds an earlier run" in line
    assert "--resume_from_checkpoint auto" in line


def test_a_run_continues_from_its_last_checkpoint(command, pmcvqa_run, tiny_deepseek, prepared):
    done = succeed(
        command(
            *("sft/run.py", "recipes/pmcvqa.yaml", *TOY, "--model_name_or_path", tiny_deepseek),
            *("--dataset_name", prepared, "--output_dir", pmcvqa_run),
            *("--resume_from_checkpoint", "auto", "--max_steps", "6"),
        )
    )
    assert (pmcvqa_run / "checkpoint-6/trainer_state.json").exists(), done.stdout
    history = json.loads((pmcvqa_run / "checkpoint-6/trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in history if "eval_loss" in row] == [2, 4, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset_name", "nowhere"], "data set nowhere cannot be opened"),
        (["--dataset_name", "recipes"], "not a prepared data set"),
        (["--dataset_test_split", "test"], "use dev"),
        (["--dataset_test_split", "validation"], "no split validation: it has train, dev, test"),
        (["--model_name_or_path", "recipes"], "is no model"),
        (["--model_name_or_path", "./nowhere"], "does not exist"),
        (["--model_name_or_path", "nobody/nothing"], "tokenizer of nobody/nothing cannot be loaded"),
        (["--chat_template_path", "nowhere.jinja"], "choose one of recipes/templates"),
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


def test_the_stock_template_is_refused_for_deepseek(refused, tiny_deepseek, prepared, tmp_path):
    import trl

    stock = Path(trl.__file__).parent / "chat_templates/deepseek_r1_distill.jinja"
    line = refused(
        *("sft/run.py", "recipes/pmcvqa.yaml", "--use_cpu", "yes", "--model_name_or_path", tiny_deepseek),
        *("--dataset_name", prepared, "--output_dir", tmp_path / "out", "--chat_template_path", stock),
    )
    assert "breaks parity" in line


def test_8bit_lora_trains_the_embedded_model(command, embedded_model, prepare, tmp_path):
    """With bitsandbytes int8 weights under it, every adapter of the seven projections moves and the loss falls."""
    out = tmp_path / "out"
    done = succeed(
        command(
            *("sft/run.py", "recipes/quickstart.yaml", "--dataset_name", prepare("--answer_format", "text")),
            *("--model_name_or_path", embedded_model, "--output_dir", out, "--load_in_8bit", "yes"),
            *("--max_steps", "8", "--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"),
            *("--load_best_model_at_end", "no", "--lora_target_modules", *PROJECTIONS),
        )
    )
    assert "int8 106.2M" in done.stdout
    assert "MatMul8bitLt" not in done.stdout + done.stderr
    losses = [float(part.split("'")[3]) for part in done.stdout.splitlines() if part.startswith("{'loss'")]
    assert len(losses) == 8
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])

    import torch
    from safetensors.torch import load_file

    weights = load_file(out / "final_model/adapter_model.safetensors")
    moved = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert len(moved) == 7 * 30
    assert all(torch.isfinite(tensor).all() and tensor.abs().max() > 0 for tensor in moved)


def test_same_seed_trains_the_same_adapter(command, tiny_deepseek, prepared, tmp_path):
    for name in ("one", "two"):
        succeed(
            command(
                *("sft/run.py", "recipes/pmcvqa.yaml", *TOY, "--model_name_or_path", tiny_deepseek),
                *("--dataset_name", prepared, "--output_dir", tmp_path / name),
            )
        )
    one, two = (tmp_path / name / "final_model/adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
