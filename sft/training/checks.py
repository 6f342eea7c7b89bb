"""What is refused before anything loads: a recipe, and a recipe with its launch and hardware.

Every function `..._faults` yields its faults, each in one line: what is wrong, where, and what to do instead. The
first one is raised as a `UserError`.
"""

import importlib.util
import itertools
import json
import netrc
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sft.common.command import UserError
from sft.common.hub import is_id, pinned
from sft.common.models import cpu_has_bf16
from sft.training import hardware as machines
from sft.training.config import AUTO, Settings
from sft.training.launch import Launch
from sft.training.values import value_faults

# Values of `report_to` that are names of packages.
TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow")
# What an evaluation measures (`DevAccuracyCallback` in callbacks.py).
METRICS = ("loss", "mcq_accuracy", "mcq_accuracy_low", "mcq_accuracy_high")
# Implementations of attention, and the packages of which each needs one; any other name is a kernel on the Hub.
ATTENTION = {
    **dict.fromkeys(("eager", "sdpa", "flex_attention"), ()),
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
    "flash_attention_4": ("flash_attn", "kernels"),
}


def check_all(settings: Settings, launch: Launch, hardware: machines.Hardware) -> None:
    """Make all checks that need neither model nor data; raises `UserError` for the first fault."""
    check_recipe(settings)
    check_launch(settings, launch)
    raise_first(hardware_faults(settings, launch, hardware))


def check_recipe(settings: Settings) -> None:
    """Refuse settings that are wrong on any machine."""
    rules = (value_faults, base_model_faults, publishing_faults, method_faults, selection_faults, option_faults)
    raise_first(itertools.chain.from_iterable(faults(settings) for faults in rules))


def check_launch(settings: Settings, launch: Launch) -> None:
    """Refuse a recipe and a launch file that contradict one another."""
    raise_first(launch_faults(settings, launch))


def raise_first(faults: Iterator[str]) -> None:
    if fault := next(faults, None):
        raise UserError(fault)


def as_dict(value: Any) -> dict:
    """A mapping that the recipe gave, which its parser carries as JSON text."""
    return json.loads(value) if isinstance(value, str) else value or {}


def on_cpu(settings: Settings, launch: Launch) -> bool:
    """Whether recipe or launch file ask for the CPU."""
    return settings.use_cpu or launch.use_cpu


def for_this_cpu(settings: Settings, launch: Launch) -> Settings:
    """These settings in float32, where they ask for bfloat16 on a CPU that has no instructions for it."""
    if not on_cpu(settings, launch) or settings.precision != "bf16" or cpu_has_bf16():
        return settings
    return settings.with_values({"bf16": False, "dtype": "float32"}, "this CPU has no bfloat16 instructions")


def hardware_of(settings: Settings, launch: Launch, gpu: str | None = None) -> machines.Hardware:
    """The GPUs of this machine, or of one with GPUs of the model `gpu`; none for a run on the CPU."""
    if on_cpu(settings, launch):
        return machines.Hardware()
    return machines.planned_hardware(gpu, launch.processes // launch.machines) if gpu else machines.this_machine()


def base_model_faults(settings: Settings) -> Iterator[str]:
    """Paths that are not set; a base model whose revision, type or code the recipe's own keys do not decide."""
    for key in ("model_name_or_path", "dataset_name", "output_dir"):
        if not settings.values[key]:
            yield f"{key} is not set: name it in the recipe or pass --{key}"
    name, revision = pinned(settings.model_name_or_path)
    if name != settings.model_name_or_path:
        yield f"model_name_or_path {name}@{revision}: write the revision as model_revision: {revision}"
    if misplaced := as_dict(settings.model_init_kwargs).keys() - {"use_kernels", "kernel_config", "use_cache"}:
        yield (
            f"model_init_kwargs sets {', '.join(sorted(misplaced))}: plan and checks would be of another model. "
            "dtype, attn_implementation, model_revision and load_in_4bit are keys of the recipe, code from model "
            "repositories is never run, and a token in a recipe is a token lost"
        )
    if Path(settings.output_dir).is_file():
        yield f"output_dir {settings.output_dir} is a file: name a folder"
    if settings.dtype == "auto":
        yield "dtype auto is the type stored with the weights, which differs: write bfloat16, float16 or float32"


def publishing_faults(settings: Settings) -> Iterator[str]:
    """A run whose model could not be published in the end."""
    if settings.hub_model_id and not settings.push_to_hub:
        yield "hub_model_id says where to publish, and push_to_hub is off: set push_to_hub: true"
    if settings.push_to_hub and not is_id(settings.hub_model_id or ""):
        yield f"push_to_hub: set hub_model_id: OWNER/NAME (it is {settings.hub_model_id})"
    if settings.push_to_hub and Path(settings.model_name_or_path).exists():
        yield (
            f"push_to_hub: model_name_or_path {settings.model_name_or_path} is a folder, which nobody else can load: "
            "name the model on the Hub, or publish afterwards with sft/publish.py --base_model"
        )


def method_faults(settings: Settings) -> Iterator[str]:
    """Data, quantisation, adapters, packing and precision that do not go together."""
    split, weights, recipes = (
        settings.dataset_train_split,
        settings.quantised,
        replace(settings, stored=None).quantised,
    )
    if split.startswith("test"):
        yield f"dataset_train_split {split} would train on the test questions: use train"
    if settings.load_in_8bit and settings.load_in_4bit:
        yield "load_in_8bit and load_in_4bit are both on: choose one"
    if weights and not settings.use_peft:
        other = "a model that is not stored quantised" if settings.stored else "recipes/pmcvqa_full_zero3.yaml (bf16)"
        yield f"{weights} weights cannot be trained: set use_peft: true, or use {other}"
    if settings.stored and recipes and recipes != settings.stored:
        yield (
            f"{settings.model} is stored quantised ({settings.stored}), and the recipe asks for {recipes}: pass "
            f"--load_in_{recipes.replace('-', '')} no"
        )
    if settings.use_peft and "lm_head" in (settings.lora_target_modules or ()):
        yield "lora_target_modules: TRL's loss does not train an adapter on lm_head: leave it out"
    if settings.lora_task_type != "CAUSAL_LM":
        yield f"lora_task_type {settings.lora_task_type}: a language model is trained here: leave it out"
    if settings.packing and settings.max_length is None:
        yield "packing needs max_length, the tokens of a pack: set it, or packing: false"
    if settings.packing and settings.packing_strategy == "wrapped":
        yield "packing_strategy wrapped lets questions read one another: use bfd"
    if settings.bf16 and settings.fp16:
        yield "bf16 and fp16 are both on: choose one (bf16 where the GPU has it)"
    precision, dtype = settings.precision, settings.dtype
    if (precision, dtype) in (("bf16", "float16"), ("fp16", "bfloat16")):
        right = "bfloat16" if settings.bf16 else "float16"
        yield f"{precision}: true with dtype {dtype} mixes two 16-bit types: set dtype {right}"


def selection_faults(settings: Settings) -> Iterator[str]:
    """Settings under which the best checkpoint could not be measured honestly, or kept."""
    saving, evaluating = settings.save_strategy != "no", settings.eval_strategy != "no"
    split, limit, metric = settings.dataset_test_split, settings.save_total_limit, settings.metric_for_best_model
    questions = settings.mcq_eval_samples
    if evaluating and split == settings.dataset_train_split:
        yield f"dataset_test_split {split} would choose the checkpoint by the rows that it trains on: use dev"
    if evaluating and split.startswith("test"):
        yield f"dataset_test_split {split} would choose the checkpoint by the test questions: use dev"
    if saving and limit is None:
        yield "save_total_limit is not set, and checkpoints would fill the disk: set it to 3"
    if saving and limit < 2:
        yield f"save_total_limit {limit} deletes a checkpoint before the next is complete: set it to 2 or more"
    if settings.eval_on_start and not evaluating:
        yield "eval_on_start needs evaluations, and eval_strategy is no: set it to steps or epoch, or this to false"
    if questions and not evaluating:
        yield "mcq_eval_samples needs evaluations, and eval_strategy is no: set it to steps or epoch"
    choosing = settings.load_best_model_at_end or settings.save_strategy == "best"
    choosing = choosing or settings.lr_scheduler_type == "reduce_lr_on_plateau"
    name = (metric or "loss").removeprefix("eval_")
    if choosing and name.startswith("mcq_accuracy") and not questions:
        yield f"metric_for_best_model {metric}: set mcq_eval_samples, the dev questions to ask"
    if choosing and name not in METRICS:
        yield f"metric_for_best_model {metric} is measured by no evaluation here: use eval_mcq_accuracy or eval_loss"
    if choosing and settings.greater_is_better is (name == "loss"):
        yield f"metric_for_best_model {metric} keeps the worst checkpoint with this greater_is_better: leave that out"
    if not settings.load_best_model_at_end or settings.save_strategy == "best":
        return
    if settings.eval_strategy != settings.save_strategy:
        yield "load_best_model_at_end: eval_strategy and save_strategy differ: set both to steps, or to epoch"
    every, save = settings.eval_steps or settings.logging_steps, settings.save_steps
    multiple = (save < 1) == (every < 1) and save >= every and abs(save / every - round(save / every)) < 1e-9
    if settings.eval_strategy == "steps" and not multiple:
        yield f"load_best_model_at_end: save_steps {save:g} is not a multiple of eval_steps {every:g}: make them equal"


def option_faults(settings: Settings) -> Iterator[str]:
    """Options of trials, resuming and logging that miss what they need."""
    if settings.dry_run and settings.probe_steps:
        yield "dry_run and probe_steps are both on: choose one"
    if settings.price_per_hour is not None and not settings.probe_steps:
        yield "price_per_hour is used by the probe's report: pass --probe_steps 20 as well"
    if settings.resume_weights_only and settings.resume_from_checkpoint in (None, *AUTO):
        yield "resume_weights_only needs the checkpoint: pass --resume_from_checkpoint OLD/checkpoint-500"
    for tracker in TRACKERS:
        if tracker in (settings.report_to or ()) and importlib.util.find_spec(tracker) is None:
            yield f"report_to {tracker}: the package is not installed: pip install {tracker}"
    if "wandb" in (settings.report_to or ()) and not settings.is_trial and not has_wandb_login():
        yield "report_to wandb: there is no login here: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
    attention = settings.attn_implementation
    if attention and attention not in ATTENTION and not is_id(re.split("[@:]", attention)[0]):
        yield f"attn_implementation {attention} is not known: leave it out, or use one of {', '.join(ATTENTION)}"
    packages = ATTENTION.get(attention, ("kernels",)) if attention else ()
    if packages and not any(map(importlib.util.find_spec, packages)):
        names = " or ".join(packages)
        yield f"attn_implementation {attention} needs the package {names}, which is not here: leave it out"


def has_wandb_login() -> bool:
    """Whether Weights & Biases can log without asking: a key, a line in ~/.netrc, or no network wanted."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return bool(
            netrc.netrc(file).authenticators(
                urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
            )
        )
    except (OSError, netrc.NetrcParseError):
        return False


def launch_faults(settings: Settings, launch: Launch) -> Iterator[str]:
    """A recipe that cannot be launched so."""
    if launch.kind == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        yield "this launch file needs DeepSpeed: pip install -c constraints.txt -e '.[deepspeed]'"
    other = ", of a model that is not stored quantised" if settings.stored else ""
    if settings.quantised and launch.shards_weights:
        yield (
            f"{settings.quantised} weights cannot be divided among GPUs ({launch.name}): training gives errors or a "
            f"loss near 13. Use recipes/pmcvqa_zero3.yaml (bf16 LoRA{other}), or accelerate_configs/ddp.yaml"
        )
    launched, wanted = launch.precision, settings.precision
    if launched not in ("no", wanted):
        yield f"the launch file says mixed_precision {launched}, the recipe {wanted}: leave it out of the launch file"
    for key, fixed in (("gradient_accumulation_steps", launch.accumulation), ("max_grad_norm", launch.clipping)):
        wanted = settings.values[key]
        if fixed not in (None, wanted):
            yield f"the launch file fixes {key} at {fixed:g}, the recipe at {wanted:g}: write auto there"
    reentrant = as_dict(settings.activation_checkpointing_kwargs).get("use_reentrant")
    if launch.zero_stage == 3 and settings.use_peft and settings.activation_checkpointing and reentrant is not True:
        yield (
            "LoRA under ZeRO-3 recomputes activations correctly only with activation_checkpointing_kwargs: "
            "{use_reentrant: true}: add it, as recipes/pmcvqa_zero3.yaml does"
        )
    if not launch.saves_full_weights:
        yield "ZeRO-3 would save only parts of the weights: set zero3_save_16bit_model: true in the launch file"
    if on_cpu(settings, launch) and launch.kind in ("deepspeed", "fsdp"):
        yield f"use_cpu: accelerate silently runs DDP, not {launch.name}: leave use_cpu out, or launch with ddp"
    full_16bit = not settings.use_peft and launch.kind in ("none", "ddp")
    if settings.fp16 and settings.quantised and launch.kind == "deepspeed":
        yield (
            f"fp16 with {settings.quantised} weights needs adapters in float32, and DeepSpeed would hold them in "
            "fp16: launch recipes/pmcvqa_16gb.yaml with accelerate_configs/single_gpu.yaml or ddp.yaml"
        )
    if full_16bit and settings.dtype == "float16" and settings.fp16:
        yield "fp16: true cannot train float16 weights, whose gradients it scales: set dtype float32"
    if full_16bit and settings.dtype == "bfloat16":
        yield (
            "a full fine-tune of bfloat16 weights loses every update below 1/256 of a weight: set dtype float32, or "
            "use recipes/pmcvqa_full_zero3.yaml, where DeepSpeed keeps float32 copies"
        )


def hardware_faults(settings: Settings, launch: Launch, hardware: machines.Hardware) -> Iterator[str]:
    """What this machine cannot do."""
    here, count = launch.processes // launch.machines, hardware.count
    sharded = launch.kind in ("deepspeed", "fsdp")
    if on_cpu(settings, launch):
        if settings.fp16:
            yield "fp16 needs a GPU: on a CPU use --bf16 yes --fp16 no --dtype bfloat16"
        if ATTENTION.get(settings.attn_implementation or "sdpa", ("kernels",)):
            yield f"attn_implementation {settings.attn_implementation} needs a GPU: on a CPU leave it out"
    elif not count:
        if settings.precision != "no" or launch.kind == "fsdp":
            yield (
                "there is no GPU here: add --use_cpu yes to train on the CPU"
                f"{', launched with accelerate_configs/cpu.yaml' if sharded else ''}, or plan for another machine "
                "with python sft/preflight.py RECIPE --gpu A100-80GB"
            )
        if launch.kind == "deepspeed" and settings.ddp_backend != "gloo":
            yield "DeepSpeed on a CPU finds its other processes only through gloo: pass --ddp_backend gloo"
    elif launch.kind == "none" and here == 1 and count > 1:
        yield (
            f"{count} GPUs and one process: start one process a GPU with accelerate launch --config_file "
            f"accelerate_configs/ddp.yaml --num_processes {count} sft/run.py {settings.recipe}, or choose one with "
            "CUDA_VISIBLE_DEVICES=0"
        )
    elif here > count:
        yield f"the launch file starts {here} processes on a machine with {count} GPU(s): pass --num_processes {count}"
    elif settings.bf16 and hardware.capability < (8, 0):
        yield (
            f"{hardware.gpu} computes no bf16 (compute capability {'.'.join(map(str, hardware.capability))}, bf16 "
            "needs 8.0): use recipes/pmcvqa_16gb.yaml, or --bf16 no --fp16 yes --dtype float16"
        )
