"""The folder that is uploaded: what may be in it, and the facts that its card is written from."""

import argparse
import contextlib
import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub  # which loads its parts when they are used
import yaml

from sft.common import models
from sft.common.command import UserError, atomic_write, read_json, sha256, write_json
from sft.common.hub import is_id, pinned
from sft.common.models import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, PROMPT_FILE, RECIPE, RESULT_FILES
from sft.common.transformers4 import write_for_transformers_4
from sft.evaluation.comparison import read_evaluation
from sft.publishing.leaks import find_leaks

CARD_FILE = "README.md"
EVALUATION_FOLDER = "evaluation"
# All that is ever uploaded. What else lies in a folder stays there.
UPLOADED_FILES = (
    *(ADAPTER_WEIGHTS, ADAPTER_CONFIG, "config.json", "generation_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
    *(PROMPT_FILE, MANIFEST, RECIPE, *RESULT_FILES, CARD_FILE, f"{EVALUATION_FOLDER}/*.json"),
)


def check_facts(folder: Path) -> None:
    """Raise `UserError` for a folder with no model, or with one that lacks the facts that its card would state."""
    models.check_model_folder(str(folder))
    if not folder.is_dir():
        raise UserError(f"--model_path {folder} is not a folder: name the final_model of a run of sft/run.py")
    if missing := [name for name in (MANIFEST, RECIPE, PROMPT_FILE) if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} has no {', '.join(missing)}: publish the final_model of a run of sft/run.py (a checkpoint, or "
            "a model from elsewhere, lacks the facts that its card would state)"
        )


def check_base(model_path: str, given: str | None) -> tuple[str, str]:
    """The base model as (id on the Hub, where everybody can get it; what it is loaded from here).

    The id is `given`, or the model that the run began with. It is loaded from the folder that the adapter names, or
    from the Hub where there is none; a merged model or a full fine-tune is loaded itself. Raises `UserError` without
    an id, or for a folder of this machine alone.
    """
    manifest = read_json(Path(model_path) / MANIFEST)
    try:
        trained = manifest["merged"]["onto"] if "merged" in manifest else manifest["base_model"]
        name, revision = trained["name"], trained["revision"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{model_path}/{MANIFEST} does not name the base model: train with this version") from error
    base = given or (f"{name}@{revision}" if revision else name)
    name, _ = pinned(base)
    if not is_id(name) or Path(name).exists():
        if given:
            raise UserError(f"--base_model {given}: give the model's id on the Hub, OWNER/NAME or OWNER/NAME@COMMIT")
        raise UserError(
            f"{model_path} was trained on {name}, a folder that nobody else has: name the same model on the Hub with "
            "--base_model OWNER/NAME (or OWNER/NAME@COMMIT)"
        )
    named = models.base_of(model_path)
    return base, named if Path(named).exists() else base


def read_results(folders: Sequence[Path], model: Path) -> list[dict[str, Any]]:
    """results.json of evaluations; raises `UserError` for unfinished ones, another model's, or two of one name."""
    weights = {f"{file.name}:{sha256(file)}" for file in model.glob("*.safetensors")} if folders else set()
    by_name: dict[str, dict[str, Any]] = {}
    for folder in folders:
        results = read_evaluation(folder).results
        if not weights <= set(results["fingerprint"].get("model", [])):
            raise UserError(
                f"--evaluation {folder} is not of {model} (its weights are others): evaluate this model with "
                f"python sft/evaluate.py --model_path {model}"
            )
        name = Path(results["name"]).name  # which becomes a file's
        if name in by_name:
            raise UserError("--evaluation: two of them have the same name: evaluate with another --name")
        by_name[name] = {**results, "name": name}
    return list(by_name.values())


def licence_of(base: str) -> str | None:
    """The licence that the base model's page names, or None where the Hub cannot be reached."""
    name, revision = pinned(base)
    with contextlib.suppress(Exception):  # whatever the HTTP library raises; the card then says to see the page
        card = huggingface_hub.model_info(name, revision=revision).card_data or {}
        return card.get("license_name") or card.get("license")
    return None


def stage(
    args: argparse.Namespace, base: str, base_here: str, merged_onto: str | None, evaluations: list[dict], folder: Path
) -> None:
    """Write what is to be published into `folder`. Raises `UserError` as `merge`, for missing facts, and for leaks."""
    from sft.publishing.card import Facts, model_card
    from sft.publishing.merging import merge

    model = Path(args.model_path)
    if merged_onto:
        merge(args.model_path, merged_onto, folder)
    else:
        for file in model.iterdir():
            if file.name != CARD_FILE and any(fnmatch(file.name, pattern) for pattern in UPLOADED_FILES):
                try:
                    os.link(file.resolve(), folder / file.name)
                except OSError:  # another disk
                    shutil.copyfile(file, folder / file.name)
    config = models.load_config(merged_onto or base_here)
    name_base(folder, base, config, in_recipe=bool(args.base_model))
    older_versions_read_it = write_for_transformers_4(folder)
    name, revision = pinned(base)
    for results in evaluations:
        (folder / EVALUATION_FOLDER).mkdir(exist_ok=True)
        of_base = {"base_model": {"name": name, "commit": revision}}
        write_json(folder / EVALUATION_FOLDER / f"{results['name']}.json", results | of_base)

    manifest = read_json(folder / MANIFEST)
    dev, history = folder / "eval_results.json", folder / "history.json"
    facts = Facts(
        repo=args.repo,
        base=name,
        revision=revision,
        is_adapter=(folder / ADAPTER_CONFIG).is_file(),
        model_class=models.model_class(config).__name__,
        stored_quantisation=models.stored_quantisation(config),
        older_versions_read_it=older_versions_read_it,
        answer_format=models.prompt_format(str(folder)),
        licence=args.license,
        base_licence=licence_of(base),
        manifest=manifest,
        dev=read_json(dev) if dev.is_file() else {},
        history=read_json(history) if history.is_file() else [],
        evaluations=evaluations,
        evaluated_before_merging=merged_onto is not None,
        base_was_named=bool(args.base_model),
    )
    (folder / CARD_FILE).write_text(model_card(facts), encoding="utf-8")
    data = [str(data_set["name"]) for data_set in manifest.get("datasets", [])]
    public = [repo for repo in data if repo.count("/") == 1 and not Path(repo).exists()]
    if leaks := find_leaks(folder, published=(args.repo, name, *public)):
        more = f" (and {len(leaks) - 3} more)" if len(leaks) > 3 else ""
        raise UserError(f"not published: the files contain {'; '.join(leaks[:3])}{more}: remove it from {model}")


def name_base(folder: Path, base: str, config: Any, in_recipe: bool) -> None:
    """Let the files in `folder` name the base model, whose `config` this is, by its id on the Hub, and nothing local.

    Each is replaced, not changed: it may be a link to a file of the model.
    """
    name, revision = pinned(base)
    if in_recipe:
        recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
        recipe |= {"model_name_or_path": name, "model_revision": revision or "main"}
        with atomic_write(folder / RECIPE) as file:
            file.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if (folder / ADAPTER_CONFIG).is_file():
        adapter = read_json(folder / ADAPTER_CONFIG)
        write_json(folder / ADAPTER_CONFIG, {**adapter, "base_model_name_or_path": name, "revision": revision})
        # `transformers serve` (5.23) looks at the base model's configuration before it looks for an adapter.
        (folder / "config.json").unlink(missing_ok=True)
        config.save_pretrained(folder)
    tokenizer = read_json(folder / "tokenizer_config.json")
    kept = {key: value for key, value in tokenizer.items() if key not in ("is_local", "local_files_only")}
    write_json(folder / "tokenizer_config.json", kept)
