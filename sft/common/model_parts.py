"""The parts of a model, by its structure: where adapters go, and how much of each part is trained.

The language model, its experts and router, the output layer, and in models of text and images (or sound) the towers
that read these and the projector between. A model says itself which modules are its language model, its towers and
its output layer (`get_decoder`, `get_encoder`, `get_output_embeddings` of transformers); what is neither is the
projector. Projectors inside a tower, experts and routers are told by the names that transformers gives them in every
family (tests/common/test_model_parts.py).
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

LANGUAGE, EXPERTS, ROUTER, HEAD = "language model", "experts", "router", "output layer"
VISION, AUDIO, PROJECTOR = "vision tower", "audio tower", "projector"
# As Qwen-VL's `visual.merger` and `visual.deepstack_merger_list`.
_PROJECTOR_IN_TOWER = re.compile(r"merger|projector|connector|aligner")
_EXPERTS, _ROUTER = re.compile(r"experts$"), re.compile(r"gate$|router$")
# What PEFT writes between the name of a module and those of its parameters.
_WRAPPED = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.\w+)(?=\.|$)")


def parts_of(model: Any) -> dict[str, str]:
    """{name of a module: part} of every module that begins a part; what is below it belongs to the innermost.

    `model` may have an adapter: names are then those without it. Language model and output layer are always there.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = {id(module): _WRAPPED.sub("", name) for name, module in model.named_modules()}
    towers = {VISION: _encoder(model, "image"), AUDIO: _encoder(model, "audio")}
    # The whole of a model that reads text alone is its language model.
    several = any(tower is not None for tower in towers.values())
    parts = {"": PROJECTOR if several else LANGUAGE, names[id(model.get_decoder())]: LANGUAGE}
    for part, tower in towers.items():
        if tower is not None:
            parts[names[id(tower)]] = part
            inner = (f"{names[id(tower)]}.{name}" for name, _ in tower.named_children())
            parts |= {name: PROJECTOR for name in inner if _PROJECTOR_IN_TOWER.search(name.rpartition(".")[2])}
    head = model.get_output_embeddings()
    if head is not None:
        parts[names[id(head)]] = HEAD
    if several:
        parts |= dict.fromkeys(_beside(names.values(), parts), PROJECTOR)
    return parts | _mixtures(model, parts)


def unquantised(model: Any) -> list[str]:
    """Names of the modules that bitsandbytes is to leave as they are, for `llm_int8_skip_modules`.

    Beside those that transformers leaves (the output layer), the towers and the projector of a model that sees or
    hears: they are small, and 8 or 4 bits cost them accuracy.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    left = [name for name, part in parts_of(model).items() if part in (VISION, AUDIO, PROJECTOR) and name]
    return sorted({*get_keys_to_not_convert(model), *left})


def _beside(names: Iterable[str], parts: dict[str, str]) -> list[str]:
    """The modules that are neither in one of these parts nor around one, without those below them."""
    around = {"", *(name[: dot.start()] for name in parts for dot in re.finditer(r"\.", name))} - parts.keys() | {""}
    return [name for name in names if name not in around | parts.keys() and name.rpartition(".")[0] in around]


def _encoder(model: Any, modality: str) -> Any:
    """The module that reads images or sound, or None."""
    encoder = model.get_encoder(modality)
    return None if encoder in (model, model.base_model) else encoder


def _mixtures(model: Any, parts: dict[str, str]) -> dict[str, str]:
    """The experts of the language model, whose weights are stacked in parameters of three dimensions, and routers."""
    found = {}
    for name, module in model.named_modules():
        block, _, last = _WRAPPED.sub("", name).rpartition(".")
        stacked = _EXPERTS.search(last) and any(parameter.dim() > 2 for parameter in module.parameters())
        if stacked and part_of(f"{block}.{last}", parts) == LANGUAGE:
            found[f"{block}.{last}"] = EXPERTS
            beside = (child for child, _ in model.get_submodule(name.rpartition(".")[0]).named_children())
            found |= {f"{block}.{child}": ROUTER for child in beside if _ROUTER.search(child)}
    return found


def part_of(name: str, parts: dict[str, str]) -> str:
    """The part of a module or parameter, by its name in the model or in one with an adapter; `parts` as `parts_of`."""
    name = _WRAPPED.sub("", name.removeprefix("base_model.model."))
    while name not in parts:
        name = name.rpartition(".")[0]
    return parts[name]


def parameters_by_part(model: Any, size: Any = lambda parameter: parameter.numel()) -> dict[str, dict[str, int]]:
    """{part: {"total", "trained"}}: the parameters of each part as `size` counts them, adapters with what they adapt.

    Tied weights count once, with the input embeddings.
    """
    parts, total, trained = parts_of(model), Counter(), Counter()
    for name, parameter in model.named_parameters():
        part = part_of(name, parts)
        total[part] += size(parameter)
        trained[part] += size(parameter) if parameter.requires_grad else 0
    return {part: {"total": count, "trained": trained[part]} for part, count in total.items()}


def in_words(counts: dict[str, dict[str, int]]) -> str:
    """What is trained of each part, as ``language model 0.52%, experts none``; "" of a model of one part."""
    if counts.keys() <= {LANGUAGE, HEAD}:
        return ""
    shares = {part: count["trained"] / count["total"] for part, count in counts.items()}
    return ", ".join(f"{part} {f'{share:.2%}' if share else 'none'}" for part, share in shares.items())
