"""How each step of tests/benchmarks/gpu.py is measured, in a process of its own and with a time limit."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_steps import BF16, FIVE_STEPS, ZERO, Step, base_of

from sft.common.command import UserError, first_line, read_json

HERE = Path(__file__).parent
# Rows of a run that is measured for speed: 53 steps of eight packs of 1,024 tokens.
ROWS, REHEARSED_ROWS = 6600, 60
# Seconds that a step must have before it is begun, and those that are kept for killing it and for the report.
SHORTEST, RESERVE = 30, 5
# What makes a run a rehearsal.
TOY = "--max_steps 3"
# Imported once for all steps of a rehearsal.
PRELOADED = (
    *("trl.scripts.sft", "trl.trainer.sft_trainer", "peft", "bitsandbytes", "deepspeed", "sft.training.trial"),
    *("transformers.models.llama.modeling_llama", "matplotlib.figure", "matplotlib.backends.backend_agg"),
)
TOY_RECIPE = f"{TOY} --max_length 256 --per_device_train_batch_size 1 --global_batch_size 1"


class Machine:
    """The device, the budget, and how steps are started on it."""

    def __init__(self, args: argparse.Namespace, began: float) -> None:
        self.args, self.out, self.work = args, args.output_dir, args.output_dir / "work"
        self.deadline = began + 60 * args.minutes - RESERVE
        self.rehearses = args.rehearse
        self.start: Callable = start_of(args.rehearse)
        self.bench: Any = None
        self.hardware: Any = None
        self.device: dict[str, Any] = {}
        self.peak: dict[str, Any] = {}
        self.versions: dict[str, str | None] = {}

    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self.deadline - time.monotonic()

    def limit(self) -> float:
        """Seconds that one step may take: a third of the budget at most, so that no step is all that is measured."""
        return min(self.left(), 20 * self.args.minutes)

    def run_script(self, log: Path, *words: object) -> dict:
        """Run one of the scripts beside this one, which leaves a JSON file; {"failed": None} if there was no time."""
        from running import why_failed

        result = self.out / "step.json"
        result.unlink(missing_ok=True)
        words = [str(result) if word is RESULT else str(word) for word in words]
        code = self.start([sys.executable, *words], dict(os.environ), log, self.limit())
        if result.exists():  # also what a step wrote before its time was up
            return read_json(result)
        return {"failed": None if code is None else why_failed(log, code)}


RESULT = object()  # stands for the file that a script leaves


def start_of(rehearses: bool) -> Callable:
    """How commands are started; a rehearsal imports the libraries here, once."""
    from running import run_forked, run_limited

    if not rehearses:
        return run_limited
    import gc
    import importlib

    import torch

    torch.set_num_threads(1)  # a fork has none of its parent's threads
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what a fork does not look through stays shared
    return run_forked


def machine_is(machine: Machine, step: Step, known: dict) -> None:
    """Take over what the first two steps found, now or in an earlier part of this measurement."""
    from bench import Bench

    from sft.training.hardware import Hardware

    if step.kind == "stack":
        machine.device, machine.peak, machine.versions = known["device"], known["peak"], known["versions"]
        of = known["device"]
        machine.hardware = Hardware()
        if of["memory"]:
            machine.hardware = Hardware(of["name"], of["count"], of["memory"], tuple(of["capability"]))
    else:
        machine.bench = Bench(machine.work, base_of(machine.device), Path(sys.executable), machine.start)
        machine.bench.shares_cache = True


# --- Steps ---


def perform(step: Step, machine: Machine, log: Path) -> dict:
    """What a step measured; {"failed": why}, with None where the time was up, or {"skipped": why}."""
    try:
        return PERFORMED[step.kind](step, machine, log)
    except UserError as error:
        return {"failed": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {first_line(error)}"}


def stack(step: Step, machine: Machine, log: Path) -> dict:
    return machine.run_script(log, HERE / "stack.py", RESULT, *([256] if machine.rehearses else []))


def inputs(step: Step, machine: Machine, log: Path) -> dict:
    """The model and the rows."""
    from running import why_failed

    model = machine.args.model or ("tiny" if machine.rehearses else "8b")
    rows = REHEARSED_ROWS if machine.rehearses else ROWS
    words = [sys.executable, str(HERE / "inputs.py"), str(model), BF16, str(machine.work), str(rows)]
    begun = time.monotonic()
    # All else waits for it, so it may take all of the time.
    code = machine.start(words, dict(os.environ), log, machine.left())
    if code != 0:
        return {"failed": None if code is None else why_failed(log, code)}
    return {"model": str(model), "rows": rows, "seconds": time.monotonic() - begun}


def contender_of(step: Step, device: dict) -> str:
    """What a step trains, on this device."""
    if step.kind != "variant":
        return step.what
    is_liger = step.what == "LIGER=1"
    return f"LIGER=1 {base_of(device)}" if is_liger else f"{base_of(device)} {step.what}".strip()


def train(step: Step, machine: Machine, log: Path) -> dict:
    """One contender: its preflight, its run, its numbers."""
    from bench import speed_and_memory
    from gpu_sections import keys_of

    contender = contender_of(step, machine.device)
    if step.part == 3 and step.kind == "train" and contender == base_of(machine.device):
        return {"skipped": "it is the first line"}
    is_recipe = "recipes/" in contender
    own = keys_of(contender).keys() if step.part == 3 and machine.rehearses else ()
    if own and own <= keys_of(TOY_RECIPE).keys():
        return {"skipped": "a rehearsal sets these keys itself"}
    contender += f" {FIVE_STEPS}" if step.part == 2 else ""
    contender += (f" {TOY_RECIPE}" if is_recipe else f" {TOY}") if machine.rehearses else ""
    found: dict[str, Any] = {}
    for word, package in (("llamafactory", "llamafactory"), ("LIGER=1", "liger_kernel")):
        if word in step.what and machine.versions[package] is None:
            return {"skipped": f"{package} is not installed"}
    if is_recipe and (step.part == 2 or not machine.rehearses):
        found["estimated"] = machine.bench.plan(contender, machine.hardware)
        held = machine.device["memory"]
        if held and found["estimated"] and found["estimated"] > 1.1 * held:
            return {**found, "skipped": f"estimated {found['estimated']:.1f} GiB, the card has {held:.1f}"}
    run = machine.bench.measure(contender, machine.limit(), log)
    if "failed" in run:
        return {**found, **run}
    numbers = speed_and_memory(run, machine.bench.flops, machine.peak["product"])
    del numbers["estimated"]  # the preflight said it before
    sheet = machine.peak["data sheet"]
    numbers["MFU of the data sheet"] = numbers["MFU"] * machine.peak["product"] / sheet if sheet else None
    numbers["hours"] = 3 * 176_948 / numbers["examples/s"] / 3600
    kept = ("reserved_gib", "loading_gib", "losses", "grad_norms", "attention", "checkpointing", "seconds")
    return {**found, **numbers, **{key: run[key] for key in kept}}


def evaluate(step: Step, machine: Machine, log: Path) -> dict:
    """Questions a second by batch size."""
    sizes, rows, tokens = ([2, 4], 6, 4) if machine.rehearses else ([1, 8, 32, 128], 512, 64)
    old = machine.device["memory"] and tuple(machine.device["capability"]) < (8, 0)
    return machine.run_script(
        log,
        *(HERE / "evaluate.py", "--model_path", machine.work / "model", "--prepared", machine.work / "data"),
        *("--split", "train", "--num_samples", rows, "--rounds", 1, "--generate", tokens),
        *("--dtype", "float16" if old else "auto", "--batch_size", *sizes, "--output_file", RESULT),
    )


def attention(step: Step, machine: Machine, log: Path) -> dict:
    return machine.run_script(log, HERE / "promises.py", "attention", RESULT, machine.work)


def continued(step: Step, machine: Machine, log: Path) -> dict:
    from promises import killed_and_continued

    contender = "recipes/pmcvqa.yaml" + (f" {TOY_RECIPE}" if machine.rehearses else "")
    return killed_and_continued(machine.bench, contender, machine.limit, log)


def zero(step: Step, machine: Machine, log: Path) -> dict:
    from promises import saved_under_zero

    toy = f" {TOY_RECIPE}" if machine.rehearses else ""
    contenders = {f"ZeRO-{stage}": ZERO.format(stage) + toy for stage in (2, 3)}
    return saved_under_zero(machine.bench, contenders, machine.limit, log)


def quickstart(step: Step, machine: Machine, log: Path) -> dict:
    from promises import quickstart as of_promises

    bf16 = tuple(machine.device["capability"]) >= (8, 0)
    return of_promises(machine.bench, bool(machine.device["memory"]), bf16, machine.limit, log)


PERFORMED = {
    "stack": stack,
    "inputs": inputs,
    "train": train,
    "variant": train,
    "evaluate": evaluate,
    "attention": attention,
    "continue": continued,
    "zero": zero,
    "quickstart": quickstart,
}
