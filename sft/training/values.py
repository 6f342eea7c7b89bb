"""What a single value of a recipe may be, where its type alone admits more: numbers, mappings, keys without effect."""

import dataclasses
import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from sft.training.config import OTHER_NAMES, Settings, argument_classes

# (smallest, largest) of numbers that may not be just any from 0 on.
_FROM_ONE, _SHARE, _PROCESSES = (1, 2**31 - 1), (0, 1 - 1e-9), (0, 1024)
LIMITS = {
    **dict.fromkeys(("max_steps", "local_rank"), (-1, 2**31 - 1)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "global_batch_size"), _FROM_ONE),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "lora_r", "lora_alpha"), _FROM_ONE),
    **dict.fromkeys(("torch_empty_cache_steps", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"), _FROM_ONE),
    **dict.fromkeys(("lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor"), _SHARE),
    "max_length": (1, 2**20),
    "dataset_num_proc": (1, 1024),
    "dataloader_num_workers": _PROCESSES,
    "ddp_timeout": (1, 2**31 - 1),
    "learning_rate": (0, 1),
    "weight_decay": (0, 10),
    "num_train_epochs": (1e-9, 1e6),
}
# Keys whose value is a mapping; in the dataclasses' own types transformers' parser writes str.
MAPPINGS = (
    *("activation_checkpointing_kwargs", "lr_scheduler_kwargs", "model_init_kwargs", "accelerator_config"),
    "chat_template_kwargs",
)
# Keys of TRL that do nothing here, and what does it instead.
NO_EFFECT = {
    "assistant_only_loss": "completion_only_loss trains the answer alone",
    "dataset_kwargs": "tokens are made and checked before SFTTrainer gets them, and packed with packing",
    "dataset_text_field": "the rows that prepare.py writes are messages",
    "dataset_streaming": "every row is checked before the first step",
    "label_names": "the trained tokens are those of the column labels",
    "truncation_mode": "a row that is longer than max_length is refused, and none is cut",
    "ignore_bias_buffers": "ddp_broadcast_buffers: false is the setting of DDP",
}


def value_faults(settings: Settings) -> Iterator[str]:
    """Values that their type admits and nothing can be done with."""
    fields = [field for cls in argument_classes() for field in dataclasses.fields(cls) if field.init]
    for field in fields:
        key, value = field.name, settings.values[field.name]
        if key in OTHER_NAMES or value is None:
            continue
        if key in NO_EFFECT and value != field.default:
            yield f"{key} has no effect here, because {NO_EFFECT[key]}: leave it out"
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = LIMITS.get(key, (0, 2**32 - 1 if isinstance(value, int) else math.inf))
            if not low <= value <= high or math.isinf(value):
                most = "below 1" if (low, high) == _SHARE else f"at most {high:g}"
                yield f"{key} {value}: give a number from {low:g}, " + (most if high < math.inf else "that is finite")
        elif key in MAPPINGS and not _is_mapping(value):
            yield f"{key} {value}: write a mapping, {{name: value}} (on the command line with quotes: JSON)"
    if settings.optim_args:
        yield from _optim_args_faults(settings)


def _optim_args_faults(settings: Settings) -> Iterator[str]:
    """Keys of `optim_args` that the optimizer does not have: transformers ignores them without a word."""
    from transformers import Trainer

    def made(optim_args: str) -> Any:
        args = SimpleNamespace(**{**settings.values, "optim_args": optim_args})
        try:
            return Trainer.get_optimizer_cls_and_kwargs(args)
        except Exception as error:  # whatever the optimizer says of this value
            return repr(error)

    plain = made("")
    if isinstance(plain, str):  # a package or the model is missing, which is said elsewhere
        return
    for part in settings.optim_args.replace(" ", "").split(","):
        key, sign, _ = part.partition("=")
        if not (key and sign) or part.count("=") > 1:
            yield f"optim_args {settings.optim_args}: write key=value, key=value"
        # No default is both, so that a key that is read changes something.
        elif made(f"{key}=0") == made(f"{key}=1") == plain:
            yield f"optim_args: the optimizer {settings.optim} reads no {key}: check its name, or leave it out"


def _is_mapping(value: Any) -> bool:
    """Whether a value is a mapping, or the JSON text of one."""
    try:
        return isinstance(json.loads(value) if isinstance(value, str) else value, dict)
    except ValueError:
        return False
