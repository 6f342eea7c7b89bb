"""Peak GPU memory of a recipe before it runs, part by part, in GiB on each GPU.

Parameters are counted on the model itself, built without memory (PyTorch's meta device). Activations are counted by
running its text part on fake tensors, which have shapes but no data, and adding up what autograd keeps for the
backward pass (of packed rows under sdpa, which keeps a little more than FlashAttention). The rest is arithmetic.
"""

import copy
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sft.common.command import GIB
from sft.common.model_parts import unquantised
from sft.common.models import meta_model, model_class
from sft.training.config import Settings
from sft.training.launch import Launch
from sft.training.model import lora_config, parameter_counts

# DeepSpeed's defaults, in elements: what ZeRO-3 keeps gathered, and the bucket in which gradients are exchanged.
ZERO3_LIVE, ZERO_BUCKET = 1_000_000_000, 500_000_000
# The kinds of quantised weights whose adapters TRL casts.
BITSANDBYTES = ("8-bit", "4-bit")
# Where configurations of stored weights name the modules that are not quantised.
SKIPPED_KEYS = ("llm_int8_skip_modules", "modules_to_not_convert", "ignore")
# TRL's fused LM head works on tiles of so many tokens by so many words of the vocabulary (read in trl 1.16).
HEAD_TOKENS, HEAD_VOCABULARY = 4096, 32768


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has, how many are trained, and the bytes of the frozen ones on the device."""

    model: Any  # on the meta device, with its adapter
    total: int
    trained: int
    frozen_bytes: float
    largest_quantised: int  # elements of the largest quantised matrix


class Activations(NamedTuple):
    """Bytes that autograd keeps of a forward pass through all layers."""

    layers: list[int]  # of each layer that can be recomputed, in order
    inputs: int  # what is kept of each layer instead, where it is recomputed
    outside: int  # behind the embeddings, and before the output layer


def trained_meta_model(config: Any, settings: Settings) -> Any:
    """The model with its adapter, on the meta device: every shape, no memory."""
    return with_adapter(base_meta_model(config, settings), settings)


def base_meta_model(config: Any, settings: Settings) -> Any:
    """The model without its adapter, on the meta device, with the attention that a CPU has."""
    import torch

    config = copy.deepcopy(config)
    eager = settings.attn_implementation == "eager" or not model_class(config)._supports_sdpa  # as of Gemma 2
    config._attn_implementation = "eager" if eager else "sdpa"
    return meta_model(config).to(getattr(torch, settings.dtype))


def with_adapter(model: Any, settings: Settings) -> Any:
    """The model with the recipe's adapter, if it has one, in the type in which it is trained."""
    import torch
    from peft import get_peft_model

    if settings.use_peft:
        with torch.device("meta"):
            model = get_peft_model(model, lora_config(settings, model))
    if settings.quantised in BITSANDBYTES:  # TRL trains their adapters in bf16
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16) if parameter.requires_grad else parameter.data
    return model


def count_parameters(config: Any, settings: Settings) -> Parameters:
    """Build the model without memory, and count."""
    model = base_meta_model(config, settings)
    matrices = quantised_matrices(model, settings) if settings.quantised else {}
    kept_in_float32 = re.compile("|".join(model._get_dtype_plan(model.dtype)) or "$^")
    size = 0.0
    for name, parameter in model.named_parameters():
        if name in matrices:
            size += quantised_bytes(parameter.numel(), matrices[name], settings)
        else:
            size += parameter.numel() * (4 if kept_in_float32.search(name) else parameter.element_size())
    largest = max((model.get_parameter(name).numel() for name in matrices), default=0)
    model = with_adapter(model, settings)
    counts = parameter_counts(model)
    return Parameters(model, **counts, frozen_bytes=size if settings.use_peft else 0.0, largest_quantised=largest)


def quantised_matrices(model: Any, settings: Settings) -> dict[str, int]:
    """{name: rows, each with a scale of its own in 8-bit} of the weights that are quantised when a model is loaded.

    As transformers chooses them: linear layers, but not the output layer, and no class that only derives from them
    (routers). Experts that are one parameter stay as they are in bitsandbytes, and are quantised in other kinds.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    stored = getattr(model.config, "quantization_config", None) or {}
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    skipped = next((stored[key] for key in SKIPPED_KEYS if stored.get(key)), None) or unquantised(model)
    skipped = [*skipped, *(model._keep_in_fp32_modules or ())]
    matrices = {}
    for name, module in model.named_modules():
        if should_convert_module(name, skipped):
            if type(module) is Linear or isinstance(module, Conv1D):
                matrices[f"{name}.weight"] = module.weight.shape[isinstance(module, Conv1D)]
            elif settings.quantised not in BITSANDBYTES:
                own = module.named_parameters(prefix=name, recurse=False)
                matrices |= {key: value.shape[:-1].numel() for key, value in own if value.dim() == 3}
    return matrices


def quantised_bytes(elements: int, rows: int, settings: Settings) -> float:
    """Bytes of a quantised matrix: in 8-bit 1 an element and 4 a row, in NF4 half and 4 per 64, nested fewer."""
    if "8-bit" in (settings.quantised or ""):
        return elements + 4 * rows
    blocks = math.ceil(elements / 64)
    return elements / 2 + (blocks + blocks / 64 if settings.use_bnb_nested_quant else 4 * blocks)


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


def count_activations(model: Any, settings: Settings, tokens: int) -> Activations:
    """What autograd keeps of a model that `trained_meta_model` built, for a row of `tokens` tokens.

    The text part runs on tensors without data. A layer is what activation checkpointing recomputes at once.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._pytree import tree_leaves
    from transformers.modeling_layers import GradientCheckpointingLayer

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
    model.train()
    if settings.use_peft and settings.activation_checkpointing:  # as TRL
        model.enable_input_require_grads()
    body = (model.get_base_model() if settings.use_peft else model).base_model
    layers: list[int] = []
    inputs: dict[int, Any] = {}
    open_layers: list[int] = []

    def total() -> int:
        return sum(storage.nbytes() for storage in saved.values())

    def begin(layer: Any, args: Any, kwargs: Any) -> None:
        if not open_layers:
            given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            inputs.update({t.untyped_storage()._cdata: t.untyped_storage() for t in given if t.requires_grad})
        open_layers.append(total())

    def end(layer: Any, args: Any, output: Any) -> None:
        before = open_layers.pop()
        if not open_layers:
            layers.append(total() - before)

    hooks = []
    for module in body.modules():
        if isinstance(module, GradientCheckpointingLayer):
            hooks += [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]
    try:
        with FakeTensorMode():
            weights = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
                for name, tensor in (*body.named_parameters(), *body.named_buffers())
            }
            ids, every = torch.zeros(1, tokens, dtype=torch.long), torch.ones(1, tokens, dtype=torch.long)
            given = {"input_ids": ids, "attention_mask": every, "use_cache": False}  # a mask, as packed rows have it
            autocast = torch.autocast("cpu", dtype=half, enabled=half is not None)
            with saved_by_autograd(weights.values()) as saved, autocast:
                torch.func.functional_call(body, weights, kwargs=given)
                kept = total()
    finally:
        for hook in hooks:
            hook.remove()
    return Activations(layers, sum(storage.nbytes() for storage in inputs.values()), kept - sum(layers))


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


def gathered_bytes(head: Any, launch: Launch, parameters: Parameters) -> float:
    """Bytes of what DeepSpeed and FSDP gather from the processes: gradient buckets, and weights that are in use."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if launch.kind == "deepspeed":
        weights = min(ZERO3_LIVE, parameters.total) if launch.zero_stage == 3 else 0
        return 2 * (min(ZERO_BUCKET, parameters.trained) + weights)
    layers = [module for module in parameters.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    layer = max(sum(parameter.numel() for parameter in module.parameters()) for module in layers)
    return 2 * (2 * layer + head.numel())


def estimate(config: Any, settings: Settings, launch: Launch, parameters: Parameters, tokens: int) -> dict[str, float]:
    """GiB on each GPU at the peak of a training step, by part; `tokens` is what one forward pass reads.

    Optimizer: two states a trained parameter in its own type (AdamW), under DeepSpeed 12 bytes divided among the
    processes (float32 copy and states). Gradients: as the trained parameter, twice under DDP (its buckets).
    Activations: all layers', counted, and with checkpointing the largest layer's and the inputs of all.
    """
    head = parameters.model.get_output_embeddings().weight
    vocabulary, hidden = head.shape
    shards = launch.processes if launch.shards_weights else 1
    each = trained_bytes(settings, launch)
    trained = parameters.trained * each / shards

    weights = parameters.frozen_bytes / shards if settings.use_peft else trained
    if launch.kind == "deepspeed" and settings.precision != "no":
        optimizer = 12 * parameters.trained / launch.processes
    else:
        states = 2 / each if "8bit" in settings.optim else 0 if settings.optim in ("sgd", "adafactor") else 2
        optimizer = states * trained
    if launch.offload:
        optimizer = 0.0
        weights /= launch.processes  # and most of a ZeRO-3 shard waits in the machine's memory

    kept = count_activations(parameters.model, settings, tokens)
    width = 2 if settings.precision != "no" else weight_bytes(settings)
    recomputed = settings.activation_checkpointing and kept.layers
    activations = kept.outside + (max(kept.layers) + kept.inputs if recomputed else sum(kept.layers))
    activations += 2 * parameters.largest_quantised  # one matrix at a time is unpacked to 16 bits

    tile = min(tokens, HEAD_TOKENS) * min(vocabulary, HEAD_VOCABULARY)
    logits = tile * width + tokens * hidden * (4 + width)
    if not settings.use_peft:
        logits += 4 * vocabulary * hidden  # the output layer's gradient, in float32

    parts = {
        "weights": weights,
        "adapters": trained if settings.use_peft else 0.0,
        "optimizer": optimizer,
        "gradients": trained * (2 if launch.kind == "ddp" else 1),
        "activations": activations,
        "logits": logits,
    }
    if launch.kind in ("deepspeed", "fsdp"):
        parts["gathered"] = gathered_bytes(head, launch, parameters)
    return {name: size / GIB for name, size in parts.items()}
