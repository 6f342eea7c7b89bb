"""The folder that is uploaded: what may be in it, and the facts that its card is written from."""

import argparse
import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from sft.common.command import UserError, read_json, write_json
from sft.common.hub import is_id, pinned
from sft.common.models import (
    ADAPTER,
    ADAPTER_CONFIG,
    FACTS,
    MANIFEST,
    PROMPT_FILE,
    RECIPE,
    base_of,
    check_model_folder,
    load_config,
    prompt_format,
)
from sft.evaluation.comparison import read_evaluation
from sft.publishing.leaks import find_leaks

CARD = "README.md"
EVALUATION = "evaluation"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
)
WEIGHTS = (
    *(ADAPTER, ADAPTER_CONFIG, "config.json", "generation_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
)
# All that is ever uploaded. What else lies in a folder stays there.
ALLOWED = (*WEIGHTS, *TOKENIZER, PROMPT_FILE, MANIFEST, RECIPE, *FACTS, CARD, f"{EVALUATION}/*.json")


def check_facts(folder: Path) -> None:
    """Refuse a folder whose model no card could be written of.

    Raises:
        UserError: no model, or one without the facts of its run.
    """
    check_model_folder(str(folder))
    if not folder.is_dir():
        raise UserError(f"--model_path {folder} is no folder: name the final_model of a run of sft/run.py")
    missing = [name for name in (MANIFEST, RECIPE, PROMPT_FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(missing)}: publish the final_model of a run of sft/run.py (a checkpoint, or "
            "a model from elsewhere, lacks the facts that its card would state)"
        )


def check_base(model_path: str, given: str | None) -> str:
    """The Hub id of the base model, which everybody has to find: `given`, or the one that the run began with.

    Raises:
        UserError: it is a folder of this machine, or no id.
    """
    manifest = read_json(Path(model_path) / MANIFEST)
    try:
        trained = manifest["merged"]["onto"] if "merged" in manifest else manifest["base_model"]
        trained = {"name": trained["name"], "revision": trained["revision"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{model_path}/{MANIFEST} does not tell the base model: train with this version") from error
    base = given or (f"{trained['name']}@{trained['revision']}" if trained["revision"] else trained["name"])
    name, _ = pinned(base)
    on_hub = is_id(name) and not Path(name).exists()
    if given and not on_hub:
        raise UserError(f"--base_model {given}: give the model's id on the Hub, OWNER/NAME or OWNER/NAME@COMMIT")
    if not on_hub:
        raise UserError(
            f"{model_path} was trained on {name}, a folder that nobody else has: name the same model on the Hub with "
            "--base_model OWNER/NAME (or OWNER/NAME@COMMIT)"
        )
    return base


def read_results(folders: Sequence[Path], model: Path) -> list[dict[str, Any]]:
    """results.json of evaluations of this very model.

    Raises:
        UserError: one is no finished evaluation, or of another model; or two have the same name.
    """
    from sft.common.command import sha256

    weights = {f"{file.name}:{sha256(file)}" for file in model.glob("*.safetensors")} if folders else set()
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        results = read_evaluation(folder).results
        if not weights <= set(results["fingerprint"].get("model", [])):
            raise UserError(
                f"--evaluation {folder} is not of {model} (its weights are others): evaluate this model with "
                f"python sft/evaluate.py --model_path {model}"
            )
        name = Path(results["name"]).name  # which becomes a file's
        if name in found:
            raise UserError("--evaluation: two of them have the same name: evaluate with another --name")
        found[name] = {**results, "name": name}
    return list(found.values())


def licence_of(base: str) -> str | None:
    """The licence that the base model's page names, or None where it cannot be asked."""
    from huggingface_hub import HfApi

    name, revision = pinned(base)
    try:
        card = HfApi().model_info(name, revision=revision).card_data
        return (card.get("license_name") or card.get("license")) if card else None
    except Exception:  # whatever the HTTP library raises; the card then says to see the page
        return None


def stage(
    args: argparse.Namespace, base: str, merged_onto: str | None, evaluations: Sequence[dict[str, Any]], folder: Path
) -> None:
    """Write exactly what is to be published into the existing `folder`, merged onto a base model if one is given.

    Raises:
        UserError: the model cannot be merged, a fact is missing, or something in it should stay here.
    """
    from sft.publishing.card import Facts, model_card
    from sft.publishing.merging import comparison_line, merge

    model = Path(args.model_path)
    if merged_onto:
        print(comparison_line(merge(args.model_path, merged_onto, folder)))
    else:
        for file in sorted(path for path in model.iterdir() if any(fnmatch(path.name, name) for name in ALLOWED)):
            link_or_copy(file, folder / file.name)
        (folder / CARD).unlink(missing_ok=True)
    name, revision = pinned(base)
    if args.base_model:  # the recipe that travels names the model where others find it
        recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
        recipe |= {"model_name_or_path": name, "model_revision": revision or "main"}
        (folder / RECIPE).unlink()
        (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if is_adapter := (folder / ADAPTER_CONFIG).is_file():
        config = read_json(model / ADAPTER_CONFIG)
        for rewritten in (ADAPTER_CONFIG, "config.json"):
            (folder / rewritten).unlink(missing_ok=True)  # not through the link
        # `transformers serve` (5.23) looks at the base model's configuration before it looks for an adapter.
        load_config(base_here(args.model_path, base)).save_pretrained(folder)
        write_json(folder / ADAPTER_CONFIG, {**config, "base_model_name_or_path": name, "revision": revision})
    # How this machine found the tokenizer: others find it elsewhere.
    found = read_json(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").unlink()
    found = {key: value for key, value in found.items() if key not in ("is_local", "local_files_only")}
    write_json(folder / "tokenizer_config.json", found)
    for results in evaluations:
        (folder / EVALUATION).mkdir(exist_ok=True)
        write_json(folder / EVALUATION / f"{results['name']}.json", results)

    def told(name: str, otherwise: Any) -> Any:
        return read_json(folder / name) if (folder / name).is_file() else otherwise

    manifest = read_json(folder / MANIFEST)
    facts = Facts(
        repo=args.repo,
        base=name,
        revision=revision,
        is_adapter=is_adapter,
        answer_format=prompt_format(str(folder)),
        licence=args.license,
        base_licence=licence_of(base),
        manifest=manifest,
        dev=told("eval_results.json", {}),
        history=told("history.json", []),
        evaluations=list(evaluations),
        evaluated_before_merging=merged_onto is not None,
        base_was_named=bool(args.base_model),
    )
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    data = [str(told["name"]) for told in manifest.get("datasets", []) if not Path(str(told["name"])).exists()]
    leaks = find_leaks(folder, published=(args.repo, name, *(id for id in data if id.count("/") == 1)))
    if leaks:
        more = f" (and {len(leaks) - 3} more)" if len(leaks) > 3 else ""
        raise UserError(f"not published, because it would tell: {'; '.join(leaks[:3])}{more}: take it out of {model}")


def base_here(model_path: str, base: str) -> str:
    """The base model that an adapter names, or `base` where its folder is gone."""
    named = base_of(model_path)
    return named if Path(named).exists() else base


def link_or_copy(file: Path, to: Path) -> None:
    """The same file under another name, without a second copy of its bytes where the disk allows it."""
    try:
        os.link(file.resolve(), to)
    except OSError:  # another disk
        shutil.copyfile(file, to)
