"""What a run will take: its rows, its steps, its disk space, its peak memory."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sft.common.command import GIB, UserError, check_disk, first_line
from sft.common.data import load_mixture, load_split
from sft.common.figures import Figures
from sft.common.models import check_vocabulary, load_config, load_tokenizer
from sft.common.vision import load_vision, sees
from sft.training.config import Settings
from sft.training.hardware import Hardware
from sft.training.launch import Launch
from sft.training.memory import count_parameters, estimate
from sft.training.tokens import highest_id, lengths_of, tokenized


@dataclass(frozen=True)
class Plan:
    """Lines to print; trained parameters and peak in GiB on each GPU, None where they could not be counted."""

    lines: list[str]
    trained: int | None = None
    peak: float | None = None


def steps(settings: Settings, processes: int, sequences: int) -> tuple[int, int]:
    """(optimizer steps of an epoch, of the run) for so many rows, or packs of rows."""
    batches = math.ceil(sequences / (settings.per_device_train_batch_size * processes))
    epoch = math.ceil(batches / settings.gradient_accumulation_steps)
    return epoch, settings.max_steps if settings.max_steps > 0 else math.ceil(epoch * settings.num_train_epochs)


class Data(NamedTuple):
    """The rows of a run and their tokens, as SFTTrainer gets them; without evaluations, dev is None.

    A model that sees gets rows without tokens: TRL's collator makes them, with the figures.
    """

    train: Any
    dev: Any
    tokenizer: Any
    train_tokens: Any
    dev_tokens: Any
    lengths: list[int]  # tokens of each training row


def load_and_check_data(settings: Settings) -> Data:
    """Open the data, print which chat template is used, and check and tokenize every row.

    Raises `UserError` for a data set, tokenizer or template that is missing, or a row that would be trained wrongly.
    """
    from accelerate import PartialState

    seed = settings.seed if settings.data_seed is None else settings.data_seed
    train, dev = load_mixture(settings.dataset_weights(), settings.dataset_train_split, seed), None
    if settings.eval_strategy != "no":
        dev = load_split(settings.dataset_name, settings.dataset_test_split)
        of_train, of_dev = train[0]["answer_format"], dev[0]["answer_format"]
        if of_train != of_dev:
            raise UserError(
                f"{settings.dataset_test_split} of {settings.dataset_name} has answers in the format {of_dev}, the "
                f"training rows have {of_train}: prepare them with the same --answer_format"
            )
    values = json.loads(settings.chat_template_kwargs or "{}")
    tokenizer = load_tokenizer(settings.model, settings.chat_template_path, values)
    for key in ("eos_token", "pad_token"):
        if token := settings.values[key]:
            if token not in tokenizer.get_vocab():
                raise UserError(f"{key} {token} is not a token of {settings.model}: name one of its vocabulary")
            setattr(tokenizer, key, token)
    if PartialState().is_main_process:
        print(f"Chat template: {tokenizer.template_source}", flush=True)
    options = {"max_length": settings.max_length, "num_proc": settings.dataset_num_proc}
    if settings.figures and sees(load_config(settings.model)):
        return with_figures_checked(settings, train, dev, tokenizer, options)
    train_tokens = tokenized(train, tokenizer, name="train", **options)
    dev_tokens = None if dev is None else tokenized(dev, tokenizer, name="dev", **options)
    for tokens in filter(None, (train_tokens, dev_tokens)):
        check_vocabulary(settings.model, tokenizer, highest_id(tokens))
    return Data(train, dev, tokenizer, train_tokens, dev_tokens, lengths_of(train_tokens))


def with_figures_checked(settings: Settings, train: Any, dev: Any, tokenizer: Any, options: dict[str, Any]) -> Data:
    """The data of a model that sees, each row and its figures checked; raises as `load_and_check_data`."""
    from sft.training import vision

    weights = settings.dataset_weights()
    load_vision(settings.model, tokenizer, Figures(dict.fromkeys([*weights, settings.dataset_name])))
    lengths = []
    for rows, name in ((train, "train"), (dev, "dev")):
        if rows is not None:
            vision.check_figures(rows, tokenizer, name, ", ".join(weights))
            lengths.append(vision.checked_lengths(rows, tokenizer, name, **options))
    return Data(train, dev, tokenizer, train, dev, lengths[0])


def make_plan(settings: Settings, launch: Launch, hardware: Hardware, lengths: list[int]) -> Plan:
    """The plan of a run on rows of these lengths; raises `UserError` for a model configuration that cannot be read."""
    # Packs are taken as full: bfd leaves few gaps.
    sequences = math.ceil(sum(lengths) / settings.max_length) if settings.packing else len(lengths)
    in_epoch, in_run = steps(settings, launch.processes, sequences)
    packs, pack_size = ("packs", f", packs of {settings.max_length}") if settings.packing else ("rows", "")
    batch = settings.per_device_train_batch_size * launch.processes * settings.gradient_accumulation_steps
    precision = "float32" if settings.precision == "no" else settings.precision
    source = settings.sources.get("bf16")
    if source not in (None, str(settings.recipe), "command line"):
        precision += f", because {source}"
    stored = ", as the base model stores them" if settings.stored else ""
    # As SFTConfig decides.
    compiles = settings.torch_compile or settings.torch_compile_backend or settings.torch_compile_mode
    compiler = (settings.torch_compile_backend or "inductor") if compiles else launch.compiler
    memory = plan_memory(settings, launch, hardware, max(lengths))
    lines = [
        f"Launch: {launch.name}; {hardware.name}",
        f"Precision: {precision}; frozen weights {settings.quantised or settings.dtype}{stored}",
        f"Batch: {settings.per_device_train_batch_size} {packs} x {launch.processes} process(es) x "
        f"{settings.gradient_accumulation_steps} accumulated = {batch} {packs} a step",
        f"Data: {len(lengths):,} rows, {sum(lengths):,} tokens an epoch, longest row {max(lengths)} tokens{pack_size}",
        f"Steps: about {in_epoch:,} an epoch, {in_run:,} in all",
    ]
    if compiler != "no":
        by = "the recipe" if compiles else "the launch file"
        lines.append(f"Compiled: by torch.compile ({compiler}), because {by} says so; the first steps take minutes")
    return replace(memory, lines=[*lines, *memory.lines])


def plan_memory(settings: Settings, launch: Launch, hardware: Hardware, longest: int) -> Plan:
    """The plan's part about trained parameters and memory; `longest` is the longest row in tokens.

    An architecture that cannot be counted, or run without data, gets a line that says why: an estimate refuses no run.
    """
    config = load_config(settings.model)
    tokens = settings.per_device_train_batch_size * (settings.max_length if settings.packing else longest)
    counted = parameters = None
    try:
        parameters = count_parameters(config, settings)
        share = parameters.trained / parameters.total
        counted = f"Trained: {parameters.trained:,} of {parameters.total:,} parameters ({share:.2%})"
        parts = estimate(config, settings, launch, parameters, tokens)
    except Exception as error:  # whatever an architecture needs that is not there without weights
        why = f"Peak memory: not estimated for this architecture ({first_line(error)})"
        return Plan([*([counted] if counted else []), why], parameters and parameters.trained)
    peak = sum(parts.values())
    listed = ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
    # On the CPU --probe_steps showed 0.6 to 0.9 GiB above the estimate: Python and the libraries.
    where, rest = (" on each GPU", "CUDA itself") if hardware.count else ("", "the libraries")
    lines = [
        counted,
        f"Peak memory, estimated: {peak:.1f} GiB{where} ({listed}), and about 1 GiB for {rest}",
    ]
    if hardware.count and peak + 1 > hardware.memory:
        lines.append(
            f"WARNING: that is more than the {hardware.memory:.0f} GiB of {hardware.gpu}: use "
            "recipes/pmcvqa_16gb.yaml, or turn on activation_checkpointing, or lower per_device_train_batch_size"
        )
    return Plan(lines, parameters.trained, peak)


def print_plan(plan: Plan) -> None:
    """Print the plan's lines, in the first process."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print("\n".join(plan.lines), flush=True)


def check_checkpoints_fit(settings: Settings, plan: Plan) -> None:
    """Raise `UserError` if the checkpoints that are kept, one that is being written, and the final model do not fit.

    A checkpoint holds at most the trained parameters, AdamW's states and a float32 copy beside them. What an earlier
    part of the run has written counts as free.
    """
    if plan.trained is None or settings.is_trial:
        return
    needed = plan.trained * ((4 if settings.use_peft else 2) + (0 if settings.save_only_model else 12))
    folder = Path(settings.output_dir).resolve()
    written = sum(file.stat().st_size for file in folder.glob("*/**/*") if file.is_file())
    kept = (settings.save_total_limit + 1 if settings.save_strategy != "no" else 0) + 1
    purpose = f"output_dir {settings.output_dir}: {kept} checkpoints of {needed / GIB:.1f} GiB need"
    check_disk(folder, kept * needed, purpose, "lower save_total_limit or choose another disk", written)
