"""The whole way on embedded data and an embedded model, on a CPU: prepare, train, evaluate twice, ask.

Every step is a command that a user could type; it is printed before it runs. A step whose product is newer than its
inputs is not repeated. Ends with a table. Usually called by `make quickstart`.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.command import UserError, run, write_json

OUT = Path("outputs/quickstart")
MODEL = "outputs/models/SmolLM2-135M-Instruct"
RECIPE = "recipes/quickstart.yaml"
TEMPLATE = "recipes/templates/smollm2.jinja"
FINAL = f"{OUT}/PMC-VQA-SFT-Output/final_model"


@dataclass(frozen=True)
class Step:
    """One command, what it reads beside the products of the steps before it, and the file that proves it done."""

    name: str
    command: list[str]
    product: Path | None
    inputs: tuple[str, ...] = ()


PREPARED = f"{OUT}/PMC-VQA-Processed"
EVALUATE = ["sft/evaluate.py", "--dataset_path", PREPARED, "--split", "test", "--output_dir", f"{OUT}/eval"]
STEPS = [
    Step("model", ["sft/embedded_model.py", "--output_dir", MODEL], Path(MODEL, "model.safetensors")),
    Step(
        "sample",
        ["data_prep/sample.py", "--output_dir", f"{OUT}/PMC-VQA", "--overwrite"],
        OUT / "PMC-VQA/test.csv",
        ("data_prep/sample_facts.yaml", "data_prep/sample.py"),
    ),
    Step(
        "prepare",
        ["data_prep/prepare.py", "--dataset_path", f"{OUT}/PMC-VQA", "--output_dir", PREPARED]
        + ["--answer_format", "text", "--overwrite"],
        Path(PREPARED, "report.json"),
        ("data_prep/prepare.py", "data_prep/prompts.py", "data_prep/questions.py"),
    ),
    Step(
        "train",
        ["accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml", "sft/run.py", RECIPE],
        Path(FINAL, "adapter_model.safetensors"),
        (RECIPE, TEMPLATE, "accelerate_configs/cpu.yaml"),
    ),
    Step(
        "evaluate base",
        [*EVALUATE, "--model_path", MODEL, "--chat_template", TEMPLATE, "--name", "base"],
        OUT / "eval/base.json",
        ("sft/evaluate.py", "sft/scoring.py"),
    ),
    Step(
        "evaluate tuned",
        [*EVALUATE, "--model_path", FINAL, "--name", "tuned", "--baseline", f"{OUT}/eval/base.json"],
        OUT / "eval/tuned.json",
        ("sft/evaluate.py", "sft/scoring.py"),
    ),
    Step(
        "ask",
        ["sft/infer.py", "--model_path", FINAL, "--temperature", "0"]
        + ["--question", "A biopsy is checked for iron. Which stain shows it?"]
        + ["--choices", "Congo red", "Prussian blue", "Oil Red O", "Von Kossa"],
        None,
    ),
]


def is_current(step: Step, newest_input: float) -> bool:
    """Whether the product exists and is newer than the step's own inputs and the products before it."""
    if step.product is None or not step.product.exists():
        return False
    own = [Path(path).stat().st_mtime for path in step.inputs]
    return step.product.stat().st_mtime >= max([newest_input, *own])


def shell_line(command: list[str]) -> str:
    """The command as a user would type it."""
    import shlex

    return shlex.join(command if command[0] == "accelerate" else ["python", *command])


def run_step(step: Step) -> None:
    """Run the command in this environment.

    Raises:
        UserError: it failed; it has said why.
    """
    words = [str(word) for word in step.command]
    program = (
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words[1:]]
        if words[0] == "accelerate"
        else [sys.executable, *words]
    )
    # The embedded model and data are here; nothing is to be looked for on the Hub.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if subprocess.run(program, env=environment, check=False).returncode:
        raise UserError(f"step {step.name} failed, see above; the command was: {shell_line(words)}")


def table(seconds: dict[str, float], repeated: set[str]) -> str:
    """Accuracies, their comparison, and the seconds of each step."""
    base, tuned = (json.loads((OUT / f"eval/{name}.json").read_text()) for name in ("base", "tuned"))
    lines = ["", f"Embedded test split, n = {tuned['n']}, option likelihood", ""]
    lines.append(f"  {'model':<8}{'accuracy':>10}   95 % interval")
    for results in (base, tuned):
        low, high = results["ci95"]
        lines.append(f"  {results['name']:<8}{results['accuracy']:>10.3f}   {low:.3f} to {high:.3f}")
    floor = tuned["floors"]["majority_letter"]
    lines.append(f"  {'floor':<8}{floor:>10.3f}   always the commonest letter")
    lines += ["", f"  tuned - base {tuned['paired']['difference']:+.3f}, McNemar p = {tuned['paired']['mcnemar_p']:.1e}", ""]
    lines.append(f"  {'step':<16}{'seconds':>8}")
    lines += [
        f"  {step.name:<16}{seconds[step.name]:>8.0f}{'' if step.name in repeated else '   (reused)'}" for step in STEPS
    ]
    lines.append(f"  {'this run':<16}{sum(seconds[name] for name in repeated):>8.0f}")
    return "\n".join(lines)


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        return
    if not Path(RECIPE).is_file():
        raise UserError("run this from the top folder of the repository: make quickstart")
    OUT.mkdir(parents=True, exist_ok=True)
    clock = OUT / "seconds.json"
    seconds = json.loads(clock.read_text()) if clock.exists() else {}
    repeated = set()
    newest = 0.0
    for number, step in enumerate(STEPS, start=1):
        head = f"\n[{number}/{len(STEPS)}] {step.name}"
        if is_current(step, newest) and step.name in seconds:
            print(f"{head}: reusing {step.product}", flush=True)
        else:
            print(f"{head}: {shell_line(step.command)}", flush=True)
            if step.name == "train":
                # A changed recipe starts over; an earlier run of it would be refused.
                import shutil

                shutil.rmtree(OUT / "PMC-VQA-SFT-Output", ignore_errors=True)
            start = time.perf_counter()
            run_step(step)
            seconds[step.name] = time.perf_counter() - start
            repeated.add(step.name)
            write_json(clock, seconds)
        if step.product:
            newest = max(newest, step.product.stat().st_mtime)
    print(table(seconds, repeated))


if __name__ == "__main__":
    run(main)
