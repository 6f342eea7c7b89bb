"""An adapter's weights put into those of its base model, and the comparison of both models' logits."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.common.command import GIB, UserError, free_bytes, read_json, strip_local_paths, write_json
from sft.common.hub import pinned
from sft.common.models import (
    FACTS,
    MANIFEST,
    PROMPT_FILE,
    RECIPE,
    base_of,
    check_model_folder,
    commit_of,
    load_config,
    load_model,
    meta_model,
    model_file,
    prompt_format,
)

# Small shards, because saving holds one of them twice.
SHARD = "2GB"


def check_mergeable(model_path: str, base: str | None = None) -> str:
    """The base model that an adapter can be merged onto: `base`, or the one that it names.

    Raises:
        UserError: no adapter, or a base model that is stored quantised.
    """
    check_model_folder(model_path)
    named = base_of(model_path)
    if named == model_path:
        load_config(model_path)  # or it is not there at all
        raise UserError(f"{model_path} is no adapter: its weights are whole already")
    base = base or named
    quantised = getattr(load_config(base), "quantization_config", None)
    if quantised:
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise UserError(
            f"{base} is stored quantised ({kind}): merging would round the sum of its weights and the adapter's to a "
            "few bits, and lose most of what was learned. Name the model that it was made from with --base_model"
        )
    return base


def weight_bytes(base: str) -> int:
    """Bytes of the model's weights in bfloat16, counted without loading them."""
    return sum(parameter.numel() * 2 for parameter in meta_model(load_config(base)).parameters())


def check_disk(folder: Path, needed: int) -> None:
    """Raise `UserError` if so many bytes do not fit where `folder` will be."""
    free = free_bytes(folder)
    if needed > free:
        raise UserError(
            f"--output_dir {folder}: {needed / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free: make room, or "
            "choose another disk"
        )


def next_token_logits(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """Logits of the token after each prompt, float32, of shape (prompts, vocabulary)."""
    import torch

    with torch.inference_mode():
        return torch.cat(
            [model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[:, -1].float() for ids in prompts]
        )


def compared(base: Any, adapter: Any, merged: Any) -> dict[str, Any]:
    """How far the merged model's logits are from the adapter's, beside how far the adapter's are from the base's.

    All three are of shape (prompts, vocabulary). Means and maxima are of absolute differences.
    """
    off, effect = (merged - adapter).abs(), (adapter - base).abs()
    return {
        "prompts": len(adapter),
        "mean_difference": off.mean().item(),
        "largest_difference": off.max().item(),
        "mean_effect_of_adapter": effect.mean().item(),
        # What bfloat16 cannot tell apart: it keeps 8 bits of a number.
        "resolution": adapter.abs().mean().item() / 2**8,
        "same_first_token": (merged.argmax(-1) == adapter.argmax(-1)).sum().item(),
    }


def check_comparison(found: dict[str, Any]) -> None:
    """Raise `UserError` if a merged model is further from the adapter than half of what the adapter does."""
    allowed = max(found["mean_effect_of_adapter"] / 2, 4 * found["resolution"])
    if not found["mean_difference"] <= allowed:  # so that NaN is refused
        raise UserError(
            f"the merged model's logits are {found['mean_difference']:.4f} from the adapter's, which itself moves "
            f"those of the base model by {found['mean_effect_of_adapter']:.4f}: it would not answer as the adapter "
            "does, and is not kept. Is the base model the one that the adapter was trained on?"
        )


def comparison_line(found: dict[str, Any]) -> str:
    """What `compared` found, in words."""
    return (
        f"Logits on {found['prompts']} prompts: merged and adapter differ by {found['mean_difference']:.4f} on "
        f"average and {found['largest_difference']:.4f} at most; the adapter moves those of its base by "
        f"{found['mean_effect_of_adapter']:.4f}. Same first token on {found['same_first_token']} of "
        f"{found['prompts']}"
    )


def merge(model_path: str, base: str, folder: Path) -> dict[str, Any]:
    """Write the merged model into the existing `folder`; returns what `compared` found.

    Raises:
        UserError: the model cannot be loaded, or the merged one does not answer as the adapter does.
    """
    import torch

    from sft.inference.assistant import demo_prompts

    print(f"Loading {model_path} onto {base}", flush=True)
    model, tokenizer = load_model(model_path, torch.bfloat16, device="cpu", base=base)
    prompts = demo_prompts(tokenizer, prompt_format(model_path))
    adapted = next_token_logits(model, prompts)
    with model.disable_adapter():
        plain = next_token_logits(model, prompts)
    model = model.merge_and_unload(progressbar=True, safe_merge=True)
    found = compared(plain, adapted, next_token_logits(model, prompts))
    check_comparison(found)
    print("Saving", flush=True)
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    for name in (PROMPT_FILE, RECIPE, *FACTS):
        if file := model_file(model_path, name):
            shutil.copyfile(file, folder / name)
    if file := model_file(model_path, MANIFEST):
        onto = {"name": strip_local_paths(pinned(base)[0]), "revision": commit_of(base)}
        write_json(folder / MANIFEST, {**read_json(file), "merged": {**found, "onto": onto}})
    return found
