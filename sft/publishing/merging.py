"""An adapter's weights put into those of its base model, and the comparison of both models' logits."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.common import models
from sft.common.chat_template import stop_tokens
from sft.common.command import GIB, UserError, check_disk, check_holds_only, read_json, strip_local_paths, write_json
from sft.common.hub import pinned, repo_file
from sft.common.transformers4 import write_for_transformers_4

# Small shards, because saving holds one of them twice.
SHARD_SIZE = "2GB"
# What `merge` writes, as patterns of file names: weights, tokenizer (of any kind) and the facts of the run.
MERGED_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*.json", "*tokens*.json", "vocab.*", "merges.txt", "*.model", "*chat_template*", "*chat_templates/*"),
    *(models.PROMPT_FILE, models.RECIPE, *models.RESULT_FILES, models.MANIFEST),
)


def check_mergeable(model_path: str, base: str | None = None) -> str:
    """`base`, or the model that the adapter names; raises `UserError` without an adapter, or for a quantised base."""
    models.check_model_folder(model_path)
    named = models.base_of(model_path)
    if named == model_path:
        models.load_config(model_path)  # or it is not there at all
        raise UserError(f"{model_path} is not an adapter: its weights need no merging")
    base = base or named
    if stored := models.stored_quantisation(models.load_config(base)):
        raise UserError(
            f"{base} is stored quantised ({stored}): merging would round the sum of its weights and the adapter's to "
            "a few bits, and lose most of what was learned. Name the model that it was made from with --base_model"
        )
    return base


def check_replaceable(folder: Path, model_path: str, base: str) -> None:
    """Raise `UserError` if `folder` is part of the adapter or of the base, or holds what `merge` did not write."""
    out = folder.resolve()
    for source in (Path(model_path).resolve(), Path(base).resolve()):
        # A Hub id is no folder here.
        if source.is_dir() and (out.is_relative_to(source) or source.is_relative_to(out)):
            raise UserError(f"--output_dir {folder} is, contains or lies in the model folder {source}: choose another")
    if not folder.exists() or not any(folder.iterdir()):
        return
    check_holds_only(folder, MERGED_FILES, "a merged model")
    manifest, form = folder / models.MANIFEST, folder / models.PROMPT_FILE
    is_merged = "merged" in models.object_in(manifest) if manifest.exists() else form.exists()
    if not (is_merged and (folder / "config.json").exists() and any(folder.glob("*.safetensors"))):
        raise UserError(f"--overwrite: {folder} is not a model that sft/merge.py wrote: choose another folder")


def check_space(base: str, folder: Path, copies: int = 1) -> float:
    """GiB of the merged model's bfloat16 weights; raises `UserError` if so many copies do not fit on the disk."""
    size = sum(parameter.numel() * 2 for parameter in models.meta_model(models.load_config(base)).parameters())
    purpose = f"--output_dir {folder}: the merged model needs"
    check_disk(folder, copies * size, purpose, "make room, or choose another disk")
    return size / GIB


def next_token_logits(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """Logits of the token after each prompt, float32, of shape (prompts, vocabulary)."""
    import torch

    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[:, -1] for ids in prompts]
    return torch.cat(logits).float()


def compare(base: Any, adapter: Any, merged: Any) -> dict[str, Any]:
    """How far the merged model's logits are from the adapter's, beside how far the adapter's are from the base's.

    All three are of shape (prompts, vocabulary). Means and maxima are of absolute differences. Raises `UserError` if
    the merged model is further from the adapter than half of what the adapter does.
    """
    off, effect = (merged - adapter).abs(), (adapter - base).abs()
    # What bfloat16 cannot tell apart: it keeps 8 bits of a number.
    resolution = adapter.abs().mean().item() / 2**8
    difference, effect_of_adapter = off.mean().item(), effect.mean().item()
    if not difference <= max(effect_of_adapter / 2, 4 * resolution):  # so that NaN is refused
        raise UserError(
            f"the merged model's logits are {difference:.4f} from the adapter's, which itself moves those of the base "
            f"model by {effect_of_adapter:.4f}: it would not answer as the adapter does, and is not kept. Is the base "
            "model the one that the adapter was trained on?"
        )
    return {
        "prompts": len(adapter),
        "mean_difference": difference,
        "largest_difference": off.max().item(),
        "mean_effect_of_adapter": effect_of_adapter,
        "resolution": resolution,
        "same_first_token": (merged.argmax(-1) == adapter.argmax(-1)).sum().item(),
    }


def merge(model_path: str, base: str, folder: Path) -> None:
    """Write the merged model and the facts of its run into `folder`. Raises as `load_model` and `compare`."""
    import torch

    from sft.inference.assistant import demo_prompts

    print(f"Loading {model_path} onto {base}", flush=True)
    model, tokenizer = models.load_model(model_path, torch.bfloat16, device="cpu", base=base)
    if models.adapts_tied_embeddings(model):
        raise UserError(
            f"{model_path} adapts the input embeddings, which are the output layer of {base} too: merged, it would be "
            "another model. Use the adapter as it is"
        )
    prompts = demo_prompts(tokenizer, models.prompt_format(model_path))
    adapted = next_token_logits(model, prompts)
    with model.disable_adapter():
        plain = next_token_logits(model, prompts)
    model = model.merge_and_unload(progressbar=True, safe_merge=True)
    comparison = compare(plain, adapted, next_token_logits(model, prompts))
    print(
        "Logits on {prompts} prompts: merged and adapter differ by {mean_difference:.4f} on average and "
        "{largest_difference:.4f} at most; the adapter moves those of its base by {mean_effect_of_adapter:.4f}. Same "
        "first token on {same_first_token} of {prompts}\nSaving".format(**comparison),
        flush=True,
    )
    # A recipe's eos_token is in the tokenizer alone; servers stop where these two say.
    ends = stop_tokens(tokenizer)
    for config in (model.generation_config, model.config.get_text_config()):
        own = config.eos_token_id
        if ends - set(own if isinstance(own, list) else [own]):
            config.eos_token_id = sorted(ends)
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    write_for_transformers_4(folder)
    for name in (models.PROMPT_FILE, models.RECIPE, *models.RESULT_FILES):
        if file := repo_file(model_path, name):
            shutil.copyfile(file, folder / name)
    if file := repo_file(model_path, models.MANIFEST):
        onto = {"name": strip_local_paths(pinned(base)[0]), "revision": models.commit_of(base)}
        write_json(folder / models.MANIFEST, {**read_json(file), "merged": {**comparison, "onto": onto}})
