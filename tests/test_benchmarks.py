"""The benchmark of training counts right, compares like with like, and starts nothing that it need not."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from sft.common.command import UserError, read_json
from sft.training.checks import check_all
from sft.training.config import resolve
from sft.training.hardware import planned_hardware
from sft.training.launch import read_launch_file
from sft.training.memory import count_parameters
from tests.benchmarks import measured, train
from tests.benchmarks.bench import speed_and_memory
from tests.benchmarks.gpu_measure import contender_of
from tests.benchmarks.gpu_sections import Results, fastest
from tests.benchmarks.gpu_steps import PARTS, STEPS, Step
from tests.benchmarks.inputs import ROOT, build_model
from tests.benchmarks.memory import named_launch
from tests.benchmarks.running import run_limited
from tests.benchmarks.stack import data_sheet_peak

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
    numbers = speed_and_memory({**run, "checkpointing": True, "held_out": 1.5}, (400.0, 200.0), 1e5)
    assert numbers["examples/s"] == pytest.approx(8 / 4)
    assert numbers["tokens/s"] == pytest.approx(160 / 4)
    assert numbers["padding"] == pytest.approx(0.2)
    assert numbers["MFU"] == pytest.approx(400 * 40 / 1e5)
    assert numbers["HFU"] == pytest.approx(600 * 40 / 1e5)
    # Two processes on two GPUs do twice the work at the same utilisation; on the cores of one CPU they share its peak.
    for devices, share in ((2, 1), (1, 2)):
        run |= {"processes": 2, "devices": devices, "checkpointing": False, "held_out": 1.5}
        numbers = speed_and_memory(run, (400.0, 200.0), 1e5)
        assert numbers["examples/s"] == pytest.approx(2 * 8 / 4)
        assert numbers["MFU"] == pytest.approx(share * 400 * 40 / 1e5)


def test_lora_costs_four_operations_a_frozen_parameter_and_two_more_to_recompute(tiny_deepseek, tmp_path):
    settings = resolve([RECIPE])
    model = AutoModelForCausalLM.from_pretrained(tiny_deepseek)
    # Neither embeddings, which are looked up, nor the output layer, which sees the labelled tokens alone.
    frozen = sum(parameter.numel() for parameter in model.model.layers.parameters()) + model.config.hidden_size
    trained = count_parameters(model.config, settings).trained
    useful, again = build_model(str(tiny_deepseek), settings, tmp_path / "model")
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


def contenders_of(file: str) -> list[str]:
    """What a list names, or the steps of tests/benchmarks/gpu.py that train."""
    if file == "gpu_steps.py":
        device = {"memory": 79.2, "capability": (8, 0)}
        return [contender_of(step, device) for step in STEPS if step.kind in ("train", "variant")]
    lines = (ROOT / "tests/benchmarks" / file).read_text(encoding="utf-8").splitlines()
    return [one for line in lines for one in train.Parser().convert_arg_line_to_args(line)]


@pytest.mark.parametrize("file", ["gpu_steps.py", "cpu.txt"])
def test_every_contender_of_the_lists_would_start_where_the_list_says(file):
    recipes = [one for one in contenders_of(file) if one not in ("trl", "plain", "llamafactory")]
    assert len(recipes) > 8
    for contender in recipes:
        words = shlex.split(contender)
        at = next(i for i, word in enumerate(words) if word.startswith("recipes/"))
        own = words[words.index("--config_file") + 1] if "--config_file" in words else None
        launch = read_launch_file(ROOT / (own or named_launch(ROOT / words[at])[0]))
        launch = dataclasses.replace(launch, processes=1)
        settings = resolve([words[at], "--output_dir", "nowhere", *words[at + 1 :]]).for_world_size(1)
        try:
            check_all(settings, launch, planned_hardware("A100-80GB", 1))
        except UserError as missing:  # a package that is for GPUs alone
            assert "--attn_implementation" in contender
            assert re.search(r"needs the package (flash_attn\w* or )?kernels", str(missing))


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


# --- tests/benchmarks/gpu.py ---


def test_a_command_that_takes_too_long_ends_with_all_its_children(tmp_path):
    psutil = pytest.importorskip("psutil")
    before = set(psutil.Process().children(recursive=True))
    words = ["bash", "-c", "setsid sleep 1000 & sleep 1000"]
    assert run_limited(words, dict(os.environ), tmp_path / "log", seconds=1) is None
    assert set(psutil.Process().children(recursive=True)) <= before
    assert run_limited(["bash", "-c", "exit 3"], dict(os.environ), tmp_path / "log", seconds=60) == 3


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla T4", 65),
    ],
)
def test_the_peak_of_a_card_is_that_of_its_data_sheet_or_unknown(name, teraflops):
    peak = data_sheet_peak(name)
    assert peak is None if teraflops is None else peak == pytest.approx(teraflops * 1e12)


def test_the_fastest_variant_is_named_among_those_that_learn_as_much():
    measured = {
        "": (10, 2.0),
        "--seed 43": (10, 2.01),
        "--lora_dropout 0": (12, 2.005),
        "--optim adamw_torch": (20, 2.1),
    }
    steps = {
        Step(3, "variant", keys).name: {"result": {"examples/s": speed, "held out": loss}}
        for keys, (speed, loss) in measured.items()
    }
    (line,) = fastest(Results({"steps": steps}))
    assert line.endswith("12.00 examples/s, 1.20 times the recipe; keys to write into it: lora_dropout: 0.")


def test_without_a_gpu_it_says_so_in_one_line(command, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = command("tests/benchmarks/gpu.py", "--output_dir", tmp_path / "gpu")
    assert done.returncode == 2
    assert done.stderr == "error: there is no GPU that PyTorch can use: --rehearse goes through the list on a CPU\n"


def test_a_folder_with_another_measurement_is_refused(refused, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"of": {"model": None, "rehearsal": False}, "steps": {}}))
    assert "name another folder" in refused("tests/benchmarks/gpu.py", "--rehearse", "--output_dir", tmp_path)


@pytest.fixture(scope="module")
def rehearsal(command, tiny_deepseek, embedded_model, tmp_path_factory):
    """The list gone through: killed after a few steps, continued in a short budget, then to the end.

    Returns (the folder, the steps before the kill, the seconds and the report of the short budget).
    """
    psutil = pytest.importorskip("psutil")
    out = tmp_path_factory.mktemp("gpu")
    words = ("tests/benchmarks/gpu.py", "--rehearse", "--model", tiny_deepseek, "--output_dir", out)
    with open(out / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *map(str, words), "--minutes", "30"], cwd=ROOT, stdout=log, stderr=log
        )
    while len(before := read_json(out / "results.json")["steps"] if (out / "results.json").exists() else {}) < 4:
        assert process.poll() is None, (out / "log").read_text()[-3000:]
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, timeout=60)[1]  # nothing goes on measuring

    start = time.monotonic()
    short = command(*words, "--minutes", "0.4")
    taken, report = time.monotonic() - start, (out / "report.md").read_text()
    whole = command(*words, "--minutes", "30")
    assert short.returncode == whole.returncode == 0, short.stderr[-2000:] + whole.stderr[-2000:]
    return out, before, taken, report


def test_the_time_budget_is_kept_and_what_was_not_reached_says_so(rehearsal):
    _, _, taken, report = rehearsal
    assert taken < 0.4 * 60 + 30
    assert re.search(r"Not reached, \d+ of \d+ steps", report)
    assert ": not reached" in report


def test_a_killed_measurement_goes_on_where_it_was(rehearsal):
    out, before, _, _ = rehearsal
    after = read_json(out / "results.json")["steps"]
    assert {name: after[name] for name in before} == before
    assert all("result" in after[step.name] for step in STEPS)


def test_a_step_that_fails_is_a_result_and_only_what_needs_a_gpu_fails_on_a_cpu(rehearsal):
    out, *_ = rehearsal
    steps = read_json(out / "results.json")["steps"]
    failed = {name for name, step in steps.items() if "failed" in step["result"]}
    of_gpus = ("flex_attention", "flash_attention", "fsdp2", "activation_offloading")
    assert {name for name in failed if not any(word in name for word in of_gpus)} <= {
        "6 quickstart"
    }  # without its model


def test_every_part_of_the_report_has_its_numbers(rehearsal):
    out, *_ = rehearsal
    report, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    sections = dict(part.split("\n", 1) for part in report.split("\n## ")[1:])
    assert list(sections) == list(PARTS.values())
    stack, recipes, speeds, others, evaluation, promises = sections.values()
    assert re.search(r"\| NF4 \| [\d.]+% \|", stack)
    assert re.search(r"\| pmcvqa \| [\d.]+ \| [\d.]+ \| [\d.]+ \| 0\.0\d+ \|", recipes)  # 8-bit beside bf16
    assert re.search(r"\| pmcvqa_bf16_lora: lora_dropout 0 \| [\d.]+ \|", speeds)
    assert "keys to write into it: " in speeds
    assert re.search(r"is [\d.]+ times as fast as trl", others)
    assert re.search(r"\| 4 \| generation \| [\d.]+ \|", evaluation)
    assert "losses differ by 0 at most, the final adapter is the same to the bit" in promises
    assert (
        len(re.findall(r"\| the adapter of ZeRO-\d is whole \| 28 tensors, 0 empty, 0 of zeros alone \|", promises))
        == 2
    )
    apart = re.search(r"unpacked, sdpa \| a token's loss differs by ([\d.e-]+) .*one another: ([\d.]+) on", promises)
    assert float(apart[1]) < 0.1 * float(apart[2])
    for part in PARTS.values():
        assert f"<h2>{part}</h2>" in page
    assert page.count("class=track") > 25
    assert "nothing here was measured on a GPU" in report
