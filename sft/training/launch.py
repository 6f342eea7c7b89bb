"""How the training processes are started: read from a launch file, or from what the launcher put in the environment.

In: accelerate_configs/*.yaml, or the variables that `accelerate launch` and `torchrun` set. Out: `Launch`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sft.common.command import UserError

ADVICE = "choose one of accelerate_configs/*.yaml"


@dataclass(frozen=True)
class Launch:
    """What a launcher decides. `kind` is accelerate's distributed type in one word: none, ddp, deepspeed or fsdp."""

    kind: str = "none"
    processes: int = 1
    machines: int = 1
    precision: str = "no"  # `no` leaves it to the recipe
    use_cpu: bool = False
    zero_stage: int = 0
    offload: bool = False
    whole_checkpoints: bool = True  # False: ZeRO-3 that saves only its shards
    accumulation: int | None = None  # gradient accumulation, where the launch file fixes it
    clipping: float | None = None  # of gradients, likewise
    fsdp_version: int = 0

    @property
    def name(self) -> str:
        """The way of launching, as people call it."""
        way = {"none": "one process", "ddp": "DDP", "fsdp": f"FSDP{self.fsdp_version}"}.get(self.kind)
        way = way or f"DeepSpeed ZeRO-{self.zero_stage}{' with offload' if self.offload else ''}"
        return way if self.processes == 1 and self.kind == "none" else f"{way}, {self.processes} processes"

    @property
    def shards_weights(self) -> bool:
        """Whether each process holds only its part of the weights."""
        return self.kind == "fsdp" or self.zero_stage == 3


def _number(value: Any) -> float | None:
    """A setting that a launch file fixes, or None where it says nothing or ``auto``."""
    return None if str(value).lower() in ("none", "auto") else float(value)


def _deepspeed(
    stage: Any, offloads: list[Any], whole: bool, accumulation: Any, clipping: Any, file: str | None
) -> dict[str, Any]:
    """The DeepSpeed part of a `Launch`; a DeepSpeed JSON file, where one is named, is what counts."""
    found = {"zero_stage": int(stage), "offload": any(str(o) not in ("none", "None") for o in offloads)}
    found |= {"whole_checkpoints": whole or found["zero_stage"] < 3}
    found |= {"accumulation": _number(accumulation), "clipping": _number(clipping)}
    if not file:
        return found
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        zero = config.get("zero_optimization") or {}
        stage = int(zero.get("stage", 0))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"DeepSpeed configuration {file} cannot be read ({type(error).__name__})") from error
    precision = {name for name in ("bf16", "fp16") if (config.get(name) or {}).get("enabled") is True}
    return {
        "zero_stage": stage,
        "offload": any((zero[key] or {}).get("device", "none") != "none" for key in zero if key.startswith("offload")),
        "whole_checkpoints": stage < 3 or bool(zero.get("stage3_gather_16bit_weights_on_model_save")),
        "accumulation": _number(config.get("gradient_accumulation_steps")),
        "clipping": _number(config.get("gradient_clipping")),
        **({"precision": precision.pop()} if precision else {}),
    }


def read_launch_file(path: Path) -> Launch:
    """The `Launch` that ``accelerate launch --config_file path`` makes.

    Raises:
        UserError: no such file, not a launch file, or a way of launching that this project does not know.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = {
            "NO": "none",
            "MULTI_GPU": "ddp",
            "MULTI_CPU": "ddp",
            "DEEPSPEED": "deepspeed",
            "FSDP": "fsdp",
        }[str(config["distributed_type"])]
        processes = int(config.get("num_processes", 1))
    except OSError as error:
        raise UserError(f"launch file {path}: {error.strerror}: {ADVICE}") from error
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"launch file {path} is not one that this project knows ({error}): {ADVICE}") from error
    try:
        return _from_config(config, kind, processes)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"launch file {path} is not one that this project knows ({error}): {ADVICE}") from error


def _from_config(config: dict[str, Any], kind: str, processes: int) -> Launch:
    """The `Launch` of a parsed launch file."""
    deepspeed, fsdp = config.get("deepspeed_config") or {}, config.get("fsdp_config") or {}
    extra = {}
    if kind == "deepspeed":
        extra = _deepspeed(
            deepspeed.get("zero_stage", 2),
            [deepspeed.get(f"offload_{what}_device", "none") for what in ("optimizer", "param")],
            bool(deepspeed.get("zero3_save_16bit_model")),
            deepspeed.get("gradient_accumulation_steps"),
            deepspeed.get("gradient_clipping"),
            deepspeed.get("deepspeed_config_file"),
        )
    if kind == "fsdp":
        extra = {"fsdp_version": int(fsdp.get("fsdp_version", 1)), "offload": bool(fsdp.get("fsdp_offload_params"))}
    settings = {
        "kind": kind,
        "processes": processes,
        "machines": int(config.get("num_machines", 1)),
        "precision": str(config.get("mixed_precision") or "no"),
        "use_cpu": bool(config.get("use_cpu", False)),
    }
    return Launch(**{**settings, **extra})


def current_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """The `Launch` that started this process. To be asked before transformers adds to the environment.

    Raises:
        UserError: a DeepSpeed configuration that cannot be read.
    """

    def flag(name: str) -> bool:
        return environment.get(name, "false").lower() in ("true", "1", "yes")

    processes = int(environment.get("WORLD_SIZE", 1))
    settings = {
        "processes": processes,
        "machines": max(1, processes // int(environment.get("LOCAL_WORLD_SIZE", processes))),
        "precision": environment.get("ACCELERATE_MIXED_PRECISION", "no"),
        "use_cpu": flag("ACCELERATE_USE_CPU"),
        "kind": "ddp" if processes > 1 else "none",
    }
    if flag("ACCELERATE_USE_DEEPSPEED"):
        settings["kind"] = "deepspeed"
        settings |= _deepspeed(
            environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"),
            [
                environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none")
                for what in ("OPTIMIZER", "PARAM")
            ],
            flag("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"),
            environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
            environment.get("ACCELERATE_GRADIENT_CLIPPING"),
            environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"),
        )
    elif flag("ACCELERATE_USE_FSDP"):
        settings["kind"] = "fsdp"
        settings |= {
            "fsdp_version": int(environment.get("FSDP_VERSION", 1)),
            "offload": flag("FSDP_OFFLOAD_PARAMS"),
        }
    return Launch(**settings)
