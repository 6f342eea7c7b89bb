"""What a run records: everything that decides what it learns, its results, and the final model's folder."""

import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from sft.common.chat_template import tokenizer_fingerprint
from sft.common.command import read_json, strip_local_paths, write_json
from sft.common.data import data_fingerprint, provenance
from sft.common.models import MANIFEST, RECIPE, RESULT_FILES, commit_of, save_prompt_format
from sft.common.transformers4 import write_for_transformers_4
from sft.common.vision import vision_of
from sft.training.checkpoints import remove_incomplete, step_of
from sft.training.config import Settings
from sft.training.hardware import Hardware, cpu_name
from sft.training.launch import Launch

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "deepspeed")


def git_revision() -> str | None:
    """The commit of this project's code, with ``+changes`` if files differ from it, or None if nothing records it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # a repository around it is another project's
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            # pip records the commit of a git+https address.
            origin = importlib.metadata.distribution("pmcvqa-sft").read_text("direct_url.json")
            return json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
        return None
    words = ("git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_run(settings: Settings, launch: Launch, hardware: Hardware, rows: Any, tokenizer: Any) -> dict[str, Any]:
    """The manifest: all that decides what a run learns from these training rows, and on what, as one JSON object."""
    vision = vision_of(tokenizer)
    columns = ["input_ids", "labels"] if "input_ids" in rows.column_names else ["prompt", "completion"]
    columns += ["images", "figure_sha256"] if vision else []
    return {
        "recipe": settings.recipe.name,
        "settings": settings.values,
        "base_model": {
            "name": settings.model_name_or_path,
            "revision": commit_of(settings.model),
            "quantised": settings.stored,
        },
        "datasets": provenance(settings.dataset_weights()),
        "hardware": hardware.name if hardware.count else f"CPU, {cpu_name()}",
        "data": data_fingerprint(rows, columns),
        "tokens": tokenizer_fingerprint(tokenizer),
        "figures": vision.fingerprint() if vision else None,
        "figure_settings": vision.settings() if vision else None,
        "chat_template": tokenizer.template_source,
        "launch": launch.name,
        "launcher": launch.kind,
        "zero_stage": launch.zero_stage,
        "world_size": launch.processes,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
    }


def begin_output_dir(trainer: Any, manifest: dict[str, Any], notes: list[str]) -> None:
    """Write the manifest into output_dir, once what an earlier part of the run left half-written there is removed.

    Prints the notes and what was removed. Called by every process.
    """
    if trainer.is_world_process_zero():
        out = Path(trainer.args.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        removed = [f"removed {name}, which an earlier run left half-written" for name in remove_incomplete(out)]
        write_json(out / MANIFEST, manifest)
        print("".join(f"Note: {note}\n" for note in [*notes, *removed]), end="", flush=True)
    trainer.accelerator.wait_for_everyone()


def write_results(trainer: Any) -> None:
    """Write eval_results.json: loss and accuracy on dev of the base model (step 0) and of the model kept.

    Called by every process: a kept model that is not that of the last step was loaded, and is evaluated once more.
    """

    def measured(*rows: dict[str, Any]) -> dict[str, Any]:
        merged = {key: value for row in rows for key, value in row.items()}
        return {key: value for key, value in merged.items() if key == "eval_loss" or key.startswith("eval_mcq")}

    state, best = trainer.state, trainer.state.best_model_checkpoint
    # Without eval_on_start nothing is known of the base model.
    base, kept = (measured(*(row for row in state.log_history if row["step"] == n)) for n in (0, state.global_step))
    loaded = best is not None and step_of(Path(best)) != state.global_step
    if trainer.eval_dataset is not None and (loaded or "eval_loss" not in kept):
        kept = measured(trainer.evaluate())
    if trainer.is_world_process_zero():
        results = {"best_checkpoint": Path(best).name if best else None}
        results |= {name: metrics for name, metrics in (("base", base), ("best", kept)) if metrics}
        write_json(Path(trainer.args.output_dir) / "eval_results.json", results)


def save_final_model(trainer: Any, settings: Settings, tokenizer: Any, answer_format: str) -> Path:
    """Save OUTPUT_DIR/final_model, ready to be published, under a temporary name, then rename.

    Called by every process: under ZeRO-3 each holds a part of the weights.
    """
    final = Path(trainer.args.output_dir) / "final_model"
    temporary = final.with_name(".final_model.tmp")
    trainer.save_model(str(temporary))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        # A pickle, and PEFT's empty card: neither belongs into a folder that others will load.
        for name in ("training_args.bin", "README.md"):
            (temporary / name).unlink(missing_ok=True)
        (final.parent / "README.md").unlink(missing_ok=True)  # TRL's, of a model named None
        write_for_transformers_4(temporary)
        save_prompt_format(temporary, tokenizer, answer_format)
        for name in RESULT_FILES:
            if (final.parent / name).is_file():
                shutil.copyfile(final.parent / name, temporary / name)
        manifest = read_json(final.parent / MANIFEST)
        write_json(temporary / MANIFEST, strip_local_paths(manifest))
        (temporary / RECIPE).write_text(settings.as_recipe(manifest["base_model"]["revision"]), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        print(f"Wrote {final}", flush=True)
    trainer.accelerator.wait_for_everyone()
    return final
