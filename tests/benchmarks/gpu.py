"""What this machine's GPU does with the recipes: one command, a time budget, and a report.

    python tests/benchmarks/gpu.py [--minutes 10] [--output_dir outputs/gpu] [--model FOLDER] [--rehearse]

Neither the network nor the 8B model's weights are needed: random weights in its shape are made on the GPU and written
once (16 GiB below OUTPUT_DIR/work), or --model names a folder with real ones. Six parts (tests/benchmarks/
gpu_steps.py) are measured, the most important steps first, on one GPU, each step in a process of its own. A step that
fails is a result. What was measured is written after every step; the same command goes on where it was stopped, and
what was not reached is listed. --rehearse goes through the whole list on a CPU with a tiny model.

Out: OUTPUT_DIR/report.md, report.html, results.json, logs/.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from gpu_measure import SHORTEST, Machine, machine_is, perform
from gpu_steps import STEPS

from sft.common.command import UserError, read_json, run, write_json

BEGAN = time.monotonic()
ROOT = Path(__file__).parents[2]


def state_of(args: argparse.Namespace) -> dict:
    """What was measured before in OUTPUT_DIR, or the beginning of it; raises `UserError` for another measurement."""
    made_of = {"model": str(args.model) if args.model else None, "rehearsal": args.rehearse}
    file = args.output_dir / "results.json"
    if not file.exists():
        return {"of": made_of, "date": time.strftime("%Y-%m-%d"), "steps": {}}
    state = read_json(file)
    if state.get("of") != made_of:
        raise UserError(f"--output_dir {args.output_dir} holds a measurement of something else: name another folder")
    return state


def work_through(state: dict, machine: Machine) -> None:
    """Measure what has not been measured, in order, until the time is up; the state is written after every step."""
    from gpu_report import write_report

    shortest = 2 if machine.rehearses else SHORTEST
    for number, step in enumerate(STEPS, start=1):
        known = state["steps"].get(step.name, {}).get("result")
        if step.kind in ("stack", "inputs") and known and "failed" in known:
            known = None  # all else waits for it, so it is tried again
        if known is None and machine.left() > shortest:
            print(f"[{number}/{len(STEPS)}] {step.name} ({machine.left():.0f} s left)", flush=True)
            begun = time.monotonic()
            log = machine.out / "logs" / f"{number:02}.txt"
            result = perform(step, machine, log)
            spent = time.monotonic() - begun
            if result.get("failed", "") is None and machine.left() <= 1:
                state["steps"][step.name] = {"part": step.part, "stopped": f"(stopped after {spent:.0f} s)"}
            else:
                if result.get("failed", "") is None:
                    result["failed"] = f"took longer than {spent:.0f} s, a third of --minutes"
                known = result
                state["steps"][step.name] = {"part": step.part, "seconds": round(spent, 1), "result": result}
                print(f"    {summary(result)}", flush=True)
            write_json(machine.out / "results.json", state)
        if step.kind in ("stack", "inputs"):
            if known is None or "failed" in known:
                break  # everything else stands on it
            machine_is(machine, step, known)
    write_report(state, machine.out)


def summary(result: dict) -> str:
    """A result in a line."""
    for key in ("failed", "skipped"):
        if key in result:
            return f"{key}: {result[key]}"
    if "examples/s" in result:
        return f"{result['examples/s']:.2f} examples/s, {result['GiB']:.2f} GiB, first loss {result['first loss']:.3f}"
    return "done"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="time budget of this call (default 10)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--model", type=Path, help="folder with real weights, instead of random ones in the 8B shape")
    parser.add_argument("--rehearse", action="store_true", help="the whole list on a CPU, with a tiny model")
    args = parser.parse_args()
    if args.minutes <= 0:
        raise UserError(f"--minutes {args.minutes:g}: give a positive number")
    if args.model and not (args.model / "config.json").is_file():
        raise UserError(f"--model {args.model}: there is no config.json: name a model's folder")
    args.output_dir, args.model = args.output_dir.resolve(), args.model and args.model.resolve()
    state = state_of(args)
    (args.output_dir / "logs").mkdir(parents=True, exist_ok=True)
    (args.output_dir / "work").mkdir(exist_ok=True)
    # Before the libraries are imported: one GPU, or none, no network, and a cache of this measurement's own.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if args.rehearse else visible
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(args.output_dir / "work/home")}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TORCHDYNAMO_DISABLE": "1"} if args.rehearse else {}
    import torch

    if not args.rehearse and not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use: --rehearse goes through the list on a CPU")
    os.chdir(ROOT)
    machine = Machine(args, BEGAN)
    work_through(state, machine)
    print(f"Wrote {machine.out}/report.md, report.html and results.json")


if __name__ == "__main__":
    run(main)
