"""Before a long run: one step on the longest rows (--dry_run), or some measured steps (--probe_steps N).

Both train for real, in a temporary folder, with the recipe's own model, launcher and data, and leave nothing behind.
"""

import itertools
import resource
import tempfile
import time
from typing import Any

import torch
from transformers import TrainerCallback
from trl import SFTConfig

from sft.common.chat_template import IGNORED
from sft.common.command import GIB
from sft.common.display import duration, marked, shows_colour
from sft.common.vision import vision_of
from sft.training import libraries
from sft.training.config import Settings
from sft.training.hardware import Hardware
from sft.training.launch import Launch
from sft.training.model import load_trainer, parameter_size
from sft.training.plan import load_and_check_data, make_plan, print_plan, steps

WARM_UP = 2  # the first steps of a run, which warm up kernels and allocators
PREVIEWED_ROWS = 3
# No evaluation, no checkpoint, every step logged.
TRIAL_SETTINGS = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "mcq_eval_samples": 0,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "resume_from_checkpoint": None,
    "resume_weights_only": False,
    "report_to": "none",
    "logging_steps": 1,
}


def longest_rows(train: Any, lengths: list[int], settings: Settings, processes: int) -> Any:
    """The rows of one step with the most tokens: as many as fill its packs, or its batches."""
    count = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * processes
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    if settings.packing:
        tokens = itertools.accumulate(lengths[index] for index in order)
        filling = sum(total < count * settings.max_length for total in tokens) + 1
        count += filling  # a row more for each pack, because packs have gaps
    return train.select(order[:count])


class Clock(TrainerCallback):
    """Notes the time at the end of every step, when the device has finished it."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def flops_per_token(model: Any) -> float:
    """Floating-point operations of training on one token, recomputation not counted (Chowdhery et al. 2022, app. B).

    Two a weight forward, two a weight for the gradients of activations and two a trained weight for its own gradient.
    Left out: embeddings (looked up), the output layer (only labelled tokens) and attention scores, which are a few
    percent for packs of 1,024 tokens of an 8B model.
    """
    ends = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()}
    return sum(
        parameter_size(parameter) * (6 if parameter.requires_grad else 4)
        for parameter in model.parameters()
        if id(parameter) not in ends
    )


def run_trial(settings: Settings, launch: Launch, hardware: Hardware) -> None:
    """Train some steps in a temporary folder, and print what they show; raises `UserError` as the run itself does."""
    with tempfile.TemporaryDirectory() as scratch:
        max_steps = settings.probe_steps + WARM_UP if settings.probe_steps else 1
        shortened = settings.with_values({**TRIAL_SETTINGS, "max_steps": max_steps, "output_dir": scratch}, "trial")
        training_args = shortened.build(SFTConfig)
        libraries.rehearse(shortened, training_args)
        data = load_and_check_data(shortened)
        plan = make_plan(settings, launch, hardware, data.lengths)
        print_plan(plan)
        if settings.dry_run:
            longest = longest_rows(data.train_tokens, data.lengths, settings, launch.processes)
            data = data._replace(train_tokens=longest)
        trainer = load_trainer(shortened, training_args, data)
        is_main = trainer.is_world_process_zero()
        if settings.dry_run and is_main:
            print("\n".join(preview(trainer, data.tokenizer, PREVIEWED_ROWS)), flush=True)
        clock = Clock()
        trainer.add_callback(clock)
        start = time.perf_counter()
        result = libraries.train(trainer)
    if not is_main:
        return
    if settings.dry_run:
        seconds = clock.ends[-1] - start
        print(f"Dry run: one step on the longest rows in {seconds:.1f} s, loss {result.training_loss:.3f}")
    else:
        print("\n".join(report(trainer, clock, settings, hardware)))
    if hardware.count:
        peak, of_what = torch.cuda.max_memory_allocated() / GIB, "allocated on the first GPU"
    else:  # ru_maxrss is in KiB
        peak, of_what = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "of the first process on the CPU"
    estimate = "not estimated" if plan.peak is None else f"estimated {plan.peak:.1f} GiB without CUDA or the libraries"
    print(f"Peak memory: {peak:.1f} GiB {of_what}; {estimate}")
    print("Nothing was kept.")


def preview(trainer: Any, tokenizer: Any, count: int) -> list[str]:
    """The first rows of SFTTrainer's own training set, taken out of their packs, the trained tokens marked."""
    lines: list[str] = []
    for row in trainer.train_dataset:
        if vision_of(tokenizer):  # the collator makes the tokens
            pack = {name: values[0].tolist() for name, values in trainer.data_collator([row]).items()}
        else:
            pack = row
        start = 0
        for length in pack.get("seq_lengths") or [len(pack["input_ids"])]:
            ids, labels = (pack[key][start : start + length] for key in ("input_ids", "labels"))
            start += length
            mask = [int(label != IGNORED) for label in labels]
            lines.append(f"--- {length} tokens, {sum(mask)} trained")
            lines.append(marked(tokenizer, ids, mask, shows_colour()))
        if len(lines) >= 2 * count:
            break
    return lines[: 2 * count]


def report(trainer: Any, clock: Clock, settings: Settings, hardware: Hardware) -> list[str]:
    """Lines about a probe: speed, utilisation of the device, time and cost of all steps of the run."""
    from trl.trainer.utils import get_peak_flops

    processes = trainer.accelerator.num_processes
    logged = [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row]
    seconds = clock.ends[-1] - clock.ends[WARM_UP - 1]
    step = seconds / settings.probe_steps
    rate = (logged[-1] - logged[WARM_UP - 1]) / seconds
    _, total = steps(settings, processes, len(trainer.train_dataset))
    utilisation = "not known, because this device's peak is not known"
    precision = "float16" if settings.fp16 else "bfloat16"
    if hardware.gpu and (flops := get_peak_flops(hardware.gpu, precision)):
        share = flops_per_token(trainer.model) * rate / (processes * flops)
        utilisation = f"{share:.1%} of {flops / 1e12:g} TFLOPS a GPU"
    price = settings.price_per_hour
    cost = "" if price is None else f", {price * total * step / 3600:.2f} at {price:g} an hour"
    return [
        f"Probe: {settings.probe_steps} steps after {WARM_UP} to warm up, {step:.2f} s a step, {rate:,.0f} tokens/s",
        f"Model FLOPs utilisation: {utilisation}",
        f"Whole run: {total:,} steps, {duration(total * step)} without evaluations{cost}",
    ]
