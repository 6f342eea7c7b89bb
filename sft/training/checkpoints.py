"""Checkpoints: which are complete, from which a run continues, and whether it is the same run.

A checkpoint is complete if it holds run_manifest.json, which is written last (stopping.py), and every file that it
lists. Another is what a killed run left; nothing continues from it.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from sft.common.command import UserError, read_json, write_json
from sft.common.hub import loading_errors
from sft.common.models import ADAPTER_WEIGHTS, MANIFEST, check_adapter
from sft.training.config import AUTO, Settings

# Settings that may change between a checkpoint and its continuation: they decide what is seen and kept, not what is
# learned. Paths are free because the data, the tokenizer and the template are compared by content.
MAY_CHANGE_ON_RESUME = {
    *("output_dir", "dataset_name", "dataset_mixture", "chat_template_path", "run_name", "project", "report_to"),
    *("resume_from_checkpoint", "resume_weights_only", "dry_run", "probe_steps", "price_per_hour", "print_config"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "disable_tqdm", "mcq_eval_samples"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
    *("attn_implementation", "global_batch_size", "per_device_eval_batch_size", "dataset_num_proc"),
    *("ddp_timeout", "ddp_backend", "torch_empty_cache_steps", "push_to_hub", "chat_template_kwargs"),
}
MAY_CHANGE_PREFIXES = ("eval_", "save_", "log_", "logging_", "dataloader_", "hub_", "trackio_")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Settings that change how long the run is, and so its learning-rate schedule; they may change, and it is noted.
RUN_LENGTH_KEYS = {"num_train_epochs", "max_steps"}
# Facts of a manifest that must be the same when a run continues, and their names in a refusal.
SAME_ON_RESUME = {
    "world_size": "process(es)",
    "launcher": "launch",
    "zero_stage": "ZeRO stage",
    "data": "fingerprint of the training rows",
    "tokens": "fingerprint of tokenizer and chat template",
    "figures": "what makes pixels of figures",
}


def mark_complete(checkpoint: Path, description: dict) -> None:
    """Write the manifest into `checkpoint`, with every file in it and its size in bytes."""
    files = {
        str(file.relative_to(checkpoint)): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_json(checkpoint / MANIFEST, {**description, "files": files})


def complete_manifest(checkpoint: Path) -> dict | None:
    """The manifest of a complete checkpoint; None if it has none, or a file is missing."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        complete = all((checkpoint / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if complete else None


def resume_point(settings: Settings) -> Path | None:
    """The checkpoint to continue from (or to take the weights of), or None for a fresh start.

    Raises `UserError` for one that does not exist or is not complete, or if an earlier run would be overwritten.
    """
    out, resume = Path(settings.output_dir), settings.resume_from_checkpoint
    checkpoints, finished = checkpoints_in(out), (out / "final_model").exists()
    complete = [folder for folder in checkpoints if complete_manifest(folder)]
    if (finished or checkpoints) and (resume is None or settings.resume_weights_only):
        advice = "" if settings.resume_weights_only else "continue it with --resume_from_checkpoint auto, or "
        raise UserError(f"output_dir {out} holds an earlier run: {advice}choose another --output_dir")
    if resume is None:
        return None
    checkpoint = Path(resume)
    if resume.lower() in AUTO:
        if not complete and (finished or (checkpoints and not (out / MANIFEST).is_file())):
            raise UserError(f"output_dir {out} holds an earlier run and no complete checkpoint: choose another one")
        if not complete:
            return None
        checkpoint = complete[-1]
    if not (checkpoint / "trainer_state.json").is_file():
        raise UserError(f"resume_from_checkpoint {resume} is no checkpoint: name a checkpoint-* folder, or auto")
    if settings.resume_weights_only:
        return checkpoint
    if not complete_manifest(checkpoint):
        raise UserError(
            f"resume_from_checkpoint {resume} is not complete (the run was stopped while writing it, or files are "
            "missing): pass auto, which takes the latest complete one"
        )
    if not (any(checkpoint.glob("optimizer.*")) or any(checkpoint.glob("global_step*"))):
        raise UserError(
            f"{checkpoint} holds no optimizer state (save_only_model), so the run cannot go on as it was: begin a new "
            "one with --resume_weights_only yes --output_dir NEW"
        )
    if later := [folder.name for folder in complete if step_of(folder) > step_of(checkpoint)]:
        raise UserError(
            f"output_dir {out} holds {', '.join(later)}, which a run from {checkpoint.name} would overwrite: pass "
            "auto to go on from the latest, or choose another --output_dir"
        )
    return checkpoint


def step_of(checkpoint: Path) -> int:
    """N of a ``checkpoint-N`` folder, the optimizer steps before it; raises `UserError` for another name."""
    if name := CHECKPOINT.fullmatch(checkpoint.name):
        return int(name[1])
    raise UserError(f"resume_from_checkpoint {checkpoint}: name a folder checkpoint-N, as the run wrote it")


def checkpoints_in(folder: Path) -> list[Path]:
    """The ``checkpoint-N`` folders in `folder`, by step. Folders with other names are copies of the user's."""
    return sorted((path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)), key=step_of)


def remove_incomplete(output_dir: Path) -> list[str]:
    """Delete what a killed run left half-written in its own folder; returns the names."""
    if not (output_dir / MANIFEST).is_file():  # another program's folder
        return []
    folders = [*checkpoints_in(output_dir), *output_dir.glob(".final_model.tmp")]
    incomplete = [folder for folder in folders if not complete_manifest(folder)]
    for folder in incomplete:
        shutil.rmtree(folder)
    return [folder.name for folder in incomplete]


def compare(checkpoint: Path, now: dict) -> list[str]:
    """Compare the manifest in `checkpoint` with that of this run; returns lines about differences that do no harm.

    Raises `UserError` for those that would make the continuation another run: all of them, and the ways out.
    """
    before = read_json(checkpoint / MANIFEST)
    pairs = {name: (before.get(key), now.get(key)) for key, name in SAME_ON_RESUME.items()}
    faults = [f"{name} {old}, now {new}" for name, (old, new) in pairs.items() if old != new]
    notes = []
    old, new = before.get("settings", {}), now["settings"]
    # A key that only one side knows came or went with a version of the libraries, which is noted below.
    for key in sorted((old.keys() & new.keys()) - MAY_CHANGE_ON_RESUME):
        if old[key] == new[key] or key.startswith(MAY_CHANGE_PREFIXES):
            continue
        change = f"{key} {old[key]}, now {new[key]}"
        if key in RUN_LENGTH_KEYS:
            notes.append(f"{change}: the learning rate follows the new length from here on")
        elif key != "gradient_accumulation_steps" or before.get("world_size") == now["world_size"]:
            faults.append(change)
    if faults:
        raise UserError(
            f"{checkpoint} belongs to another run: {'; '.join(faults)}. Put the old values back, or begin a new run "
            f"with its weights alone: --resume_from_checkpoint {checkpoint} --resume_weights_only yes --output_dir NEW"
        )
    old, new = ({**run.get("versions", {}), "code": run.get("git_revision")} for run in (before, now))
    return notes + [f"{name} {old.get(name)}, now {new[name]}" for name in new if old.get(name) != new[name]]


def load_weights(model: Any, checkpoint: Path) -> None:
    """Put a checkpoint's adapter into a model not yet prepared for training; raises `UserError` if it does not fit."""
    if not (checkpoint / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{checkpoint} holds no adapter: for a full fine-tune set model_name_or_path to this folder")
    words = f"the adapter in {checkpoint} does not fit this recipe's model and lora_* keys"
    with loading_errors(words, advice="", also=KeyError):
        check_adapter(model, model.load_adapter(checkpoint, "default", is_trainable=True))
