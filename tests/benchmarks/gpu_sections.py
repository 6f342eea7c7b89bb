"""The sections of tests/benchmarks/gpu.py's report: what its steps found, as notes, tables and bars."""

import math
import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from gpu_steps import BF16, EIGHT, IN_BF16, NOT_RUN, PARTS, SMALL, STEPS, Step, base_of

# Relative difference of held-out losses that counts as none, where a second seed was not reached.
NOISE = 0.01


@dataclass
class Section:
    """A part: what it found in words, tables of (title, head, rows), and bars of (title, unit, rows)."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    bars: list[tuple[str, list[dict]]] = field(default_factory=list)


class Results:
    """What was measured, by step."""

    def __init__(self, state: dict) -> None:
        self.state = state
        device = self.of(Step(1, "stack")).get("device") or {}
        self.on_gpu = bool(device.get("memory"))
        self.base = base_of(device) if device else BF16

    def of(self, step: Step) -> dict:
        """A step's result, or {"missing": why}."""
        entry = self.state["steps"].get(step.name, {})
        return entry.get("result") or {"missing": f"not reached {entry.get('stopped', '')}".strip()}

    def named(self, step: Step) -> str:
        """The contender of a step, in a few words."""
        if step.kind != "variant":
            return short(step.what)
        return short(f"LIGER=1 {self.base}" if step.what == "LIGER=1" else f"{self.base} {step.what}")

    def variant(self, options: str = "") -> dict:
        return self.of(Step(3, "variant", options))

    def steps(self, part: int, kind: str | None = None) -> list[tuple[Step, dict]]:
        chosen = (step for step in STEPS if step.part == part and kind in (None, step.kind))
        return [(step, self.of(step)) for step in chosen]


def why_not(result: dict) -> str | None:
    """Why there are no numbers, or None."""
    if "missing" in result:
        return result["missing"]
    if "failed" in result:
        return f"failed: {result['failed']}"
    return f"not run: {result['skipped']}" if "skipped" in result else None


def keys_of(contender: str) -> dict[str, str]:
    """{key: value} of the options behind a recipe."""
    words = shlex.split(contender.rpartition(".yaml")[2])
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    ends = [*starts[1:], len(words)]
    return {words[a][2:]: " ".join(words[a + 1 : b]) for a, b in zip(starts, ends, strict=False)}


def short(contender: str) -> str:
    """A contender in the words of its recipe: ``pmcvqa: max_length 4096, global_batch_size 2``."""
    if ".yaml" not in contender:
        return contender
    name = re.search(r"recipes/(\w+)\.yaml", contender)[1] + (", Liger kernels" if "LIGER=1" in contender else "")
    options = contender.replace(IN_BF16, "")
    name += " in bf16" if options != contender else ""
    options = ", ".join(f"{key} {value}" for key, value in keys_of(options).items())
    return f"{name}: {options}" if options else name


def without_empty(head: list[str], rows: list[list[str]]) -> tuple[str, list[str], list[list[str]]]:
    """A table without a title, and without the columns that are empty in every row."""
    kept = [place for place in range(len(head)) if place == 0 or any(row[place] for row in rows)]
    return "", [head[place] for place in kept], [[row[place] for place in kept] for row in rows]


def number(value: Any, form: str = ".2f") -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else format(value, form)


def bar(name: str, value: float, text: str, mark: float | None = None) -> dict:
    return {"name": name, "value": value, "text": text, "mark": mark}


def scaled(bars: list[dict]) -> list[dict]:
    """Bars with their width, and that of a mark, in percent of the longest."""
    longest = max([1e-9, *(max(one["value"], one["mark"] or 0) for one in bars)])
    return [
        {**one, "width": 100 * one["value"] / longest, "at": one["mark"] and 100 * one["mark"] / longest}
        for one in bars
    ]


# --- The parts ---


def stack_section(results: Results) -> Section:
    section = Section(PARTS[1])
    result = results.of(Step(1, "stack"))
    if why := why_not(result):
        section.notes.append(why)
        return section
    rows = [
        [name, number(of.get("error"), ".2%"), number(of.get("tflops"), ",.3g"), of.get("failed", "")]
        for name, of in result["products"].items()
    ]
    title = "A layer of random weights on random input, against float32"
    section.tables.append((title, *without_empty(["type", "relative error", "TFLOPS", "failed"], rows)[1:]))
    sheet, product = result["peak"]["data sheet"], result["peak"]["product"]
    known = f"{sheet / 1e12:g} TFLOPS" if sheet else "not known for this device"
    section.notes.append(
        f"Peak in 16 bits: {known} by the data sheet, {product / 1e12:.4g} in a product measured here."
    )
    missing = [name for name, number in result["versions"].items() if number is None]
    section.notes.append(f"Not here: {', '.join(missing) or 'nothing that was looked for'}.")
    return section


def runs_section(results: Results) -> Section:
    section = Section(PARTS[2])
    base = results.of(Step(2, "train", BF16)).get("first loss")
    rows, bars = [], []
    for step, result in results.steps(2):
        estimated = result.get("estimated")
        cells = [number(estimated)]
        if why := why_not(result):
            section.notes.append(f"{short(step.what)}: {why}" + (f" (estimated {cells[0]} GiB)" if cells[0] else ""))
            continue
        ratio = result["GiB"] / estimated if estimated and results.on_gpu else None
        apart = abs(result["first loss"] - base) if base else None
        cells += [number(result[key]) for key in ("GiB", "reserved_gib", "loading_gib")]
        cells += [number(ratio), number(result["first loss"], ".4f"), number(apart, ".4f")]
        rows.append([short(step.what), *cells])
        bars.append(bar(short(step.what), result["GiB"], f"{result['GiB']:.1f} GiB", estimated))
    section.notes += [f"{name}: not run: {why}" for name, why in NOT_RUN.items()]
    head = ["recipe, five steps", "estimated GiB", "allocated", "reserved", "while loading", "allocated / estimated"]
    section.tables.append(without_empty([*head, "first loss", "difference from bf16's"], rows))
    section.bars.append(("Peak memory; the line is the estimate", scaled(bars)))
    return section


def add_speeds(section: Section, results: Results, pairs: list[tuple[Step, dict]]) -> None:
    """A table of contenders, bars, and why others have no numbers."""
    rows, bars = [], []
    for step, result in pairs:
        name = results.named(step)
        if why := why_not(result):
            section.notes.append(f"{name}: {why}")
            continue
        cells = [number(result["examples/s"]), number(result["tokens/s"], ",.0f")]
        cells += [number(result["MFU of the data sheet"], ".0%"), number(result["MFU"], ".0%")]
        cells += [number(result["HFU"], ".0%"), number(result["hours"], ".2f"), number(result["GiB"], ".1f")]
        attention = result["attention"] or ""
        rows.append([name, *cells, number(result["held out"], ".4f"), str(result["steps"]), attention])
        bars.append(bar(name, result["examples/s"], f"{result['examples/s']:.2f} examples/s"))
    section.tables.append(without_empty(SPEED_HEAD, rows))
    section.bars.append(("Training speed", scaled(bars)))


SPEED_HEAD = ["", "examples/s", "tokens/s", "MFU, data sheet", "MFU, product", "HFU, product", "hours for 3 epochs"]
SPEED_HEAD += ["GiB", "held-out loss", "steps", "attention"]


def speed_section(results: Results) -> Section:
    section = Section(PARTS[3])
    section.notes += fastest(results)
    add_speeds(section, results, results.steps(3))
    section.notes.append(
        "MFU and HFU as in docs/benchmarks.md, the first two steps left out; hours are for three epochs of 176,948 "
        "questions, without evaluations. With torch.compile, some of the counted steps still compile."
    )
    base = results.variant()
    for name, recipe in (("8-bit", EIGHT), ("NF4", f"{SMALL} {IN_BF16}")):
        other = results.of(Step(3, "train", recipe))
        if results.base == BF16 and not why_not(base) and not why_not(other):
            section.notes.append(f"{name} has {other['examples/s'] / base['examples/s']:.0%} of the speed of bf16.")
    return section


def fastest(results: Results) -> list[str]:
    """The fastest variant whose held-out loss is within noise, and the keys that make it."""
    base, again = results.variant(), results.variant("--seed 43")
    if why_not(base):
        return ["The fastest variant: not known, because the recipe itself was not measured."]
    if why_not(again):
        allowed, what = NOISE * base["held out"], f"{NOISE:.0%}, for want of a second seed"
    else:
        allowed, what = abs(again["held out"] - base["held out"]), "the difference of two seeds"
    known = [
        (step.what, result)
        for step, result in results.steps(3, "variant")
        if not why_not(result) and result["held out"] <= base["held out"] + allowed
    ]
    options, best = max(known, key=lambda pair: pair[1]["examples/s"])
    if options == "LIGER=1":
        keys = "none, because no key turns Liger's kernels on"
    else:
        keys = "; ".join(f"{key}: {value}" for key, value in keys_of(options).items()) or "none: the recipe as it is"
    return [
        f"The fastest variant of {short(results.base)} whose held-out loss is at most {allowed:.4f} higher ({what}): "
        f"{best['examples/s']:.2f} examples/s, {best['examples/s'] / base['examples/s']:.2f} times the recipe; "
        f"keys to write into it: {keys}."
    ]


def others_section(results: Results) -> Section:
    section = Section(PARTS[4])
    ours = (Step(3, "variant"), results.variant())
    pairs = [ours, *results.steps(4)]
    add_speeds(section, results, pairs)
    for step, result in pairs[1:]:
        if not why_not(ours[1]) and not why_not(result):
            ratio = ours[1]["examples/s"] / result["examples/s"]
            section.notes.append(f"{short(results.base)} is {ratio:.2f} times as fast as {step.what}.")
    section.notes.append("All train once over the same rows. Unsloth is not compared.")
    return section


def evaluation_section(results: Results) -> Section:
    section = Section(PARTS[5])
    result = results.of(Step(5, "evaluate"))
    if why := why_not(result):
        section.notes.append(why)
        return section
    rows, bars = [], []
    for row in result["likelihood"]:
        if "failed" in row:
            rows.append([str(row["batch"]), "option likelihood", f"failed: {row['failed']}", ""])
        for program, of in row.get("programs", {}).items():
            speed = sum(of["speeds"]) / len(of["speeds"])
            rows.append([str(row["batch"]), f"option likelihood, {program}", number(speed, ".1f"), ""])
            bars.append(bar(f"{program}, batch {row['batch']}", speed, f"{speed:.1f} questions/s"))
    for row in result["generation"]:
        failed = f"failed: {row['failed']}" if "failed" in row else number(row["questions/s"])
        rows.append([str(row["batch"]), "generation", failed, number(row.get("tokens/s"), ",.0f")])
    section.tables.append(("", ["batch", "score", "questions/s", "tokens/s"], rows))
    section.bars.append(("Option likelihood", scaled(bars)))
    return section


def promises_section(results: Results) -> Section:
    section, rows = Section(PARTS[6]), []
    result = results.of(Step(6, "continue"))
    said = why_not(result) or (
        f"losses differ by {result['largest']:.2g} at most, the final adapter is "
        f"{'the same to the bit' if result['same adapter'] else 'not the same to the bit'}"
    )
    rows.append(["kill -9 and continue (8-bit LoRA)", said])
    result = results.of(Step(6, "attention"))
    if why := why_not(result):
        rows.append(["packed = unpacked", why])
    else:
        for name, of in result.items():
            said = of.get("failed") and f"failed: {of['failed']}"
            said = said or (
                f"a token's loss differs by {of['mean']:.2g} on average, {of['largest']:.2g} at most "
                f"({of['dtype']}); rows that read one another: {of['leak']:.2g} on average"
            )
            rows.append([f"packed = unpacked, {name}", said])
    result = results.of(Step(2, "train", SMALL))
    said = why_not(result)
    if not said:
        finite = sum(math.isfinite(value) for value in result["losses"])
        scaled_steps = sum(math.isfinite(value) for value in result["grad_norms"])
        said = f"{finite} of {len(result['losses'])} losses and {scaled_steps} gradient norms are finite"
        said += "" if results.on_gpu else " (a CPU has no fp16: this ran in another type)"
    rows.append(["fp16's loss scaler with float32 adapters", said])
    result = results.of(Step(6, "zero"))
    if why := why_not(result):
        rows.append(["adapters of ZeRO-2 and ZeRO-3 are whole", why])
    else:
        for name, of in result.items():
            said = f"failed: {of['failed']}" if "failed" in of else f"{of['tensors']} tensors, {of['empty']} empty"
            said += "" if "failed" in of else f", {of['zero']} of zeros alone"
            rows.append([f"the adapter of {name} is whole", said])
    result = results.of(Step(6, "quickstart"))
    said = why_not(result) or (
        "accuracy {:.3f} ({:.3f} to {:.3f}, n = {}), trained in {:.0f} s".format(
            result["accuracy"], *result["ci95"], result["n"], result["seconds"]
        )
    )
    rows.append(["the quickstart's recipe (0.806 on a CPU)", said])
    section.tables.append(("", ["promise", "what was found"], rows))
    return section


SECTIONS = (stack_section, runs_section, speed_section, others_section, evaluation_section, promises_section)
