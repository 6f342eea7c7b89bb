"""A run that is killed goes on as if it had not been; one that is stopped in good time says how; nothing is half."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sft.common.command import UserError
from sft.training.checkpoints import compare, complete_manifest, mark_complete, remove_incomplete, resume_point
from sft.training.config import resolve
from sft.training.stopping import resume_command
from tests.slurm import free_ports

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started():
    """Start a command of the project, and wait until it writes `file`; whatever is left of it ends with the test."""
    running = []

    def start(file: Path, *words: object, log: Path) -> subprocess.Popen:
        words = [str(word) for word in words]
        if words[0] == "accelerate":
            words[:1] = ["-m", "accelerate.commands.accelerate_cli"]
        with log.open("w") as output:
            # SIGUSR1 is for the training processes; a launcher that ignores it lives on (docs/slurm.sh).
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
            )
        running.append(process)
        while not file.exists():
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.05)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            send(process, signal.SIGKILL)
            process.wait()


def send(process: subprocess.Popen, number: int) -> None:
    """To the launcher and all that it started, as a scheduler signals a job: torchrun's workers lead own groups."""
    family = psutil.Process(process.pid)
    for member in [*family.children(recursive=True), family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(number)


def final_adapter(out: Path) -> bytes:
    return (out / "final_model/adapter_model.safetensors").read_bytes()


def curve(out: Path) -> list[dict]:
    """What a run logged, without speeds; TRL's token counter and the average of the whole run count from a restart."""
    rows = json.loads((out / "history.json").read_text())
    speeds = re.compile("runtime|per_second|num_tokens|total_flos|train_loss")
    rows = [{key: value for key, value in row.items() if not speeds.search(key)} for row in rows]
    return [row for row in rows if row.keys() - {"epoch", "step"}]


@pytest.mark.parametrize(
    ("recipe", "launch", "kill_at"),
    [
        ("pmcvqa", (), "checkpoint-2/run_manifest.json"),
        ("pmcvqa", (), "checkpoint-4/optimizer.pt"),
        ("pmcvqa_vl", (), "checkpoint-2/run_manifest.json"),
        (
            "pmcvqa_zero2",
            ("accelerate", "launch", "--config_file", "accelerate_configs/zero2.yaml", "--num_processes", "2"),
            "checkpoint-2/run_manifest.json",
        ),
    ],
    ids=[
        "8-bit LoRA, between steps",
        "8-bit LoRA, while a checkpoint is written",
        "with figures",
        "ZeRO-2 with two processes",
    ],
)
def test_killed_and_continued_the_loss_curve_is_that_of_the_unbroken_run(
    recipe, launch, kill_at, recipe_run, started, command, here, toy_options, tmp_path
):
    unbroken, _ = recipe_run(recipe)
    out, log = tmp_path / "out", tmp_path / "log"
    words = (*launch, "sft/run.py", *toy_options(recipe), "--output_dir", out)
    process = started(out / kill_at, *words, log=log)
    send(process, signal.SIGKILL)
    process.wait()
    left = {folder.name: complete_manifest(folder) is not None for folder in out.glob("checkpoint-*")}
    assert left["checkpoint-2"]
    assert not (out / "final_model").exists()

    again = (command if launch else here)(*words, "--resume_from_checkpoint", "auto")
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-3000:]
    last = "checkpoint-4" if left.get("checkpoint-4") else "checkpoint-2"
    assert f"continuing from {out / last}" in again.stdout
    assert curve(out) == curve(unbroken)
    assert final_adapter(out) == final_adapter(unbroken)


def test_two_machines_train_as_one_and_one_that_is_lost_is_named_and_continued(
    recipe_run, started, toy_options, tmp_path
):
    """Two launchers, here on loopback; docs/cluster.md says what was seen between two network namespaces."""
    unbroken, _ = recipe_run("pmcvqa_ddp")  # two processes of one machine
    out, port = tmp_path / "out", free_ports(1)[0]
    words = ("sft/run.py", *toy_options("pmcvqa_ddp"), "--output_dir", out, "--resume_from_checkpoint", "auto")
    where = ("--main_process_ip", "127.0.0.1", "--main_process_port", port, "--num_processes", "2")

    def machine(rank: int, log: Path, file: Path) -> subprocess.Popen:
        return started(file, "sft/multi_node.py", *where, "--machine_rank", rank, *words, log=log)

    logs = [tmp_path / f"log{number}" for number in range(4)]
    survivor, lost = machine(0, logs[0], logs[0]), machine(1, logs[1], out / "checkpoint-2/run_manifest.json")
    send(lost, signal.SIGKILL)
    assert survivor.wait(timeout=1800) == 1
    assert "error: another process of this run is gone, or its machine is" in logs[0].read_text()
    assert not (out / "final_model").exists()

    again = [machine(rank, logs[2 + rank], logs[2 + rank]) for rank in (0, 1)]
    assert [process.wait(timeout=1800) for process in again] == [0, 0], logs[2].read_text()[-4000:]
    assert f"continuing from {out / 'checkpoint-2'}" in logs[2].read_text()
    assert curve(out) == curve(unbroken)
    assert final_adapter(out) == final_adapter(unbroken)


def stopped_step(out: Path, log: Path) -> int:
    """The step after which a run of 500 steps says that it stopped; its checkpoint is complete."""
    (step,) = re.findall(r"Stopped by a signal after step (\d+); the checkpoint is saved", log.read_text())
    assert complete_manifest(out / f"checkpoint-{step}")
    assert not (out / "final_model").exists()
    return int(step)


def test_sigusr1_to_all_processes_saves_together_exits_0_and_prints_the_way_on(started, toy_options, tmp_path):
    """As SLURM does before the time limit: the signal goes to the launcher and to two training processes."""
    out, log = tmp_path / "out", tmp_path / "log"
    launch = ("accelerate", "launch", "--config_file", "accelerate_configs/ddp.yaml", "--num_processes", "2")
    words = (*toy_options("pmcvqa_ddp"), "--output_dir", out, "--max_steps", "500", "--eval_on_start", "no")
    words = (*words, "--resume_from_checkpoint", "auto")  # as a job script that is submitted again and again
    process = started(out / "checkpoint-2/run_manifest.json", *launch, "sft/run.py", *words, log=log)
    send(process, signal.SIGUSR1)
    assert process.wait(timeout=1800) == 0, log.read_text()[-4000:]
    assert stopped_step(out, log) < 500
    (way_on,) = re.findall(
        r"Continue with the same command and --resume_from_checkpoint auto:\n  (.*)", log.read_text()
    )
    assert way_on.startswith("... sft/run.py recipes/pmcvqa_ddp.yaml --max_steps 4")
    assert way_on.count("--resume_from_checkpoint") == 1
    assert way_on.endswith("--eval_on_start no --resume_from_checkpoint auto")


def test_sigterm_to_a_single_process_saves_and_exits_0(started, toy_options, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    words = (*toy_options("pmcvqa"), "--output_dir", out, "--max_steps", "500", "--eval_on_start", "no")
    process = started(out / "checkpoint-2/run_manifest.json", "sft/run.py", *words, log=log)
    os.kill(int(re.search(r"To stop with a checkpoint: kill -USR1 (\d+)", log.read_text())[1]), signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # the echo of a launcher
    assert process.wait(timeout=1800) == 0, log.read_text()[-4000:]
    assert stopped_step(out, log) < 500
    way_on = "Continue with the same command and --resume_from_checkpoint auto:\n  ... sft/run.py recipes/pmcvqa"
    assert way_on in log.read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--resume_from_checkpoint", "my runs/checkpoint-2", "--resume_weights_only", "yes"],
        ["--resume_from_checkpoint=my runs/checkpoint-2", "--resume_weights_only=yes"],
        ["--resume_weights_only"],
        [],
    ],
)
def test_the_command_that_continues_keeps_all_options_but_those_about_resuming(options):
    command = ["sft/run.py", "my recipe.yaml", *options, "--output_dir", "my runs/new"]
    resumed_by = "sft/run.py 'my recipe.yaml' --output_dir 'my runs/new' --resume_from_checkpoint auto"
    assert resume_command(command) == resumed_by


def resumed(out: Path, checkpoint: object = "auto", *options: str) -> Path | None:
    """The checkpoint that the main recipe continues from in `out`."""
    words = ("--output_dir", str(out), "--resume_from_checkpoint", str(checkpoint))
    return resume_point(resolve(["recipes/pmcvqa.yaml", *words, *options]))


def test_auto_in_an_empty_folder_starts_anew(tmp_path):
    assert resumed(tmp_path) is None


@pytest.fixture
def checkpoints(tmp_path):
    """An output folder with the complete checkpoints 2, 4 and 10; returns it and the manifest of its run."""
    description = {
        "settings": {"learning_rate": 1e-4, "max_steps": 20, "logging_steps": 10},
        **{"data": "d", "tokens": "t", "launcher": "ddp", "zero_stage": 0, "world_size": 2},
        **{"git_revision": "abc", "versions": {"torch": "2.13.0"}},
    }
    (tmp_path / "run_manifest.json").write_text(json.dumps(description))
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_text("weights")
        (folder / "optimizer.pt").write_text("states")
        mark_complete(folder, description)
    return tmp_path, description


def test_the_latest_complete_checkpoint_is_taken_and_what_is_half_is_removed(checkpoints):
    out, _ = checkpoints
    assert resumed(out).name == "checkpoint-10"
    (out / "checkpoint-10/adapter_model.safetensors").write_text("wei")  # cut
    assert resumed(out).name == "checkpoint-4"
    (out / "checkpoint-4/trainer_state.json").unlink()  # half deleted
    assert resumed(out).name == "checkpoint-2"
    assert sorted(remove_incomplete(out)) == ["checkpoint-10", "checkpoint-4"]
    assert [folder.name for folder in out.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_run_is_never_overwritten_from_one_of_its_own_checkpoints(checkpoints):
    out, _ = checkpoints
    with pytest.raises(UserError, match=r"holds checkpoint-10, which a run from checkpoint-4 would overwrite"):
        resumed(out, out / "checkpoint-4")
    assert resumed(out, out / "checkpoint-10").name == "checkpoint-10"
    for folder in out.glob("checkpoint-*"):
        (folder / "run_manifest.json").unlink()
    (out / "final_model").mkdir()
    with pytest.raises(UserError, match="holds an earlier run and no complete checkpoint"):
        resumed(out)


def test_a_checkpoint_without_optimizer_state_is_refused_but_for_its_weights(checkpoints):
    out, description = checkpoints
    (out / "checkpoint-10/optimizer.pt").unlink()
    mark_complete(out / "checkpoint-10", description)
    with pytest.raises(UserError, match=r"no optimizer state.*--resume_weights_only yes"):
        resumed(out, out / "checkpoint-10")
    assert resumed(out / "new", out / "checkpoint-10", "--resume_weights_only", "yes") == out / "checkpoint-10"


def test_folders_of_other_programs_are_not_removed(checkpoints):
    out, _ = checkpoints
    (out / "run_manifest.json").unlink()
    (out / "checkpoint-10/run_manifest.json").unlink()
    assert remove_incomplete(out) == []
    assert (out / "checkpoint-10").is_dir()


def test_a_named_checkpoint_that_is_not_complete_is_refused(checkpoints):
    out, _ = checkpoints
    (out / "checkpoint-10/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"is not complete.*pass auto"):
        resumed(out, out / "checkpoint-10")


def test_a_copy_of_a_checkpoint_under_another_name_is_left_alone_and_not_continued(checkpoints, tmp_path_factory):
    out, _ = checkpoints
    for copy in (out / "checkpoint-5-kept", tmp_path_factory.mktemp("backup") / "good"):
        shutil.copytree(out / "checkpoint-4", copy)
        with pytest.raises(UserError, match=r"name a folder checkpoint-N"):
            resumed(out, copy)
    (out / "checkpoint-5-kept/run_manifest.json").unlink()
    assert resumed(out).name == "checkpoint-10"
    assert remove_incomplete(out) == []
    assert (out / "checkpoint-5-kept").is_dir()


def test_a_half_written_checkpoint_is_refused_by_every_command(checkpoints, refused):
    out, _ = checkpoints
    (out / "checkpoint-10/run_manifest.json").unlink()
    line = refused("sft/infer.py", "--model_path", out / "checkpoint-10", "--question", "Why?")
    assert "is not complete: the run was stopped while writing it" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"world_size": 4}, r"process\(es\) 2, now 4"),
        ({"launcher": "deepspeed", "zero_stage": 2}, "launch ddp, now deepspeed; ZeRO stage 0, now 2"),
        ({"data": "other"}, "fingerprint of the training rows d, now other"),
        ({"tokens": "other"}, "fingerprint of tokenizer and chat template t, now other"),
        ({"settings": {"learning_rate": 2e-4, "max_steps": 20}}, "learning_rate 0.0001, now 0.0002"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_every_difference_and_the_way_out(checkpoints, change, words):
    out, description = checkpoints
    with pytest.raises(UserError, match=words) as refusal:
        compare(out / "checkpoint-10", {**description, **change})
    assert "--resume_weights_only yes --output_dir NEW" in str(refusal.value)


def test_harmless_differences_are_noted_and_a_longer_run_is_explained(checkpoints):
    out, description = checkpoints
    assert compare(out / "checkpoint-10", description) == []
    now = {
        **description,
        "settings": {"learning_rate": 1e-4, "max_steps": 40, "logging_steps": 1},
        **{"versions": {"torch": "2.14.0"}, "git_revision": "def"},
    }
    now["settings"] |= {"resume_weights_only": True, "a_key_of_the_new_version": 1}
    assert compare(out / "checkpoint-10", now) == [
        "max_steps 20, now 40: the learning rate follows the new length from here on",
        "torch 2.13.0, now 2.14.0",
        "code abc, now def",
    ]


def test_another_launcher_is_refused_by_command_and_weights_only_is_the_way_on(
    recipe_run, refused, succeeds, toy_options, tmp_path
):
    """From two processes under ZeRO-2 to one process without."""
    import torch
    from safetensors.torch import load_file

    before, _ = recipe_run("pmcvqa_zero2")
    alone = (*toy_options("pmcvqa_bf16_lora"), "--bf16", "no", "--dtype", "float32")
    line = refused("sft/run.py", *alone, "--output_dir", before, "--resume_from_checkpoint", "auto")
    assert "process(es) 2, now 1; launch deepspeed, now none; ZeRO stage 2, now 0" in line

    weights = ("--resume_from_checkpoint", before / "checkpoint-4", "--resume_weights_only", "yes")
    # With a learning rate of 0 the new run ends with the weights that it began with.
    still = ("--learning_rate", "0", "--max_steps", "2", "--output_dir", tmp_path / "out")
    done = succeeds("sft/run.py", *alone, *weights, *still)
    assert "the data start anew" in done.stdout
    first, last = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (before / "checkpoint-4", tmp_path / "out/final_model")
    )
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert [row["step"] for row in curve(tmp_path / "out") if "loss" in row] == [1, 2]


def test_an_adapter_of_another_shape_is_refused(recipe_run, refused, toy_options, tmp_path):
    before, _ = recipe_run("pmcvqa")
    weights = ("--resume_from_checkpoint", before / "checkpoint-4", "--resume_weights_only", "yes", "--lora_r", "8")
    line = refused("sft/run.py", *toy_options("pmcvqa"), *weights, "--output_dir", tmp_path / "out")
    assert "does not fit this recipe's model and lora_* keys: Error(s) in loading state_dict" in line
    assert "size mismatch for base_model" in line


def test_weights_of_another_model_are_refused(recipe_run, refused, toy_options, tmp_path):
    """PEFT would warn, and the new run would begin with the base model."""
    from safetensors.torch import load_file, save_file

    before, _ = recipe_run("pmcvqa")
    other = shutil.copytree(before / "checkpoint-4", tmp_path / "checkpoint-4")
    weights = load_file(other / "adapter_model.safetensors")
    renamed = {name.replace(".layers", ".language_model.layers"): weight for name, weight in weights.items()}
    save_file(renamed, other / "adapter_model.safetensors")
    resume = ("--resume_from_checkpoint", other, "--resume_weights_only", "yes", "--output_dir", tmp_path / "out")
    line = refused("sft/run.py", *toy_options("pmcvqa"), *resume)
    assert f"it lacks {len(weights)} of {len(weights)} weights, the first base_model.model.model.layers.0" in line
    assert not list((tmp_path / "out").iterdir())


def test_killed_after_the_last_step_the_run_is_finished_without_another_step(
    recipe_run, succeeds, toy_options, tmp_path
):
    """transformers would take a fifth step of four."""
    before, _ = recipe_run("pmcvqa")
    out = tmp_path / "out"
    shutil.copytree(before, out)
    shutil.rmtree(out / "final_model")
    succeeds("sft/run.py", *toy_options("pmcvqa"), "--output_dir", out, "--resume_from_checkpoint", "auto")
    assert curve(out) == curve(before)
    assert final_adapter(out) == final_adapter(before)
    assert (out / "eval_results.json").is_file()
