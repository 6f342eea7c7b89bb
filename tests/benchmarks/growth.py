"""How the cost of training grows: with rows, length of packs, LoRA rank and processes. Draws docs/growth.png.

    python tests/benchmarks/growth.py [--rows N] [--output_file docs/growth.png]
    python tests/benchmarks/growth.py --many_gpus

Each point is one run of sft/run.py on a CPU with the quickstart's recipe and model (tests/benchmarks/train.py measures
it), but for the key that the panel names. --many_gpus measures nothing: it prints what DDP, ZeRO-2 and ZeRO-3 exchange
for the 8B model, and what share of the time is left for computing if one GPU reaches --utilisation of its peak.
"""

import argparse
import tempfile
from pathlib import Path

from bench import Bench, speed_and_memory
from inputs import ROOT, SMOLLM2, write_inputs
from train import check_folder, one_line

from sft.common.command import UserError, atomic_write, run

RECIPE = "recipes/quickstart.yaml"
# One thread a process, so that two processes have twice the cores of one; a CPU has no bf16 under DeepSpeed.
APART = "OMP_NUM_THREADS=1 --config_file accelerate_configs/{file} --num_processes {count} " + RECIPE
FLOAT32 = " --bf16 no --dtype float32"
AXES = {
    "rows": {n: f"{RECIPE} --max_steps 12" for n in (1_000, 10_000, 50_000, 226_948)},
    "tokens a pack": {
        n: f"{RECIPE} --packing yes --max_length {n} --per_device_train_batch_size 1 --attn_implementation sdpa"
        for n in (256, 512, 1024, 2048, 4096)
    },
    "LoRA rank": {n: f"{RECIPE} --lora_r {n}" for n in (4, 16, 64, 256)},
    "processes": {
        "1": APART.format(file="cpu.yaml", count=1) + FLOAT32,
        "2, DDP": APART.format(file="ddp.yaml", count=2) + FLOAT32 + " --per_device_train_batch_size 4",
        "2, ZeRO-2": APART.format(file="zero2.yaml", count=2) + " --per_device_train_batch_size 4",
        "2, ZeRO-3": APART.format(file="zero3.yaml", count=2) + " --per_device_train_batch_size 4",
    },
}


def measure(rows: int) -> dict[str, dict]:
    """{axis: {point: `train.speed_and_memory`, and `start`: seconds to the end of the first step}}."""
    measured: dict[str, dict] = {axis: {} for axis in AXES}
    for axis, points in AXES.items():
        for point, contender in points.items():
            size = point if axis == "rows" else rows
            with tempfile.TemporaryDirectory() as name:
                write_inputs(str(SMOLLM2), RECIPE, Path(name), size)
                bench = Bench(Path(name), RECIPE)
                result = bench.measure(contender)
            print(f"{axis} {point}: {one_line(result, bench.flops, 1.0)}", flush=True)
            if "failed" not in result:
                start = sum(result["seconds"].values())
                measured[axis][point] = {**speed_and_memory(result, bench.flops, 1.0), "start": start}
    return measured


def draw(measured: dict[str, dict], file: Path) -> None:
    """One column an axis: examples/s (for rows: seconds to the first step) above, peak memory below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(measured), 5.2), layout="constrained")
    panels = figure.subplots(2, len(measured))
    for column, (axis, points) in enumerate(measured.items()):
        keys = ("start" if axis == "rows" else "examples/s", "GiB")
        for panel, key in zip(panels[:, column], keys, strict=True):
            values = [numbers[key] for numbers in points.values()]
            if axis == "processes":
                panel.bar([str(point).replace(", ", "\n") for point in points], values, width=0.6)
            else:
                panel.plot(list(points), values, marker="o")
                panel.set_xscale("log")
                panel.set_xticks(list(points), [f"{point:,}" for point in points], rotation=30)
                panel.minorticks_off()
            panel.set_ylim(0, 1.12 * max(values))
            panel.grid(axis="y", alpha=0.3)
            names = {"start": "seconds to the first step", "GiB": "GiB resident, first process"}
            panel.set_ylabel(names.get(key, key))
        panels[1, column].set_xlabel(axis)
    figure.align_xlabels()
    with atomic_write(file) as temporary:
        # As in sft/training/callbacks.py: the same numbers give the same bytes.
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def table(measured: dict[str, dict]) -> list[str]:
    """Markdown: the numbers of the plot."""
    lines = ["| | | to the first step, s | examples/s | peak GiB | held-out loss |", "|---|---|---|---|---|---|"]
    for axis, points in measured.items():
        for point, m in points.items():
            shown = f"{point:,}" if isinstance(point, int) else point
            cells = f"{m['start']:.1f} | {m['examples/s']:.2f} | {m['GiB']:.2f} | {m['held out']:.3f}"
            lines.append(f"| {axis} | {shown} | {cells} |")
    return lines


def many_gpus(utilisation: float, tflops: float) -> list[str]:
    """A model on paper of strong scaling: 8 packs of 1,024 tokens a step, computing and exchanging by turns.

    DDP and ZeRO-2 exchange the adapter's gradients once a step (a ring sends 2 (n - 1) / n of them from each GPU);
    ZeRO-3 gathers all weights, in bf16, once for the forward and once for the backward pass, which recomputes a
    layer's activations while it has them. Gradients have four bytes. Overlap would make it faster, latency slower;
    neither is in here.
    """
    from memory import LLAMA_8B

    from sft.training.config import resolve
    from sft.training.memory import trained_meta_model
    from sft.training.model import parameter_counts
    from sft.training.trial import flops_per_token

    settings = resolve([str(ROOT / "recipes/pmcvqa_zero3.yaml")])
    model = trained_meta_model(LLAMA_8B, settings)
    counted = parameter_counts(model)
    step = settings.global_batch_size * settings.max_length * flops_per_token(model) / (utilisation * tflops * 1e12)
    lines = [
        f"A model, not measured. One step on one GPU at {utilisation:.0%} of {tflops:g} TFLOPS: {step:.2f} s",
        "",
        "| GPUs | GB a step: DDP, ZeRO-2 | ZeRO-3 | " + " | ".join(f"computing, {name}" for name in LINKS) + " |",
        "|---" * (3 + len(LINKS)) + "|",
    ]
    for count in (2, 4, 8):
        share = (count - 1) / count
        gradients = 2 * share * counted["trained"] * 4 / 1e9
        passes = settings.global_batch_size / count / settings.per_device_train_batch_size
        weights = 2 * share * counted["total"] * 2 / 1e9 * passes + gradients / 2
        cells = []
        for speed in LINKS.values():
            left = [step / count / (step / count + sent / speed) for sent in (gradients, weights)]
            cells.append(f"{left[0]:.0%}, ZeRO-3 {left[1]:.0%}")
        lines.append(f"| {count} | {gradients:.2f} | {weights:.1f} | " + " | ".join(cells) + " |")
    return lines


# GB/s that one GPU sends, as data sheets say: NVLink of an A100 (300 each way), PCIe 4 x16, 10 Gbit/s Ethernet.
LINKS = {"NVLink": 300.0, "PCIe 4": 32.0, "10 Gbit/s": 1.25}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320, help="seeded training rows, where they are not the axis")
    parser.add_argument("--output_file", type=Path, default=Path("docs/growth.png"))
    parser.add_argument("--many_gpus", action="store_true", help="print the model on paper instead")
    parser.add_argument("--utilisation", type=float, default=0.45, help="of one GPU's peak, assumed (default 0.45)")
    parser.add_argument("--tflops", type=float, default=312.0, help="peak of one GPU in bf16 (default 312, an A100)")
    args = parser.parse_args()
    if not 0 < args.utilisation <= 1 or args.tflops <= 0:
        raise UserError("--utilisation is a share above 0 and up to 1, and --tflops a positive number")
    if args.rows < 200:
        raise UserError(f"--rows {args.rows}: packs of 4,096 tokens need 200 rows or more to be measured")
    check_folder(args.output_file)
    if args.many_gpus:
        print("\n".join(many_gpus(args.utilisation, args.tflops)))
        return
    measured = measure(args.rows)
    draw(measured, args.output_file)
    print("\n".join(["", *table(measured), "", f"Wrote {args.output_file}"]))


if __name__ == "__main__":
    run(main)
