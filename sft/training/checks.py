"""What is refused before anything loads: a recipe, and a recipe with its launch and hardware.

Every `check_` function raises `UserError` for the first fault: one line, what is wrong, where, and what to do instead.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from sft.common.command import UserError
from sft.common.hub import is_id, pinned
from sft.common.models import cpu_has_bf16
from sft.training.config import AUTO, Settings
from sft.training.hardware import Hardware
from sft.training.launch import Launch

# Why float32 instead of the recipe's bfloat16 (`for_this_cpu`).
NO_BF16 = "this CPU has no bfloat16 instructions"
# Values of `report_to` that are names of packages.
TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow")


def check_recipe(settings: Settings) -> None:
    """Refuse settings that are wrong on any machine."""
    for key in ("model_name_or_path", "dataset_name", "output_dir"):
        if not settings.values[key]:
            raise UserError(f"{key} is not set: name it in the recipe or pass --{key}")
    check_base_model(settings)
    check_publishing(settings)
    check_method(settings)
    check_selection(settings)
    if settings.probe_steps < 0 or (settings.dry_run and settings.probe_steps):
        raise UserError(f"probe_steps {settings.probe_steps}: give a positive number, without dry_run")
    if settings.price_per_hour is not None and not settings.probe_steps:
        raise UserError("price_per_hour is used by the probe's report: pass --probe_steps 20 as well")
    if settings.resume_weights_only and settings.resume_from_checkpoint in (None, *AUTO):
        raise UserError("resume_weights_only needs the checkpoint: pass --resume_from_checkpoint OLD/checkpoint-500")
    for tracker in settings.report_to if isinstance(settings.report_to, list) else [settings.report_to or "none"]:
        if tracker in TRACKERS and importlib.util.find_spec(tracker) is None:
            raise UserError(f"report_to {tracker}: the package is not installed: pip install {tracker}")


def check_base_model(settings: Settings) -> None:
    """Refuse a base model whose revision, types or code would not be those that the recipe's own keys name."""
    name, revision = pinned(settings.model_name_or_path)
    if name != settings.model_name_or_path:
        raise UserError(
            f"model_name_or_path {settings.model_name_or_path}: write the revision as model_revision: {revision}, and "
            f"model_name_or_path: {name}"
        )
    elsewhere = {"trust_remote_code", "use_safetensors", "revision", "token", "use_auth_token"}
    if misplaced := elsewhere & as_dict(settings.model_init_kwargs).keys():
        raise UserError(
            f"model_init_kwargs sets {', '.join(sorted(misplaced))}: code from model repositories is never run, "
            "weights are read from safetensors alone, the revision is model_revision, and a token in a recipe is a "
            "token lost"
        )
    if settings.dtype == "auto":
        raise UserError(
            "dtype auto takes the type stored with the weights, which differs between models: write bfloat16, "
            "float16 or float32"
        )


def check_method(settings: Settings) -> None:
    """Refuse data, quantisation, adapters, packing and precision that do not go together."""
    if settings.dataset_train_split.startswith("test"):
        raise UserError(
            f"dataset_train_split {settings.dataset_train_split} would train on the test questions: use train"
        )
    if settings.load_in_8bit and settings.load_in_4bit:
        raise UserError("load_in_8bit and load_in_4bit are both on: choose one")
    if settings.quantised and not settings.use_peft:
        raise UserError(
            f"all weights of a model in {settings.quantised} cannot be trained: set use_peft: true, or use "
            "recipes/pmcvqa_full_zero3.yaml, which loads it in bf16"
        )
    targets = settings.lora_target_modules or []
    if settings.use_peft and "lm_head" in ([targets] if isinstance(targets, str) else targets):
        raise UserError("lora_target_modules: TRL's loss does not train an adapter on lm_head: leave it out")
    if settings.packing and settings.packing_strategy == "wrapped":
        raise UserError("packing_strategy wrapped lets questions read one another: use bfd")
    if settings.bf16 and settings.fp16:
        raise UserError("bf16 and fp16 are both on: choose one (bf16 where the GPU has it)")
    if (settings.precision, settings.dtype) in (("bf16", "float16"), ("fp16", "bfloat16")):
        raise UserError(
            f"{settings.precision}: true with dtype {settings.dtype} mixes two 16-bit types: set dtype "
            f"{'bfloat16' if settings.bf16 else 'float16'}"
        )


def check_publishing(settings: Settings) -> None:
    """Refuse a run whose model could not be published in the end."""
    if settings.hub_model_id and not settings.push_to_hub:
        raise UserError("hub_model_id says where to publish, and push_to_hub is off: set push_to_hub: true")
    if not settings.push_to_hub:
        return
    if not is_id(settings.hub_model_id or ""):
        raise UserError(f"push_to_hub: set hub_model_id: OWNER/NAME (it is {settings.hub_model_id})")
    if Path(settings.model_name_or_path).exists():
        raise UserError(
            f"push_to_hub: model_name_or_path {settings.model_name_or_path} is a folder, which nobody else can load: "
            "name the model on the Hub, or publish afterwards with sft/publish.py --base_model"
        )


def check_selection(settings: Settings) -> None:
    """Refuse settings under which the best checkpoint could not be measured honestly, or kept."""
    saving, evaluating = settings.save_strategy != "no", settings.eval_strategy != "no"
    if evaluating and settings.dataset_test_split.startswith("test"):
        raise UserError(
            f"dataset_test_split {settings.dataset_test_split} would choose the checkpoint by the test questions: "
            "use dev, and read the test split with sft/evaluate.py"
        )
    if saving and settings.save_total_limit is None:
        raise UserError("save_total_limit is not set, and checkpoints would fill the disk: set it to 3")
    if saving and settings.save_total_limit < 2:
        raise UserError(
            f"save_total_limit {settings.save_total_limit} deletes the old checkpoint before the new one is known to "
            "be complete: set it to 2 or more"
        )
    metric = settings.metric_for_best_model
    if settings.mcq_eval_samples < 0:
        raise UserError(f"mcq_eval_samples {settings.mcq_eval_samples}: give a number of dev questions, or 0")
    if settings.mcq_eval_samples and not evaluating:
        raise UserError("mcq_eval_samples needs evaluations, and eval_strategy is no: set it to steps or epoch")
    choosing = settings.load_best_model_at_end or settings.save_strategy == "best"
    if choosing and metric == "eval_mcq_accuracy" and not settings.mcq_eval_samples:
        raise UserError("metric_for_best_model eval_mcq_accuracy: set mcq_eval_samples, the dev questions to ask")
    if choosing and metric and metric.endswith("accuracy") and settings.greater_is_better is False:
        raise UserError(f"metric_for_best_model {metric} with greater_is_better: false keeps the worst checkpoint")
    if not settings.load_best_model_at_end or settings.save_strategy == "best":
        return
    if settings.eval_strategy != settings.save_strategy:
        raise UserError(
            f"load_best_model_at_end: eval_strategy {settings.eval_strategy} and save_strategy "
            f"{settings.save_strategy} differ, so the best model would not be on disk: set both to steps, or to epoch"
        )
    if settings.eval_strategy == "steps":
        every = settings.eval_steps or settings.logging_steps
        ratio = settings.save_steps / every
        if (settings.save_steps < 1) != (every < 1) or abs(ratio - round(ratio)) > 1e-9 or ratio < 1:
            raise UserError(
                f"load_best_model_at_end: save_steps {settings.save_steps:g} is not a multiple of eval_steps "
                f"{every:g}, so checkpoints would be chosen by another step's score: make them equal"
            )


def on_cpu(settings: Settings, launch: Launch) -> bool:
    """Whether recipe or launch file ask for the CPU."""
    return settings.use_cpu or launch.use_cpu


def check_launch(settings: Settings, launch: Launch) -> None:
    """Refuse a recipe that cannot be launched so."""
    if launch.kind == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise UserError("this launch file needs DeepSpeed: pip install -c constraints.txt -e '.[deepspeed]'")
    if settings.quantised and launch.shards_weights:
        raise UserError(
            f"{settings.quantised} weights cannot be divided among GPUs ({launch.name}): training gives errors or a "
            "loss near 13. Use recipes/pmcvqa_zero3.yaml (bf16 LoRA), or launch this recipe with "
            "accelerate_configs/ddp.yaml"
        )
    if launch.precision not in ("no", settings.precision):
        raise UserError(
            f"the launch file says mixed_precision {launch.precision}, the recipe {settings.precision}: leave "
            "mixed_precision out of the launch file, as accelerate_configs/*.yaml do; the recipe decides"
        )
    for key, fixed in (("gradient_accumulation_steps", launch.accumulation), ("max_grad_norm", launch.clipping)):
        if fixed is not None and fixed != settings.values[key]:
            raise UserError(
                f"the launch file fixes {key} at {fixed:g}, the recipe at {settings.values[key]:g}: write auto in the "
                "launch file, as accelerate_configs/zero2.yaml does"
            )
    if settings.fp16 and settings.quantised and launch.kind == "deepspeed":
        raise UserError(
            f"fp16 with {settings.quantised} weights needs adapters in float32, and DeepSpeed would hold them in "
            "fp16: launch recipes/pmcvqa_16gb.yaml with accelerate_configs/single_gpu.yaml or ddp.yaml"
        )
    if settings.fp16 and not settings.use_peft and settings.dtype == "float16" and launch.kind in ("none", "ddp"):
        raise UserError("fp16: true cannot train float16 weights, whose gradients it scales: set dtype float32")
    if not settings.use_peft and settings.dtype == "bfloat16" and launch.kind in ("none", "ddp"):
        raise UserError(
            "a full fine-tune of bfloat16 weights loses every update below 1/256 of a weight: set dtype float32, or "
            "use recipes/pmcvqa_full_zero3.yaml, where DeepSpeed keeps float32 copies"
        )
    reentrant = as_dict(settings.activation_checkpointing_kwargs).get("use_reentrant")
    if launch.zero_stage == 3 and settings.use_peft and settings.activation_checkpointing and reentrant is not True:
        raise UserError(
            "LoRA under ZeRO-3 recomputes activations correctly only with activation_checkpointing_kwargs: "
            "{use_reentrant: true}: add it, as recipes/pmcvqa_zero3.yaml does"
        )
    if not launch.whole_checkpoints:
        raise UserError(
            "ZeRO-3 would save each process's part of the weights: set zero3_save_16bit_model: true in the launch file"
        )
    if on_cpu(settings, launch) and launch.kind in ("deepspeed", "fsdp"):
        raise UserError(
            f"use_cpu: accelerate silently runs DDP, not {launch.name}: leave use_cpu out, or launch with ddp"
        )


def for_this_cpu(settings: Settings, launch: Launch) -> Settings:
    """These settings in float32, where they ask for bfloat16 on a CPU that has no instructions for it."""
    if not on_cpu(settings, launch) or settings.precision != "bf16" or cpu_has_bf16():
        return settings
    return settings.with_values({"bf16": False, "dtype": "float32"}, NO_BF16)


def as_dict(value: Any) -> dict:
    """A mapping that the recipe gave, which its parser carries as JSON text."""
    return json.loads(value) if isinstance(value, str) else value or {}


def check_hardware(settings: Settings, launch: Launch, hardware: Hardware) -> None:
    """Refuse what these GPUs cannot do."""
    if on_cpu(settings, launch):
        if settings.fp16:
            raise UserError("fp16 needs a GPU: on a CPU use --bf16 yes --fp16 no --dtype bfloat16")
        return
    if not hardware.count:
        if settings.precision != "no" or launch.kind == "fsdp":
            raise UserError(
                "there is no GPU here: add --use_cpu yes to train on the CPU"
                + (", launched with accelerate_configs/cpu.yaml" if launch.kind in ("deepspeed", "fsdp") else "")
                + ", or plan for another machine with python sft/preflight.py RECIPE --gpu A100-80GB"
            )
        if launch.kind == "deepspeed" and settings.ddp_backend != "gloo":
            raise UserError("DeepSpeed on a CPU finds its other processes only through gloo: pass --ddp_backend gloo")
        return
    here = launch.processes // launch.machines
    if here == 1 and hardware.count > 1 and launch.kind == "none":
        raise UserError(
            f"{hardware.count} GPUs and one process: start one process a GPU with accelerate launch --config_file "
            f"accelerate_configs/ddp.yaml --num_processes {hardware.count} sft/run.py {settings.recipe}, or show this "
            "process one GPU with CUDA_VISIBLE_DEVICES=0"
        )
    if here > hardware.count:
        raise UserError(
            f"the launch file starts {here} processes on a machine with {hardware.count} GPU(s): pass "
            f"--num_processes {hardware.count} to accelerate launch"
        )
    if settings.bf16 and hardware.capability < (8, 0):
        raise UserError(
            f"{hardware.gpu} computes no bf16 (compute capability {'.'.join(map(str, hardware.capability))}, bf16 "
            "needs 8.0): use recipes/pmcvqa_16gb.yaml, or --bf16 no --fp16 yes --dtype float16"
        )


def check_all(settings: Settings, launch: Launch, hardware: Hardware) -> None:
    """Make all checks that need neither model nor data."""
    check_recipe(settings)
    check_launch(settings, launch)
    check_hardware(settings, launch, hardware)
