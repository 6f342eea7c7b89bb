"""Training speed of recipes beside other programs: same rows, LoRA, dtype and model, by turns, in one run.

    python tests/benchmarks/train.py [--model MODEL] [--recipe RECIPE] [--rows N] [--rounds N] [CONTENDER ...]

A CONTENDER is trl, plain, llamafactory or a recipe with options (tests/benchmarks/bench.py); @FILE holds contenders,
one a line (tests/benchmarks/cpu.txt); without any: RECIPE, trl, plain. RECIPE gives the LoRA shape, dtype,
quantisation and learning rate of the others. MODEL is a folder or a shape (tests/benchmarks/inputs.py). On a GPU,
tests/benchmarks/gpu.py measures the recipes in this way, and more.

Every contender trains once over all rows. Counted are the steps after the first two: examples, tokens without padding
and tokens with a label, per second. MFU is 4 x parameters + 2 x RECIPE's trained parameters operations a token,
embeddings and output layer left out, of the peak of the GPU, or on a CPU of a matrix product measured here;
HFU counts recomputed activations too (2 x parameters more). Memory is what is allocated on the GPU, or resident on a
CPU, at the peak. The held-out loss is one measure for all: of a completion's tokens, on rows that nobody trained on.
Start-up is divided as far as a library's functions tell: `preparation` is TRL's, that of the others is in `other`.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from bench import Bench, has_gpu, speed_and_memory
from inputs import SMOLLM2, write_inputs
from stack import data_sheet_peak, product_peak

from sft.common.command import UserError, run, write_json
from sft.common.models import cpu_has_bf16
from sft.training.hardware import cpu_name, this_machine


def check_folder(file: Path | None) -> None:
    """Refuse an --output_file that could not be written after all the work."""
    if file and not file.parent.is_dir():
        raise UserError(f"--output_file {file}: there is no folder {file.parent}: make it, or name another")


def one_line(result: dict, flops: tuple[float, float], peak: float) -> str:
    """One run in a line."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    m = speed_and_memory(result, flops, peak)
    losses = f"first loss {m['first loss']:.3f}, held-out loss {m['held out']:.3f}"
    return f"{m['examples/s']:.2f} examples/s, {m['GiB']:.2f} GiB, {m['steps']} steps, {losses}"


def table(runs: dict[str, list[dict]], flops: tuple[float, float], peak: float) -> list[str]:
    """Markdown: medians over the rounds, and the ratio of the first contender's speed to each, round by round."""
    lines = [
        "| contender | examples/s | first / this | tokens/s | labelled tokens/s | padding | peak GiB | MFU | HFU "
        "| steps | tokens a row | first loss | held-out loss |",
        "|---" * 13 + "|",
    ]
    numbers = {c: [None if "failed" in r else speed_and_memory(r, flops, peak) for r in rs] for c, rs in runs.items()}
    first = next(iter(numbers.values()))
    for contender in runs:
        rounds = [one for one in numbers[contender] if one]
        if not rounds:
            lines.append(f"| {contender} | failed: {runs[contender][-1]['failed']} |" + " |" * 11)
            continue
        m = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        both = [(a, b) for a, b in zip(first, numbers[contender], strict=False) if a and b]
        ratios = [a["examples/s"] / b["examples/s"] for a, b in both]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        estimated = "" if math.isnan(m["estimated"]) else f" (estimated {m['estimated']:.1f})"
        lines.append(
            f"| {contender} | {m['examples/s']:.2f} | {ratio} | {m['tokens/s']:,.0f} | {m['labelled/s']:,.0f} | "
            f"{m['padding']:.0%} | {m['GiB']:.2f}{estimated} | {m['MFU']:.0%} | {m['HFU']:.0%} | {m['steps']:.0f} | "
            f"{m['tokens/row']:.1f} | {m['first loss']:.3f} | {m['held out']:.3f} |"
        )
    return lines


def startup_table(runs: dict[str, list[dict]]) -> list[str]:
    """Markdown: seconds from the command to the end of the first step, by stage, medians over the rounds."""
    stages = ("launcher", "imports", "data", "memory estimate", "model", "preparation", "other", "first step")
    lines = ["| contender | " + " | ".join(stages) + " | together |", "|---" * (len(stages) + 2) + "|"]
    for contender, results in runs.items():
        seconds = [result["seconds"] for result in results if "failed" not in result]
        if seconds:
            cells = [statistics.median(run.get(stage, 0.0) for run in seconds) for stage in stages]
            together = statistics.median(sum(run.values()) for run in seconds)
            lines.append(f"| {contender} | " + " | ".join(f"{cell:.1f}" for cell in (*cells, together)) + " |")
    return lines


class Parser(argparse.ArgumentParser):
    """Reads @FILE a line a contender, blank lines and comments left out."""

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        return [line.strip()] if line.strip() and not line.lstrip().startswith("#") else []


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=plain, fromfile_prefix_chars="@")
    parser.add_argument("contenders", nargs="*", metavar="CONTENDER")
    parser.add_argument("--model", default=str(SMOLLM2), help="folder or shape (default: the embedded model)")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("--dataset_path", type=Path, help="what data_prep/prepare.py reads, instead of seeded rows")
    parser.add_argument("--rows", type=int, default=256, help="seeded training rows (default 256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llamafactory", type=Path, metavar="PYTHON", help="of LLaMA-Factory's environment")
    parser.add_argument("--output_file", type=Path, help="JSON with every run, written again after each")
    args = parser.parse_args()
    contenders = args.contenders or [str(args.recipe), "trl", "plain"]
    if args.rows < 40 or args.rounds < 1:
        raise UserError(f"--rows {args.rows}, --rounds {args.rounds}: give 40 rows or more, and a positive number")
    check_folder(args.output_file)

    with tempfile.TemporaryDirectory() as name:
        write_inputs(args.model, args.recipe, Path(name), args.rows, args.dataset_path)
        bench = Bench(Path(name), args.recipe, args.llamafactory)
        for contender in contenders:
            bench.command(contender, bench.work / "out-0", bench.work / "none")  # refused now rather than hours later
        peak, where = peak_flops()
        runs: dict[str, list[dict]] = {contender: [] for contender in contenders}
        for number in range(args.rounds):
            for contender in runs:
                result = bench.measure(contender)
                runs[contender].append(result)
                print(f"round {number + 1}, {contender}: {one_line(result, bench.flops, peak)}", flush=True)
                if args.output_file:
                    write_json(args.output_file, {"flops": bench.flops, "peak": peak, "runs": runs})
    what = (Path(args.model).name, f"{args.rows} rows", f"{args.rounds} rounds", device(), time.strftime("%Y-%m-%d"))
    versions = [f"{name} {version(name)}" for name in ("torch", "trl", "transformers", "peft")]
    print("\n" + ", ".join([*what, *versions]))
    print(f"Peak: {peak / 1e12:.3g} TFLOPS ({where})\n")
    print(*table(runs, bench.flops, peak), "", "Seconds to the end of the first step:", "", sep="\n")
    print(*startup_table(runs), sep="\n")


def peak_flops() -> tuple[float, str]:
    """(floating-point operations a second in 16 bits where the device has them, where the number is from)."""
    if known := has_gpu() and data_sheet_peak(this_machine().gpu):
        return known, "the device's data sheet"
    size = 8192 if has_gpu() else 2048
    measured = product_peak("cuda" if has_gpu() else "cpu", size)
    return measured, f"a product of {size} x {size} matrices, measured"


def device() -> str:
    """The hardware that contenders train on."""
    if has_gpu():
        return this_machine().name
    return f"{len(os.sched_getaffinity(0))} cores of {cpu_name()}{', bfloat16' if cpu_has_bf16() else ''}"


if __name__ == "__main__":
    run(main)
