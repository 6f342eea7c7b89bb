"""Peak GPU memory of a recipe before it runs, part by part, in GiB on each GPU.

Parameters are counted on the model itself, built without memory (PyTorch's meta device). Activations are counted by
running two layers on fake tensors, which have shapes but no data, and adding up what autograd keeps for the backward
pass (of packed rows under sdpa, which keeps a little more than FlashAttention). The rest is arithmetic.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sft.common.command import GIB
from sft.common.models import meta_model, model_class
from sft.training.config import Settings
from sft.training.launch import Launch
from sft.training.model import lora_config, parameter_counts

# DeepSpeed's defaults, in elements: what ZeRO-3 keeps gathered, and the bucket in which gradients are exchanged.
ZERO3_LIVE, ZERO_BUCKET = 1_000_000_000, 500_000_000
# The kinds of quantised weights whose adapters TRL casts.
BITSANDBYTES = ("8-bit", "4-bit")
# TRL's fused LM head works on tiles of so many tokens by so many words of the vocabulary (read in trl 1.16).
HEAD_TOKENS, HEAD_VOCABULARY = 4096, 32768


@dataclass(frozen=True)
class Parameters:
    """How many parameters there are, how many are trained, and how many of the frozen ones are quantised."""

    total: int
    trained: int
    quantised: int
    quantised_rows: int  # output rows of the quantised matrices: each has a scale of its own in 8-bit


def trained_meta_model(config: Any, settings: Settings) -> Any:
    """The model with its adapter, on the meta device: every shape, no memory."""
    import torch
    from peft import get_peft_model

    config = copy.deepcopy(config)
    eager = settings.attn_implementation == "eager" or not model_class(config)._supports_sdpa  # as of Gemma 2
    config._attn_implementation = "eager" if eager else "sdpa"
    with torch.device("meta"):
        model = meta_model(config).to(getattr(torch, settings.dtype))
        if settings.use_peft:
            model = get_peft_model(model, lora_config(settings, model))
    if settings.quantised in BITSANDBYTES:  # TRL trains their adapters in bf16
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16) if parameter.requires_grad else parameter.data
    return model


def count_parameters(config: Any, settings: Settings) -> Parameters:
    """Count the parameters of a model; quantised, like bitsandbytes, is every linear layer but the output layer."""
    from torch.nn import Linear

    model = trained_meta_model(config, settings)
    head = model.get_output_embeddings()
    modules = [module for name, module in model.named_modules() if "lora_" not in name and module is not head]
    quantised = [module for module in modules if isinstance(module, Linear)] if settings.quantised else []
    return Parameters(
        **parameter_counts(model),
        quantised=sum(layer.weight.numel() for layer in quantised),
        quantised_rows=sum(layer.out_features for layer in quantised),
    )


@contextmanager
def saved_by_autograd(parameters: Iterable[Any]) -> Iterator[dict[int, Any]]:
    """Collect {address: storage} of what autograd saves in the block, the weights themselves left out."""
    import torch

    weights = {parameter.untyped_storage()._cdata for parameter in parameters}
    saved: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def layer_activations(config: Any, settings: Settings, tokens: int) -> int:
    """Bytes that autograd keeps of one layer for `tokens` tokens, without activation checkpointing."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
    sizes = []
    for layers in (1, 2):
        smaller = copy.deepcopy(config)
        smaller.num_hidden_layers = layers
        if getattr(smaller, "layer_types", None):
            smaller.layer_types = smaller.layer_types[:layers]
        model = trained_meta_model(smaller, settings).train()
        if settings.use_peft:
            model.enable_input_require_grads()
        body = (model.get_base_model() if settings.use_peft else model).base_model
        with FakeTensorMode():
            weights = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
                for name, tensor in (*body.named_parameters(), *body.named_buffers())
            }
            inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.long), "use_cache": False}
            autocast = torch.autocast("cpu", dtype=half, enabled=half is not None)
            with saved_by_autograd(weights.values()) as saved, autocast:
                torch.func.functional_call(body, weights, kwargs=inputs)
                sizes.append(sum(storage.nbytes() for storage in saved.values()))
    return sizes[1] - sizes[0]


def weight_bytes(settings: Settings) -> int:
    """Bytes of an unquantised weight as it is loaded."""
    return 4 if settings.dtype == "float32" else 2


def trained_bytes(settings: Settings, launch: Launch) -> int:
    """Bytes of one trained parameter: TRL keeps adapters of quantised models in bf16, PEFT others in fp32."""
    if settings.quantised in BITSANDBYTES:
        return 2 if settings.bf16 else 4  # cast by `cast_trained_to_float32` in sft/training/model.py
    if launch.kind == "deepspeed":
        in_float32 = settings.use_peft and launch.zero_stage < 3
    else:
        in_float32 = settings.use_peft or launch.kind == "fsdp"
    return 4 if in_float32 else weight_bytes(settings)


def frozen_bytes(settings: Settings, parameters: Parameters) -> float:
    """Bytes of the frozen weights: in 8-bit 1 each and 4 a row, in NF4 half each and 4 per 64, else as their type."""
    size = (parameters.total - parameters.trained - parameters.quantised) * weight_bytes(settings)
    if "8-bit" in (settings.quantised or ""):
        return size + parameters.quantised + 4 * parameters.quantised_rows
    scales = 1 / 64 + 4 / (64 * 256) if settings.use_bnb_nested_quant else 4 / 64
    return size + parameters.quantised * (0.5 + scales)


def gathered_bytes(config: Any, launch: Launch, parameters: Parameters) -> float:
    """Bytes of what DeepSpeed and FSDP gather from the processes: gradient buckets, and weights that are in use."""
    if launch.kind == "deepspeed":
        weights = min(ZERO3_LIVE, parameters.total) if launch.zero_stage == 3 else 0
        return 2 * (min(ZERO_BUCKET, parameters.trained) + weights)
    embeddings = config.vocab_size * config.hidden_size
    layer = (parameters.total - 2 * embeddings) / config.num_hidden_layers
    return 2 * (2 * layer + embeddings)


def estimate(config: Any, settings: Settings, launch: Launch, parameters: Parameters, tokens: int) -> dict[str, float]:
    """GiB on each GPU at the peak of a training step, by part; `tokens` is what one forward pass reads.

    Optimizer: two states a trained parameter in its own type (AdamW), under DeepSpeed 12 bytes divided among the
    processes (float32 copy and states). Gradients: as the trained parameter, twice under DDP (its buckets).
    Activations: one layer's, counted, and with checkpointing the input of every layer, else all layers'.
    """
    config = config.get_text_config()
    shards = launch.processes if launch.shards_weights else 1
    each = trained_bytes(settings, launch)
    trained = parameters.trained * each / shards

    weights = frozen_bytes(settings, parameters) / shards if settings.use_peft else trained
    if launch.kind == "deepspeed" and settings.precision != "no":
        optimizer = 12 * parameters.trained / launch.processes
    else:
        states = 2 / each if "8bit" in settings.optim else 0 if settings.optim in ("sgd", "adafactor") else 2
        optimizer = states * trained
    if launch.offload:
        optimizer = 0.0
        weights /= launch.processes  # and most of a ZeRO-3 shard waits in the machine's memory

    layer = layer_activations(config, settings, tokens)
    width = 2 if settings.precision != "no" else weight_bytes(settings)
    if settings.activation_checkpointing:
        activations = layer + config.num_hidden_layers * tokens * config.hidden_size * width
    else:
        activations = layer * config.num_hidden_layers
    if settings.quantised:  # one matrix at a time is unpacked to 16 bits
        activations += 2 * config.hidden_size * config.intermediate_size

    tile = min(tokens, HEAD_TOKENS) * min(config.vocab_size, HEAD_VOCABULARY)
    logits = tile * width + tokens * config.hidden_size * (4 + width)
    if not settings.use_peft:
        logits += 4 * config.vocab_size * config.hidden_size  # the output layer's gradient, in float32

    parts = {
        "weights": weights,
        "adapters": trained if settings.use_peft else 0.0,
        "optimizer": optimizer,
        "gradients": trained * (2 if launch.kind == "ddp" else 1),
        "activations": activations,
        "logits": logits,
    }
    if launch.kind in ("deepspeed", "fsdp"):
        parts["gathered"] = gathered_bytes(config, launch, parameters)
    return {name: size / GIB for name, size in parts.items()}
