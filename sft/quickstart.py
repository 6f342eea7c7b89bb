"""All steps on embedded data and an embedded model, on a CPU: prepare, train, evaluate twice, ask.

Every step is a command that a user could type; it is printed before it runs. A step whose product is newer than its
inputs is not repeated. Ends with a table. Started by `make quickstart`, which unpacks the embedded model first.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from sft.common.command import UserError, read_json, run, write_json
from sft.common.models import cpu_has_bf16
from sft.training.hardware import cpu_name, cpu_threads

OUT = Path("outputs/quickstart")
MODEL = "outputs/models/SmolLM2-135M-Instruct"
PREPARED = f"{OUT}/PMC-VQA-Processed"
TRAINED = f"{OUT}/PMC-VQA-SFT-Output"
RECIPE = "recipes/quickstart.yaml"
TEMPLATE = "recipes/templates/smollm2.jinja"


class Step(NamedTuple):
    """One command, the file that proves it done, and what it reads beside the products of the steps before it."""

    name: str
    command: str
    product: Path | None
    inputs: tuple[str, ...] = ()  # paths, or patterns of paths


EVALUATE = f"python sft/evaluate.py --dataset_path {PREPARED} --split test --no-choices_only --output_dir {OUT}/eval"
STEPS = [
    Step(
        "sample",
        f"python data_prep/sample.py --output_dir {OUT}/PMC-VQA --overwrite",
        OUT / "PMC-VQA/test.csv",
        ("data_prep/sample*",),
    ),
    Step(
        "prepare",
        f"python data_prep/prepare.py --dataset_path {OUT}/PMC-VQA --output_dir {PREPARED} "
        "--answer_format text --dev_size 72 --overwrite",
        Path(PREPARED, "report.json"),
        ("data_prep/*.py", "sft/common/*.py"),
    ),
    Step(
        "train",
        f"accelerate launch --config_file accelerate_configs/cpu.yaml sft/run.py {RECIPE}",
        Path(TRAINED, "final_model/adapter_model.safetensors"),
        (RECIPE, TEMPLATE, "accelerate_configs/cpu.yaml", "sft/run.py", "sft/training/*.py"),
    ),
    Step(
        "evaluate base",
        f"{EVALUATE} --overwrite --model_path {MODEL} --chat_template {TEMPLATE} --name base",
        OUT / "eval/base/results.json",
        ("sft/evaluate.py", "sft/evaluation/*.py", "sft/inference/*.py"),
    ),
    Step(
        "evaluate tuned",
        f"{EVALUATE} --overwrite --model_path {TRAINED}/final_model --name tuned --baseline {OUT}/eval/base",
        OUT / "eval/tuned/results.json",
    ),
    Step("ask", f"python sft/infer.py --model_path {TRAINED}/final_model", None),
]


def is_current(step: Step, newest_input: float) -> bool:
    """Whether the product exists and is newer than the step's own inputs and the products before it."""
    if step.product is None or not step.product.exists():
        return False
    own = [path.stat().st_mtime for pattern in step.inputs for path in Path().glob(pattern)]
    return step.product.stat().st_mtime >= max([newest_input, *own])


def run_step(step: Step) -> float:
    """Run the command with this environment's Python; returns its seconds. Raises `UserError` if it fails."""
    program, *words = shlex.split(step.command)
    start = {"python": [], "accelerate": ["-m", "accelerate.commands.accelerate_cli"]}[program]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",  # the embedded model and data are here
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(cpu_threads()),  # as many as accelerate would count, which warns that it did
    }
    started = time.perf_counter()
    if subprocess.run([sys.executable, *start, *words], env=environment, check=False).returncode:
        raise UserError(f"step {step.name} failed, see above; the command was: {step.command}")
    return time.perf_counter() - started


def print_table(seconds: dict[str, float], repeated: set[str]) -> None:
    """Print accuracies, their comparison, and the seconds of each step."""
    base, tuned = (read_json(OUT / f"eval/{name}/results.json") for name in ("base", "tuned"))
    print(f"\nEmbedded test split, n = {tuned['n']}, option likelihood\n")
    print(f"  {'model':<16}accuracy   95 % interval")
    for results in (base, tuned):
        score = results["scores"]["option_likelihood"]
        print("  {:<16}{:>8.3f}   {:.3f} to {:.3f}".format(results["name"], score["accuracy"], *score["ci95"]))
    floor, accuracy = max(tuned["floors"].items(), key=itemgetter(1))
    paired = tuned["paired"]["option_likelihood"]
    print(f"""\
  {"highest floor":<16}{accuracy:>8.3f}   {floor.replace("_", " ")}
  {"tuned - base":<16}{paired["difference"]:>+8.3f}   McNemar p = {paired["mcnemar_p"]:.1e}
  to look at: {OUT}/eval/tuned/report.html

  The test questions ask, in words never trained on, for the very facts that were trained: the score shows that
  training and evaluation work together. It measures neither medical knowledge nor the main recipe.

  {cpu_name()}, {cpu_threads()} threads, {"bfloat16" if cpu_has_bf16() else "float32 (no bfloat16 instructions)"}

  {"step":<16}{"seconds":>8}""")
    for step in STEPS:
        note = "" if step.name in repeated else "   (reused; measured when it ran)"
        print(f"  {step.name:<16}{seconds[step.name]:>8.0f}{note}")
    print(f"  {'this run':<16}{sum(seconds[name] for name in repeated):>8.0f}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not Path(RECIPE).is_file() or not Path(MODEL).is_dir():
        raise UserError("run `make quickstart` from the top folder of the repository: it sets up what is missing")
    OUT.mkdir(parents=True, exist_ok=True)
    clock = OUT / "seconds.json"
    seconds = read_json(clock) if clock.exists() else {}
    repeated = set()
    newest = Path(MODEL, "model.safetensors").stat().st_mtime
    for number, step in enumerate(STEPS, start=1):
        reused = is_current(step, newest) and step.name in seconds
        print(
            f"\n[{number}/{len(STEPS)}] {step.name}: {f'reusing {step.product}' if reused else step.command}",
            flush=True,
        )
        if not reused:
            if step.name == "train":
                # The recipe or the data changed; sft/run.py would refuse to overwrite the earlier run.
                shutil.rmtree(TRAINED, ignore_errors=True)
            seconds[step.name] = run_step(step)
            repeated.add(step.name)
            write_json(clock, seconds)
        if step.product:
            newest = max(newest, step.product.stat().st_mtime)
    print_table(seconds, repeated)


if __name__ == "__main__":
    run(main)
