"""The benchmark of training counts right, compares like with like, and starts nothing that it need not."""

import dataclasses
import json
import re
import shlex

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from sft.common.command import UserError
from sft.training.checks import check_all
from sft.training.config import resolve
from sft.training.hardware import planned_hardware
from sft.training.launch import read_launch_file
from sft.training.memory import count_parameters
from tests.benchmarks import measured, train
from tests.benchmarks.memory import named_launch

RECIPE = "recipes/pmcvqa_bf16_lora.yaml"
# Small packs, so that the few rows make enough steps.
PACKED = f"{RECIPE} --max_length 256 --per_device_train_batch_size 1 --global_batch_size 1"
STAGES = {"launcher", "imports", "data", "model", "first step"}


@pytest.fixture(scope="module")
def bench(command, tiny_deepseek, sample, tmp_path_factory):
    """(the completed command, {contender: its only run}) of two contenders and one that cannot start."""
    file = tmp_path_factory.mktemp("bench") / "runs.json"
    words = ("--model", tiny_deepseek, "--recipe", RECIPE, "--rows", "50", "--rounds", "1", "--output_file", file)
    done = command("tests/benchmarks/train.py", *words, PACKED, "plain", f"{RECIPE} --lora_r none")
    assert done.returncode == 0, done.stderr
    return done, {name: runs[0] for name, runs in json.loads(file.read_text())["runs"].items()}


def test_every_contender_trains_on_the_same_rows_and_tokens_are_counted_without_padding(bench):
    _, runs = bench
    ours, plain = (
        [sum(column) for column in zip(*runs[name]["steps"], strict=True)][1:] for name in (PACKED, "plain")
    )
    examples, read, tokens, trained = ours
    assert examples == plain[0] == 50
    assert read == tokens == plain[2]  # packs have no padding, and both read the same tokens
    assert plain[1] > plain[2]  # rows of one batch differ in length
    # Every token but the padding against those of the completion, about nine a row.
    assert plain[3] == plain[2]
    assert 5 * 50 < trained < 15 * 50


def test_the_held_out_loss_is_that_of_the_completions_tokens(tiny_deepseek, monkeypatch, tmp_path):
    rows = [[[5, 6, 7, 8, 9], 3], [[11, 12, 13], 1]]
    (tmp_path / "held_out.json").write_text(json.dumps(rows))
    monkeypatch.setenv("HELD_OUT", str(tmp_path / "held_out.json"))
    model = AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float32)
    # The model's own loss averages over the labelled tokens of one row.
    losses = []
    for ids, prompt in rows:
        labels = torch.tensor([[-100] * prompt + ids[prompt:]])
        losses += [model(torch.tensor([ids]), labels=labels).loss.item()] * (len(ids) - prompt)
    arguments = TrainingArguments(output_dir=tmp_path / "out", use_cpu=True, report_to="none")
    assert measured.held_out_loss(model, arguments) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_table_shows_every_contender_and_why_one_failed(bench):
    done, runs = bench
    assert [name for name, run in runs.items() if "failed" in run] == [f"{RECIPE} --lora_r none"]
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"| {RECIPE} --lora_r none |")]
    assert len(lines) == 1
    assert "lora_r" in lines[0].split("failed")[1]
    assert "| plain |" in done.stdout


def test_start_up_is_divided_and_adds_up(bench):
    _, runs = bench
    seconds = runs[PACKED]["seconds"]
    assert sum(seconds.values()) == pytest.approx(runs[PACKED]["together"], abs=0.5)
    assert seconds.keys() >= {*STAGES, "memory estimate", "preparation", "other"}
    assert all(value > 0 for value in seconds.values())
    assert runs["plain"]["seconds"].keys() >= STAGES


def test_speed_leaves_the_warm_up_out_and_recomputed_activations_are_not_useful_work():
    steps = [[0.0, 9, 90, 90, 9], [5.0, 9, 90, 90, 9], [6.0, 4, 100, 80, 8], [9.0, 4, 100, 80, 8]]
    run = {"steps": steps, "peak_gib": 1.0, "estimated_gib": None, "processes": 1, "devices": 1, "losses": [2.0]}
    numbers = train.speed_and_memory({**run, "checkpointing": True, "held_out": 1.5}, (400.0, 200.0), 1e5)
    assert numbers["examples/s"] == pytest.approx(8 / 4)
    assert numbers["tokens/s"] == pytest.approx(160 / 4)
    assert numbers["padding"] == pytest.approx(0.2)
    assert numbers["MFU"] == pytest.approx(400 * 40 / 1e5)
    assert numbers["HFU"] == pytest.approx(600 * 40 / 1e5)
    # Two processes on two GPUs do twice the work at the same utilisation; on the cores of one CPU they share its peak.
    for devices, share in ((2, 1), (1, 2)):
        run |= {"processes": 2, "devices": devices, "checkpointing": False, "held_out": 1.5}
        numbers = train.speed_and_memory(run, (400.0, 200.0), 1e5)
        assert numbers["examples/s"] == pytest.approx(2 * 8 / 4)
        assert numbers["MFU"] == pytest.approx(share * 400 * 40 / 1e5)


def test_lora_costs_four_operations_a_frozen_parameter_and_two_more_to_recompute(tiny_deepseek, tmp_path, monkeypatch):
    settings = resolve([RECIPE])
    model = AutoModelForCausalLM.from_pretrained(tiny_deepseek)
    # Neither embeddings, which are looked up, nor the output layer, which sees the labelled tokens alone.
    frozen = sum(parameter.numel() for parameter in model.model.layers.parameters()) + model.config.hidden_size
    trained = count_parameters(model.config, settings).trained
    monkeypatch.syspath_prepend(train.HERE)  # as Python does for the script
    useful, again = train.build_model(str(tiny_deepseek), settings, tmp_path / "model")
    assert useful == 4 * frozen + 6 * trained
    assert again == 2 * frozen + 2 * trained


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--model", "nowhere"), "neither a model folder nor one of 135m"),
        (("recipes/pmcvqa.yml",), "'recipes/pmcvqa.yml': neither trl, plain, llamafactory nor a recipe"),
        (("trl", "recipes/nowhere.yaml --packing no"), "nor a recipe that is there"),
        (("trl", "llamafactory"), "name its environment"),
        (("--output_file", "nowhere/runs.json"), "there is no folder nowhere"),
        (("--config_file accelerate_configs/fsdp2.yaml recipes/pmcvqa_fsdp2.yaml",), "fsdp has no CPU"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_run(refused, tiny_deepseek, words, reason):
    model = () if "--model" in words else ("--model", tiny_deepseek)
    assert reason in refused("tests/benchmarks/train.py", "--recipe", RECIPE, "--rows", "50", *model, *words)


@pytest.mark.parametrize("file", ["gpu.txt", "cpu.txt"])
def test_every_contender_of_the_lists_would_start_where_the_list_says(file):
    path = train.HERE / file
    lines = train.Parser().convert_arg_line_to_args
    contenders = [one for line in path.read_text(encoding="utf-8").splitlines() for one in lines(line)]
    recipes = [one for one in contenders if one not in ("trl", "plain")]
    assert len(recipes) > 8
    for contender in recipes:
        words = shlex.split(contender)
        at = next(i for i, word in enumerate(words) if word.startswith("recipes/"))
        own = words[words.index("--config_file") + 1] if "--config_file" in words else None
        launch = read_launch_file(train.ROOT / (own or named_launch(train.ROOT / words[at])[0]))
        launch = dataclasses.replace(launch, processes=1)
        settings = resolve([words[at], "--output_dir", "nowhere", *words[at + 1 :]]).for_world_size(1)
        try:
            check_all(settings, launch, planned_hardware("A100-80GB", 1))
        except UserError as missing:  # a package that is for GPUs alone
            assert "--attn_implementation" in contender
            assert re.search("needs the package (flash_attn or )?kernels", str(missing))


def test_a_run_imports_nothing_that_it_does_not_use(command, prepared, tiny_deepseek):
    program = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    program += "print('MODULES', *sorted({name.split('.')[0] for name in sys.modules}))"
    words = ["sft/run.py", RECIPE, "--use_cpu", "yes", "--dry_run", "yes", "--model_name_or_path", tiny_deepseek]
    done = command("-c", program, *words, "--dataset_name", prepared, "--max_length", "256")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split("MODULES")[1].split())
    assert "trl" in loaded
    unused = {"matplotlib", "gradio", "openai", "tensorboard", "trackio", "gguf", "fastapi", "uvicorn"}
    assert not unused & loaded
