"""The model as it is trained: loading, attention, types and counts of its parameters, and two patches for a CPU."""

import functools
import re
import sys
from collections import Counter
from typing import Any

from sft.common import model_parts
from sft.common.hub import loading_errors
from sft.common.model_parts import EXPERTS, HEAD, LANGUAGE
from sft.common.models import load_config, meta_model, model_class
from sft.common.vision import vision_of
from sft.training.config import Settings
from sft.training.libraries import library_refusals


def lora_config(settings: Settings, model: Any = None) -> Any:
    """The adapter that TRL makes of the settings, or None; with the base `model`, one that is on its language model.

    TRL's single name would be a regular expression to PEFT.
    """
    from trl import ModelConfig, get_peft_config

    config = get_peft_config(settings.build(ModelConfig))
    names = settings.lora_target_modules
    if config and names and len(names) == 1 and re.fullmatch(r"\w+", names[0]):
        config.target_modules = set(names)
    if config and model is not None:
        keep_to_language_model(config, model)
    return config


# Layers whose weights these models read without calling them, so that PEFT refuses adapters there.
MAMBA = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
NOT_CALLED = ("out_proj", "conv1d")


def keep_to_language_model(adapter: Any, model: Any) -> None:
    """Change `adapter` so that router, towers and projector of `model` are left out, whatever names they share.

    `all-linear` is every linear layer of the language model. Of a mixture of experts PEFT 0.21 would take the router
    and the experts too: experts are adapted where the recipe names them.
    """
    import torch
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    parts = model_parts.parts_of(model)
    left_out = [name for name, part in parts.items() if part not in (LANGUAGE, HEAD, EXPERTS) and name]
    # Mixtures have a router in every layer.
    patterns = dict.fromkeys(re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name)) for name in left_out)
    if patterns:
        adapter.exclude_modules = rf"({'|'.join(patterns)})(\..*)?"
    mamba = model.config.model_type in MAMBA
    if (EXPERTS in parts.values() or mamba) and str(adapter.target_modules).lower() == "all-linear":
        linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
        called = (name for name in linear if not (mamba and name.endswith(NOT_CALLED)))
        asked = adapter.target_parameters
        adapter.target_modules = {name for name in called if model_parts.part_of(name, parts) == LANGUAGE}
        # PEFT takes names that are also those of experts (`gate_proj`) for them alone.
        convert_peft_config_for_transformers(adapter, model, None)
        adapter.target_parameters, adapter.rank_pattern, adapter.alpha_pattern = asked, {}, {}


def empty_model(config: Any) -> Any:
    """The model on the meta device, or None of an architecture that cannot be built so."""
    try:
        return meta_model(config)
    except Exception:  # whatever an architecture needs that is not there without weights
        return None


def load_trainer(settings: Settings, training_args: Any, data: Any) -> Any:
    """SFTTrainer with the model loaded, its adapter added, and its parameters printed; `data` is a `plan.Data`."""
    from transformers import PrinterCallback, ProgressCallback
    from trl import ModelConfig, SFTTrainer

    from sft.training.callbacks import LogLinesCallback

    model_args = settings.build(ModelConfig)
    with loading_errors(f"{settings.model} cannot be trained", advice=""):
        config = load_config(settings.model)
        classes = model_class(config)
    attention = model_args.attn_implementation or attention_implementation(
        training_args.device, settings.precision, classes
    )
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": attention,
        **(training_args.model_init_kwargs or {}),
        # Nothing that a model's repository holds is run: no code, no pickle.
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    training_args.chat_template_path = None  # the tokenizer has it, as `set_chat_template` read it
    if not training_args.packing:
        training_args.max_length = None  # no row exceeds it; TRL would look at every row again
    score_labelled_positions_only()
    meta = empty_model(config)
    with library_refusals(f"{settings.model} cannot be trained so"):
        trainer = SFTTrainer(
            model=model_args.model_name_or_path,
            args=training_args,
            **rows_for_trainer(settings, data),
            # transformers reads how a model is stored by itself.
            quantization_config=None if settings.stored else quantization_config(model_args, meta),
            peft_config=lora_config(settings, meta),
        )
    model = trainer.model
    if vision_of(data.tokenizer):
        training_args.ddp_find_unused_parameters = False  # every trained parameter is of the language model
    if settings.use_peft:
        # Loading a checkpoint's adapter would make it float32 (PEFT's default); TRL trains that of a quantised model
        # in bf16. Without this, a continued 8-bit run differs from the one that was stopped (test_stopping.py).
        model.load_adapter = functools.partial(model.load_adapter, autocast_adapter_dtype=False)
    if settings.fp16 or (settings.use_peft and not settings.bf16):
        cast_trained_to_float32(model)
    if not sys.stderr.isatty():  # a bar is unreadable in a log file
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LogLinesCallback())
    if trainer.is_world_process_zero():
        attention = f"Attention: {training_args.model_init_kwargs['attn_implementation']}"
        print(*describe_model(model), attention, sep="\n", flush=True)
    return trainer


def quantization_config(model_args: Any, meta: Any) -> Any:
    """How bitsandbytes is to quantise a model, or None; `meta` is the model without memory, if it can be built."""
    from trl import get_quantization_config

    config = get_quantization_config(model_args)
    if config and meta is not None:
        config.llm_int8_skip_modules = model_parts.unquantised(meta)
    return config


def rows_for_trainer(settings: Settings, data: Any) -> dict[str, Any]:
    """What SFTTrainer gets of a `plan.Data`: its rows, and what makes batches of them."""
    if vision := vision_of(data.tokenizer):
        from sft.training.vision import FigureCollator, with_pictures

        dev = with_pictures(data.dev_tokens, data.tokenizer) if data.dev_tokens else None
        collator = FigureCollator(vision.processor, completion_only_loss=settings.completion_only_loss is not False)
        rows = {"train_dataset": with_pictures(data.train_tokens, data.tokenizer), "eval_dataset": dev}
        return {**rows, "processing_class": vision.processor, "data_collator": collator}
    # Tokens are the very ones that SFTTrainer would make; it packs and batches them. Without labels it trains on every
    # token, question included.
    columns = ["input_ids"] if settings.completion_only_loss is False else ["input_ids", "labels"]
    dev = data.dev_tokens.select_columns(columns) if data.dev_tokens else None
    rows = {"train_dataset": data.train_tokens.select_columns(columns), "eval_dataset": dev}
    return {**rows, "processing_class": data.tokenizer}


def skip_deepspeed_inference_kernels() -> None:
    """Keep DeepSpeed from compiling what its inference alone calls: that needs a C++ compiler, and a minute."""
    import deepspeed
    import deepspeed.ops

    # DeepSpeed 0.19 reads this table before it compiles (deepspeed/comm/torch.py).
    if deepspeed.__version__.startswith("0.19."):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def score_labelled_positions_only() -> bool:
    """Let TRL's fused LM head score the labelled positions alone on a CPU too; returns whether it was done.

    TRL does so with Triton; elsewhere it scores all positions, about sixty for five with a label, because accelerators
    that compile for a fixed shape would recompile. A CPU does not compile. Loss and gradients are the same
    (tests/training/test_model.py). Read in trl 1.16; other versions stay untouched.
    """
    import torch
    import trl
    from packaging.version import Version
    from trl.trainer import utils

    readable = Version("1.16") <= Version(trl.__version__) < Version("1.17") and hasattr(utils, "_use_triton")
    if torch.cuda.is_available() or not readable:
        return False
    # The name decides in `add_fused_lm_head` alone; the kernels hold their own and go on without Triton.
    utils._use_triton = lambda device: True
    return True


def parameter_size(parameter: Any) -> int:
    """Elements of a parameter. ZeRO-3 leaves it empty here, with its size; 4-bit ones are packed two in a byte."""
    size = getattr(parameter, "ds_numel", parameter.numel())
    return 2 * size * parameter.element_size() if type(parameter).__name__ == "Params4bit" else size


def parameter_counts(model: Any) -> dict[str, int]:
    """How many parameters a model has, ``total``, and how many of them are ``trained``."""
    sizes = [(parameter_size(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return {"total": sum(size for size, _ in sizes), "trained": sum(size for size, trained in sizes if trained)}


def describe_model(model: Any) -> list[str]:
    """Lines that say how many parameters are frozen and trained, by data type."""
    by_type: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for parameter in model.parameters():
        by_type[parameter.requires_grad][str(parameter.dtype).removeprefix("torch.")] += parameter_size(parameter)
    trained, frozen = (
        ", ".join(f"{name} {count / 1e6:.1f}M" for name, count in by_type[key].most_common()) or "none"
        for key in (True, False)
    )
    share = by_type[True].total() / sum(counter.total() for counter in by_type.values())
    lines = [f"Frozen parameters: {frozen}", f"Trained parameters: {trained} ({share:.2%} of all)"]
    by_part = model_parts.in_words(model_parts.parameters_by_part(model, parameter_size))
    return [*lines, f"Trained by part: {by_part}"] if by_part else lines


def attention_implementation(device: Any, precision: str, model: type) -> str:
    """The fastest attention that is installed, and that device and class of model run; all keep packed rows apart."""
    import torch
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    others = "sdpa" if model._supports_sdpa else "eager"  # as Gemma 2
    # gpt-oss runs with kernels of its own.
    flash = model._supports_flash_attn and not getattr(model, "_compatible_flash_implementations", None)
    if device.type != "cuda" or precision == "no" or not flash:
        return others
    capability = torch.cuda.get_device_capability()
    if capability[0] == 9 and is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if capability >= (8, 0) and is_flash_attn_2_available() else others


def cast_trained_to_float32(model: Any) -> int:
    """Recast trained parameters to float32; returns how many were recast.

    TRL keeps the adapters of quantised models in bf16. Their gradients the fp16 loss scaler cannot unscale
    (``_amp_foreach_non_finite_check_and_unscale_cuda not implemented for 'BFloat16'``), and a CPU without bfloat16
    instructions multiplies them slowly.
    """
    import torch

    recast = [p for p in model.parameters() if p.requires_grad and p.dtype != torch.float32]
    for parameter in recast:
        parameter.data = parameter.data.to(torch.float32)
    return len(recast)
