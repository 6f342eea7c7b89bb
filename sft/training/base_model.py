"""What a run asks of its base model, looked up in its configuration and on the meta device, before the model loads."""

import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sft.common import model_parts
from sft.common.command import UserError
from sft.common.hub import loading_errors
from sft.common.models import adapts_tied_embeddings, load_config, model_class, stored_quantisation
from sft.common.vision import sees
from sft.training.checks import check_launch, check_recipe
from sft.training.config import Settings
from sft.training.launch import Launch
from sft.training.libraries import library_refusals
from sft.training.model import empty_model, lora_config

# Layers, and types of models, that do not tell the rows of a pack apart: states that are carried on from token to
# token, and in gpt-oss, OPT and the older Qwen-VL a mask without the rows' positions (transformers 5.23;
# tests/training/test_architectures.py).
STATEFUL = {"linear_attention", "conv", "hybrid", "gpt_oss", "opt", "qwen2_vl_text", "qwen2_5_vl_text"}

SEEING = (model_parts.VISION, model_parts.PROJECTOR)


def for_base_model(settings: Settings, launch: Launch) -> Settings:
    """These settings with the quantisation in which the base model is stored, which counts as the recipe's.

    Raises `UserError` if recipe or launch do not go with it, or if an adapter would not be where the recipe says.
    """
    config = load_config(settings.model)
    settings = replace(settings, stored=stored_quantisation(config))
    if settings.stored:
        check_recipe(settings)
        check_launch(settings, launch)
        check_trainable(settings, config.quantization_config)
    if settings.router_aux_loss_coef and not hasattr(config.get_text_config(), "output_router_logits"):
        raise UserError(
            f"router_aux_loss_coef is for mixtures of experts, which {settings.model} is not: leave it out"
        )
    if settings.packing:
        check_packing(settings, config)
    if settings.figures:
        check_vision(settings, launch, config)
    if settings.use_peft:
        check_adapter(settings, config)
    return settings


def check_packing(settings: Settings, config: Any) -> None:
    """Raise `UserError` if the rows of a pack would read one another, or if the model does not write text."""
    text = config.get_text_config()
    why = STATEFUL & {*(getattr(text, "layer_types", None) or ()), text.model_type}
    with loading_errors(f"{settings.model} cannot be trained", advice=""):
        takes = inspect.signature(model_class(config).forward).parameters
    if "position_ids" not in takes:
        why.add("it takes no position_ids")
    if why:
        raise UserError(
            f"packing: the rows of a pack would read one another in {settings.model} ({', '.join(sorted(why))}): "
            "pass --packing no"
        )


def check_vision(settings: Settings, launch: Launch, config: Any) -> None:
    """Raise `UserError` if a model that sees cannot be trained so on figures."""
    with loading_errors(f"{settings.model} cannot be trained", advice=""):
        if not sees(config):
            return
    text_alone = "or train it on the text alone with figures: false"
    if settings.packing:
        raise UserError(f"packing: rows with figures cannot be packed: set packing: false, {text_alone}")
    if launch.shards_weights:
        raise UserError(
            f"{launch.name} with figures is not supported: use accelerate_configs/zero2.yaml or ddp.yaml, {text_alone}"
        )
    if settings.pad_to_multiple_of and "pad_to_multiple_of" in settings.sources:
        raise UserError("pad_to_multiple_of has no effect on rows with figures: leave it out")
    if model := empty_model(config) if settings.lora_modules_to_save else None:
        parts = model_parts.parts_of(model)
        wanted = tuple(f".{name}" for name in settings.lora_modules_to_save)
        names = [name for name, _ in model.named_modules() if f".{name}".endswith(wanted)]
        if seen := [name for name in names if model_parts.part_of(name, parts) in SEEING]:
            raise UserError(
                f"lora_modules_to_save: {seen[0]} is of the model's {model_parts.part_of(seen[0], parts)}, which the "
                "learning rate of an adapter makes blind while the loss falls: leave it out"
            )


def check_trainable(settings: Settings, stored: Any) -> None:
    """Raise `UserError` if transformers lacks what these weights need, or does not train adapters on them."""
    from transformers.quantizers import AutoHfQuantizer

    with library_refusals(f"{settings.model} is stored quantised ({settings.stored})"):
        trainable = AutoHfQuantizer.from_config(stored).is_trainable
    if not trainable:
        raise UserError(
            f"{settings.model} is stored quantised ({settings.stored}), and transformers trains no adapters on such "
            "weights: name a model that is not stored quantised"
        )


def check_adapter(settings: Settings, config: Any) -> None:
    """Put the adapter onto the model without memory; raises `UserError` for a name without a match, or PEFT's reason.

    An architecture that cannot be built so is left to the run.
    """
    import torch
    from peft import get_peft_model

    model = empty_model(config)
    if model is None:
        return
    modules, parameters = (dict(part) for part in (model.named_modules(), model.named_parameters()))
    adapter = lora_config(settings, model)
    head, fault = model.get_output_embeddings(), None
    try:
        with library_refusals("the adapter of the recipe does not go onto the base model"), torch.device("meta"):
            get_peft_model(model, adapter)
    except UserError as error:
        fault = error  # names without a match say more
    # PEFT names fused experts anew (`gate_proj` of a MoE); a regular expression, or all-linear, is no list.
    targets = adapter.target_modules
    wanted = {
        "lora_target_modules": [
            n for n in settings.lora_target_modules or () if not isinstance(targets, str) and n in targets
        ],
        "lora_target_parameters": settings.lora_target_parameters or (),
        "lora_modules_to_save": settings.lora_modules_to_save or (),
    }
    linear = [n for n, module in modules.items() if isinstance(module, torch.nn.Linear) and module is not head]
    experts = [n for n, parameter in parameters.items() if parameter.dim() > 2]
    has = dict(zip(wanted, (_ends(linear), _ends(experts, 2), _ends(modules)), strict=True))
    for key, names in wanted.items():
        places = parameters if key == "lora_target_parameters" else modules
        missing = [name for name in names if not any(f".{place}".endswith(f".{name}") for place in places)]
        if missing:
            raise UserError(f"{key}: {type(model).__name__} has no {', '.join(missing)}: it has {has[key]}")
    if adapts_tied_embeddings(model):
        raise UserError(
            "lora_target_modules: the input embeddings are this model's output layer too (tie_word_embeddings), and a "
            "merged model would be another one: leave them out, or train them with lora_modules_to_save"
        )
    if model.get_output_embeddings() is not head and "lm_head" not in (settings.lora_modules_to_save or ()):
        raise UserError("lora_target_modules: TRL's loss does not train an adapter on lm_head: leave it out")
    if fault:
        raise UserError(f"{fault}; its linear layers are {has['lora_target_modules']}") from fault


def _ends(names: Iterable[str], parts: int = 1) -> str:
    """The last parts of dotted names, each once; the numbers of layers are left out."""
    ends = [".".join(name.split(".")[-parts:]) for name in names]
    return ", ".join(dict.fromkeys(end for end in ends if end and not end.isdigit())) or "none of that kind"
