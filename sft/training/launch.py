"""How the training processes are started: the variables that `accelerate launch` and torchrun set, as a `Launch`.

A launch file (accelerate_configs/*.yaml) is read as the variables that it would set.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sft.common.command import UserError, shipped

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
    saves_full_weights: bool = True  # False: ZeRO-3 that saves only its shards
    accumulation: float | None = None  # gradient accumulation, where the launch file fixes it
    clipping: float | None = None  # of gradients, likewise
    fsdp_version: int = 0
    compiler: str = "no"  # torch.compile's backend, where the launch file turns it on

    @property
    def name(self) -> str:
        deepspeed = f"DeepSpeed ZeRO-{self.zero_stage}{' with offload' if self.offload else ''}"
        fsdp = f"FSDP{self.fsdp_version}"
        way = {"none": "one process", "ddp": "DDP", "deepspeed": deepspeed, "fsdp": fsdp}[self.kind]
        return way if self.processes == 1 and self.kind == "none" else f"{way}, {self.processes} processes"

    @property
    def shards_weights(self) -> bool:
        """Whether each process holds only its part of the weights."""
        return self.kind == "fsdp" or self.zero_stage == 3


def read_launch_file(path: Path) -> Launch:
    """The `Launch` that a launch file makes; raises `UserError` if it cannot be read, or is of an unknown kind."""
    try:
        return current_launch(environment_of(yaml.safe_load(shipped(path).read_text(encoding="utf-8"))))
    except OSError as error:
        raise UserError(f"launch file {path}: {error.strerror}: {ADVICE}") from error
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"launch file {path} is not one that this project knows ({error}): {ADVICE}") from error


def environment_of(config: dict[str, Any]) -> dict[str, str]:
    """The variables that `accelerate launch` and torchrun set for a parsed launch file."""
    kind = str(config["distributed_type"] or "NO")  # YAML reads an unquoted NO as false
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU", "DEEPSPEED", "FSDP"):
        raise ValueError(f"distributed_type {kind}")
    processes, machines = (int(config.get(key, 1)) for key in ("num_processes", "num_machines"))
    if not 1 <= machines <= processes:
        raise ValueError(f"num_processes {processes} on num_machines {machines}")
    processes = processes if kind != "NO" else 1
    deepspeed, fsdp = config.get("deepspeed_config") or {}, config.get("fsdp_config") or {}
    variables = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": max(1, processes // machines),
        "ACCELERATE_MIXED_PRECISION": config.get("mixed_precision"),
        "ACCELERATE_USE_CPU": config.get("use_cpu"),
        "ACCELERATE_DYNAMO_BACKEND": (config.get("dynamo_config") or {}).get("dynamo_backend"),
        "ACCELERATE_USE_DEEPSPEED": kind == "DEEPSPEED",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": deepspeed.get("zero_stage"),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": deepspeed.get("offload_optimizer_device"),
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": deepspeed.get("offload_param_device"),
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": deepspeed.get("zero3_save_16bit_model"),
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": deepspeed.get("deepspeed_config_file"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": deepspeed.get("gradient_accumulation_steps"),
        "ACCELERATE_GRADIENT_CLIPPING": deepspeed.get("gradient_clipping"),
        "ACCELERATE_USE_FSDP": kind == "FSDP",
        "FSDP_VERSION": fsdp.get("fsdp_version"),
        "FSDP_OFFLOAD_PARAMS": fsdp.get("fsdp_offload_params"),
    }
    return {name: str(value) for name, value in variables.items() if value is not None}


def deepspeed_variables(file: str) -> dict[str, str]:
    """The variables that a DeepSpeed JSON file stands for; raises `UserError` if it cannot be read."""
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        zero = config.get("zero_optimization") or {}
        variables = {
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": int(zero.get("stage", 0)),
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (zero.get("offload_optimizer") or {}).get("device"),
            "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": (zero.get("offload_param") or {}).get("device"),
            "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": zero.get("stage3_gather_16bit_weights_on_model_save"),
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": config.get("gradient_accumulation_steps"),
            "ACCELERATE_GRADIENT_CLIPPING": config.get("gradient_clipping"),
        }
        for precision in ("fp16", "bf16"):
            if (config.get(precision) or {}).get("enabled") is True:
                variables["ACCELERATE_MIXED_PRECISION"] = precision
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"DeepSpeed configuration {file} cannot be read ({type(error).__name__})") from error
    return {name: str(value) for name, value in variables.items()}


def current_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """The `Launch` that started this process. To be called before transformers adds to the environment."""

    def is_set(name: str) -> bool:
        return environment.get(name, "false").lower() in ("true", "1", "yes")

    def number(name: str) -> float | None:
        value = environment.get(name, "none").lower()
        return None if value in ("none", "auto") else float(value)

    deepspeed = is_set("ACCELERATE_USE_DEEPSPEED")
    fsdp = is_set("ACCELERATE_USE_FSDP") and not deepspeed
    if deepspeed and (file := environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")):
        environment = {**environment, **deepspeed_variables(file)}  # the file decides
    processes = int(environment.get("WORLD_SIZE") or 1)
    stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2)) if deepspeed else 0
    devices = [
        environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE", "none") for part in ("OPTIMIZER", "PARAM")
    ]
    return Launch(
        kind="deepspeed" if deepspeed else "fsdp" if fsdp else "ddp" if processes > 1 else "none",
        processes=processes,
        machines=max(1, processes // int(environment.get("LOCAL_WORLD_SIZE", processes))),
        precision=environment.get("ACCELERATE_MIXED_PRECISION", "no"),
        use_cpu=is_set("ACCELERATE_USE_CPU"),
        zero_stage=stage,
        offload=is_set("FSDP_OFFLOAD_PARAMS") if fsdp else any(device.lower() != "none" for device in devices),
        saves_full_weights=stage < 3 or is_set("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"),
        accumulation=number("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") if deepspeed else None,
        clipping=number("ACCELERATE_GRADIENT_CLIPPING") if deepspeed else None,
        fsdp_version=int(environment.get("FSDP_VERSION", 1)) if fsdp else 0,
        compiler=environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower(),
    )
