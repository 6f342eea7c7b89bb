"""All steps on embedded data and an embedded model, on a CPU: prepare, train, evaluate twice, ask.

Every step is a command that a user could type; it is printed before it runs. A step whose product is newer than its
inputs is not repeated. Ends with a table. Started by `make quickstart`, which unpacks the embedded model first, and
with --figures by `make quickstart-vision`, which gives that model a vision tower first.
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
from sft.evaluation.tables import aligned, figures_table
from sft.training.hardware import cpu_name, cpu_threads

EVALUATE = "python sft/evaluate.py --split test --no-choices_only --overwrite"
EVALUATION = ("sft/evaluate.py", "sft/evaluation/*.py", "sft/inference/*.py")


class Step(NamedTuple):
    """One command, the file that proves it done, and what it reads beside the products of the steps before it."""

    name: str
    command: str
    product: Path | None
    inputs: tuple[str, ...] = ()  # paths, or patterns of paths


class Quickstart(NamedTuple):
    """The steps of one run, where everything goes, and what its scores mean."""

    out: Path
    model: str
    recipe: str
    trained: str
    steps: list[Step]
    meaning: str


def on_text() -> Quickstart:
    """Questions on invented facts, answered from what was learnt of them."""
    out, model = Path("outputs/quickstart"), "outputs/models/SmolLM2-135M-Instruct"
    prepared, trained = f"{out}/PMC-VQA-Processed", f"{out}/PMC-VQA-SFT-Output"
    recipe, template = "recipes/quickstart.yaml", "recipes/templates/smollm2.jinja"
    evaluate = f"{EVALUATE} --dataset_path {prepared} --output_dir {out}/eval"
    steps = [
        Step(
            "sample",
            f"python data_prep/sample.py --output_dir {out}/PMC-VQA --overwrite",
            out / "PMC-VQA/test.csv",
            ("data_prep/sample*",),
        ),
        Step(
            "prepare",
            f"python data_prep/prepare.py --dataset_path {out}/PMC-VQA --output_dir {prepared} "
            "--answer_format text --dev_size 72 --overwrite",
            Path(prepared, "report.json"),
            ("data_prep/*.py", "sft/common/*.py"),
        ),
        train_step(recipe, trained, template),
        Step(
            "evaluate base",
            f"{evaluate} --model_path {model} --chat_template {template} --name base",
            out / "eval/base/results.json",
            EVALUATION,
        ),
        Step(
            "evaluate tuned",
            f"{evaluate} --model_path {trained}/final_model --name tuned --baseline {out}/eval/base",
            out / "eval/tuned/results.json",
        ),
        Step("ask", f"python sft/infer.py --model_path {trained}/final_model", None),
    ]
    meaning = """\
  The test questions ask, in words never trained on, for the very facts that were trained: the score shows that
  training and evaluation work together. It measures neither medical knowledge nor the main recipe."""
    return Quickstart(out, model, recipe, trained, steps, meaning)


def on_figures() -> Quickstart:
    """Questions about drawn figures, which the text of a question does not answer."""
    out, model = Path("outputs/quickstart-vision"), "outputs/models/SmolLM2-135M-Vision"
    prepared, trained = f"{out}/PMC-VQA-Figures", f"{out}/PMC-VQA-VL-Output"
    recipe = "recipes/quickstart_vision.yaml"
    evaluate = f"{EVALUATE} --dataset_path {prepared} --output_dir {out}/eval"
    steps = [
        Step(
            "sample",
            f"python data_prep/sample.py --figures --output_dir {out}/PMC-VQA --overwrite",
            out / "PMC-VQA/test.csv",
            ("data_prep/sample*", "sft/common/drawn_figures.py"),
        ),
        Step(
            "prepare",
            f"python data_prep/prepare.py --dataset_path {out}/PMC-VQA --figures {out}/PMC-VQA/images.zip "
            f"--output_dir {prepared} --answer_format text --dev_size 48 --overwrite",
            Path(prepared, "report.json"),
            ("data_prep/*.py", "sft/common/*.py"),
        ),
        train_step(recipe, trained),
        Step(
            "evaluate base",
            f"{evaluate} --model_path {model} --name base",
            out / "eval/base/results.json",
            EVALUATION,
        ),
        Step(
            "evaluate tuned",
            f"{evaluate} --model_path {trained}/final_model --figures real shuffled blank none --name tuned "
            f"--baseline {out}/eval/base",
            out / "eval/tuned/results.json",
        ),
    ]
    meaning = """\
  The figures were drawn by a program, and no question says what its figure shows: the scores show that figures reach
  training and evaluation. They measure neither medical knowledge nor recipes/pmcvqa_vl.yaml."""
    return Quickstart(out, model, recipe, trained, steps, meaning)


def train_step(recipe: str, trained: str, *inputs: str) -> Step:
    return Step(
        "train",
        f"accelerate launch --config_file accelerate_configs/cpu.yaml sft/run.py {recipe}",
        Path(trained, "final_model/adapter_model.safetensors"),
        (recipe, *inputs, "accelerate_configs/cpu.yaml", "sft/run.py", "sft/training/*.py"),
    )


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


def print_table(quickstart: Quickstart, seconds: dict[str, float], repeated: set[str]) -> None:
    """Print accuracies, their comparison, and the seconds of each step."""
    folder = quickstart.out / "eval"
    base, tuned = (read_json(folder / name / "results.json") for name in ("base", "tuned"))
    print(f"\nEmbedded test split, n = {tuned['n']}, option likelihood\n")
    print(f"  {'model':<16}accuracy   95 % interval")
    for results in (base, tuned):
        score = results["scores"]["option_likelihood"]
        print("  {:<16}{:>8.3f}   {:.3f} to {:.3f}".format(results["name"], score["accuracy"], *score["ci95"]))
    floor, accuracy = max(tuned["floors"].items(), key=itemgetter(1))
    paired = tuned["paired"]["option_likelihood"]
    figures = figures_table(tuned)
    conditions = f"\nThe tuned model with its figures and without\n\n{aligned(figures)}\n" if figures else ""
    print(f"""\
  {"highest floor":<16}{accuracy:>8.3f}   {floor.replace("_", " ")}
  {"tuned - base":<16}{paired["difference"]:>+8.3f}   McNemar p = {paired["mcnemar_p"]:.1e}
  to look at: {folder}/tuned/report.html
{conditions}
{quickstart.meaning}

  {cpu_name()}, {cpu_threads()} threads, {"bfloat16" if cpu_has_bf16() else "float32 (no bfloat16 instructions)"}

  {"step":<16}{"seconds":>8}""")
    for step in quickstart.steps:
        note = "" if step.name in repeated else "   (reused; measured when it ran)"
        print(f"  {step.name:<16}{seconds[step.name]:>8.0f}{note}")
    print(f"  {'this run':<16}{sum(seconds[name] for name in repeated):>8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", action="store_true", help="questions about drawn figures, and a model that sees")
    quickstart = on_figures() if parser.parse_args().figures else on_text()
    if not Path(quickstart.recipe).is_file() or not Path(quickstart.model).is_dir():
        raise UserError(
            f"run `make {quickstart.out.name}` from the top folder of the repository: it sets up what is missing"
        )
    quickstart.out.mkdir(parents=True, exist_ok=True)
    clock = quickstart.out / "seconds.json"
    seconds = read_json(clock) if clock.exists() else {}
    repeated = set()
    newest = Path(quickstart.model, "model.safetensors").stat().st_mtime
    for number, step in enumerate(quickstart.steps, start=1):
        reused = is_current(step, newest) and step.name in seconds
        print(
            f"\n[{number}/{len(quickstart.steps)}] {step.name}: "
            f"{f'reusing {step.product}' if reused else step.command}",
            flush=True,
        )
        if not reused:
            if step.name == "train":
                # The recipe or the data changed; sft/run.py would refuse to overwrite the earlier run.
                shutil.rmtree(quickstart.trained, ignore_errors=True)
            seconds[step.name] = run_step(step)
            repeated.add(step.name)
            write_json(clock, seconds)
        if step.product:
            newest = max(newest, step.product.stat().st_mtime)
    print_table(quickstart, seconds, repeated)


if __name__ == "__main__":
    run(main)
