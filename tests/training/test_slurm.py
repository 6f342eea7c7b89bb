"""docs/slurm.sh and docs/slurm_evaluate.sh under a real Slurm of one node, which tests/slurm.py starts."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from sft.training.checkpoints import checkpoints_in, complete_manifest
from tests import slurm

ROOT = Path(__file__).parents[2]
# Two tasks on the CPU, one process each, instead of two machines with eight GPUs. The rest is as in the script.
HERE = ("--nodes=1", "--ntasks-per-node=2", "--gres=none", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Variables that make Slurm's commands talk to a Slurm of this test's own."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**os.environ, **environment, "PYTHONPATH": str(ROOT)}


def output(cluster, *words: object) -> str:
    words = [str(word) for word in words]
    return subprocess.run(words, cwd=ROOT, env=cluster, check=True, capture_output=True, text=True).stdout


def submit(cluster, log: Path, script: str, *words: object, options: tuple = ()) -> str:
    """The number of a job that runs a script with these words."""
    return output(cluster, "sbatch", "--parsable", f"--output={log}", *options, script, *words).strip()


def state(cluster, job: str) -> dict[str, str]:
    """What Slurm says of a job."""
    return dict(re.findall(r"(\w+)=(\S+)", output(cluster, "scontrol", "--oneliner", "show", "job", job)))


def wait_until(holds, log: Path) -> None:
    end = time.monotonic() + 900  # ends a hang, no more
    while not holds():
        assert time.monotonic() < end, log.read_text()[-4000:] if log.exists() else "no log"
        time.sleep(0.2)


def test_a_job_is_cancelled_submitted_again_warned_requeued_and_finished(cluster, toy_options, tmp_path):
    """Nobody does anything between the warning before the time limit and the finished model."""
    out, log, recipe = tmp_path / "out", tmp_path / "log", tmp_path / "recipe.yaml"
    _, *options = toy_options("pmcvqa_ddp")
    endless = yaml.safe_load((ROOT / "recipes/pmcvqa_ddp.yaml").read_text()) | {"max_steps": 100_000}
    recipe.write_text(yaml.safe_dump(endless))
    del options[options.index("--max_steps") : options.index("--max_steps") + 2]
    options += ["--eval_strategy", "no", "--eval_on_start", "no", "--load_best_model_at_end", "no"]
    options += ["--mcq_eval_samples", "0", "--logging_steps", "50", "--save_steps", "10", "--output_dir", out]
    options += ["--bf16", "no", "--dtype", "float32", "--load_in_8bit", "no"]
    words = ("docs/slurm.sh", recipe, *options)

    cancelled = submit(cluster, log, *words, options=HERE)
    wait_until((out / "checkpoint-10/run_manifest.json").exists, log)
    output(cluster, "scancel", cancelled)
    wait_until(lambda: state(cluster, cancelled)["JobState"] == "CANCELLED", log)
    wait_until(lambda: not output(cluster, "squeue", "--noheader"), log)
    latest = [folder for folder in checkpoints_in(out) if complete_manifest(folder)][-1]

    job = submit(cluster, log, *words, options=(*HERE, "--signal=B:USR1@200"))
    wait_until(lambda: f"continuing from {latest}" in log.read_text(), log)
    wait_until(lambda: len(checkpoints_in(out)) and checkpoints_in(out)[-1] != latest, log)
    # Two to three minutes are left now, so the warning comes when Slurm next looks at time limits, each half minute.
    hours, minutes, _ = state(cluster, job)["RunTime"].split(":")
    output(cluster, "scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 3}")
    stopped = "Stopped by a signal after step (\\d+); the checkpoint is saved"
    before = len(re.findall(stopped, log.read_text()))
    wait_until(lambda: len(re.findall(stopped, log.read_text())) > before, log)
    step = int(re.findall(stopped, log.read_text())[-1])
    assert state(cluster, job)["JobState"] in ("RUNNING", "COMPLETING", "PENDING", "REQUEUED")
    recipe.write_text(yaml.safe_dump(endless | {"max_steps": step + 5}))  # so that the end is near
    # The next start has time enough: on a slow machine three minutes are over before the model is loaded.
    longer = ("scontrol", "update", f"JobId={job}", "TimeLimit=600")

    def changed() -> bool:  # not while the job is completing
        return subprocess.run(longer, cwd=ROOT, env=cluster, capture_output=True, check=False).returncode == 0

    wait_until(changed, log)

    wait_until(lambda: state(cluster, job)["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"), log)
    assert state(cluster, job)["JobState"] == "COMPLETED", log.read_text()[-4000:]
    assert state(cluster, job)["Restarts"] == "1"
    assert f"continuing from {out / f'checkpoint-{step}'}" in log.read_text()
    assert (out / "final_model/adapter_model.safetensors").is_file()


def test_an_array_evaluates_in_parts_and_the_last_one_writes_the_results(
    cluster, succeeds, tiny_deepseek, few_dev, tmp_path
):
    log = tmp_path / "log-%a"
    words = ("--model_path", tiny_deepseek, "--dataset_path", few_dev, "--split", "test", "--name", "run")
    words += ("--num_samples", 40, "--batch_size", 4, "--dtype", "float32", "--output_dir")
    options = ("--array=1-2", "--gres=none", "--cpus-per-task=1")
    job = submit(cluster, log, "docs/slurm_evaluate.sh", *words, tmp_path / "parts", options=options)
    succeeds("sft/evaluate.py", *words, tmp_path / "whole")
    wait_until(lambda: not output(cluster, "squeue", "--noheader", f"--job={job}"), tmp_path / "log-1")
    written = {file.name for file in (tmp_path / "parts/run/answers").iterdir()}
    assert written == {"fingerprint.json", "answers-0-0.jsonl", "answers-1-0.jsonl"}
    for name in ("results.json", "predictions.parquet"):
        assert (tmp_path / "parts/run" / name).read_bytes() == (tmp_path / "whole/run" / name).read_bytes()
