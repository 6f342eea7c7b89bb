"""What tests on a CPU show, looked at on this device: runs that are killed and continued, adapters, the quickstart.

    python tests/benchmarks/promises.py attention RESULT.json WORK

compares, for every attention, the loss of each token in a pack with that of its row alone. The other functions are
called by tests/benchmarks/gpu.py, which starts their commands.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.common.command import UserError, first_line, read_json, run, write_json

ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
# Short runs that save on the way; each step's loss is in history.json.
SAVING = "--max_steps 6 --save_strategy steps --save_steps 2 --save_total_limit 3 --logging_steps 1"


# --- Packed = unpacked ---


def token_losses(model: Any, rows: list[list[int]], packed: bool, positions: bool = True) -> Any:
    """Loss of every token but each row's first, in float32, one after another; rows alone, or as one pack."""
    import torch

    losses = []
    for pack in [rows] if packed else [[row] for row in rows]:
        ids = torch.tensor([[token for row in pack for token in row]], device=model.device)
        places = [place for row in pack for place in range(len(row))]
        given = {"position_ids": torch.tensor([places], device=model.device)} if positions else {}
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False, **given).logits[0, :-1].float()
        each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        losses.append(each[[place > 0 for place in places[1:]]])
    return torch.cat(losses)


def compare_attentions(work: Path) -> dict[str, dict]:
    """{attention: largest and mean difference of a token's loss, packed from alone}, or why it failed.

    `leak` is the mean difference where the rows of the pack do read one another: what the others are to be far below.
    """
    import torch
    from stack import half_types
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = AutoConfig.from_pretrained(work / "model")
    config.num_hidden_layers = 2  # as many as a leak needs to show
    rows = [ids for ids, _ in read_json(work / "held_out.json")][:12]
    found: dict[str, dict] = {}
    for attention in ATTENTIONS:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                work / "model", config=config, dtype=half_types(device)[0], attn_implementation=attention
            ).to(device)
            alone = token_losses(model, rows, packed=False)
            apart = (token_losses(model, rows, packed=True) - alone).abs()
            leak = (token_losses(model, rows, packed=True, positions=False) - alone).abs()
            found[attention] = {
                "largest": apart.max().item(),
                "mean": apart.mean().item(),
                "leak": leak.mean().item(),
                "dtype": str(model.dtype).removeprefix("torch."),
            }
        except Exception as error:
            found[attention] = {"failed": first_line(error)}
    return found


# --- Killed and continued ---


def killed_and_continued(bench: Any, contender: str, left: Callable[[], float], log: Path) -> dict:
    """Train six steps, once unbroken and once killed after the fourth; how far apart losses and adapters are."""
    outs = [bench.work / f"continue-{name}" for name in ("unbroken", "killed")]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)

    def train(out: Path, options: str = "", until: Path | None = None) -> int | None:
        words, environment = bench.command(f"{contender} {SAVING} {options}", out, bench.work / "unused.json")
        environment["STARTED"] = str(time.time())
        return bench.start(words, environment, log, left(), until=until)

    for out, options, until in (
        (outs[0], "", None),
        (outs[1], "", outs[1] / "checkpoint-4/run_manifest.json"),
        (outs[1], "--resume_from_checkpoint auto", None),
    ):
        if (code := train(out, options, until)) not in (0, -9) or (code == -9) != bool(until):
            return {"failed": None if code is None else f"exit status {code}: see {log.name}"}
    losses = [[row["loss"] for row in read_json(out / "history.json") if "loss" in row] for out in outs]
    adapters = [(out / "final_model/adapter_model.safetensors").read_bytes() for out in outs]
    apart = [abs(a - b) for a, b in zip(*losses, strict=True)]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
    return {"losses": losses, "largest": max(apart), "same adapter": adapters[0] == adapters[1]}


# --- Adapters of ZeRO ---


def saved_under_zero(bench: Any, contenders: dict[str, str], left: Callable[[], float], log: Path) -> dict:
    """{launch: tensors of the final adapter, empty ones, ones of zeros alone}, each after two steps."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for name, contender in contenders.items():
        out = bench.work / "zero"
        shutil.rmtree(out, ignore_errors=True)
        words, environment = bench.command(f"{contender} --max_steps 2", out, bench.work / "unused.json")
        environment["STARTED"] = str(time.time())
        code = bench.start(words, environment, log, left())
        if code:
            found[name] = {"failed": f"exit status {code}: see {log.name}"}
            continue
        if code is None:
            return {"failed": None}
        weights = load_file(out / "final_model/adapter_model.safetensors").values()
        found[name] = {
            "tensors": len(weights),
            "empty": sum(not tensor.numel() for tensor in weights),
            "zero": sum(bool(tensor.numel()) and not tensor.abs().max() for tensor in weights),
        }
        shutil.rmtree(out, ignore_errors=True)
    return found


# --- The quickstart ---


def quickstart(bench: Any, on_gpu: bool, bf16: bool, left: Callable[[], float], log: Path) -> dict:
    """Accuracy on the embedded test questions, and seconds of training, of recipes/quickstart.yaml on this device."""
    from sft.quickstart import on_text

    on_cpu = on_text()
    if not Path(on_cpu.model).is_dir():
        raise UserError(f"the embedded model is not in {on_cpu.model}: `make quickstart` unpacks it")
    folder = bench.work / "quickstart"
    shutil.rmtree(folder, ignore_errors=True)
    of = {step.name: step.command.replace(str(on_cpu.out), str(folder)) for step in on_cpu.steps}
    train = of["train"] + f" --dataset_name {folder}/PMC-VQA-Processed --output_dir {folder}/PMC-VQA-SFT-Output"
    if on_gpu:
        train = train.replace("cpu.yaml", "single_gpu.yaml") + " --use_cpu no"
        train += "" if bf16 else " --bf16 no --dtype float32"
    else:  # a rehearsal
        train += " --max_steps 2 --per_device_train_batch_size 1 --mcq_eval_samples 0 --eval_strategy no"
        train += " --save_strategy no --load_best_model_at_end no"
        of["evaluate tuned"] += " --num_samples 4"
    evaluate = of["evaluate tuned"].replace(f" --baseline {folder}/eval/base", "")
    seconds = {}
    for name, text in {"sample": of["sample"], "prepare": of["prepare"], "train": train, "evaluate": evaluate}.items():
        program, *words = shlex.split(text)
        module = [] if program == "python" else ["-m", "accelerate.commands.accelerate_cli"]
        begun = time.monotonic()
        code = bench.start([sys.executable, *module, *words], bench.environment(folder), log, left())
        if code != 0:
            return {"failed": None if code is None else f"{name}: exit status {code}: see {log.name}"}
        seconds[name] = time.monotonic() - begun
    results = read_json(folder / "eval/tuned/results.json")
    score = results["scores"]["option_likelihood"]
    return {"accuracy": score["accuracy"], "ci95": score["ci95"], "n": results["n"], "seconds": seconds["train"]}


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[1] != "attention":
        raise UserError("give attention RESULT.json WORK; tests/benchmarks/gpu.py does")
    write_json(Path(sys.argv[2]), compare_attentions(Path(sys.argv[3])))


if __name__ == "__main__":
    run(main)
