"""Where a run starts (fresh, or from a checkpoint) and how it leaves its final model: whole, or not at all."""

import shutil
from pathlib import Path
from typing import Any

from data_prep.command import UserError
from sft.models import save_prompt_format


def resume_point(output_dir: str, resume: str | None) -> str | None:
    """The checkpoint to continue from, or None for a fresh start.

    `resume` is the recipe's `resume_from_checkpoint`: a folder, ``auto`` for the latest, or None.

    Raises:
        UserError: the checkpoint does not exist, or a fresh start would overwrite an earlier run.
    """
    from transformers.trainer_utils import get_last_checkpoint

    last = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if resume is None:
        if last or (Path(output_dir) / "final_model").exists():
            raise UserError(
                f"output_dir {output_dir} holds an earlier run: continue it with --resume_from_checkpoint auto, or "
                "choose another --output_dir"
            )
        return None
    if resume.lower() in ("auto", "yes", "true"):
        return last
    if not (Path(resume) / "trainer_state.json").is_file():
        raise UserError(f"resume_from_checkpoint {resume} is no checkpoint: name a checkpoint-* folder, or auto")
    return resume


def save_final_model(trainer: Any, answer_format: str) -> Path:
    """Save model, tokenizer and chat template to OUTPUT_DIR/final_model under a temporary name, then rename.

    Called by every process: under ZeRO-3 each holds a part of the weights.
    """
    final = Path(trainer.args.output_dir) / "final_model"
    temporary = final.with_name(".final_model.tmp")
    trainer.save_model(str(temporary))
    if trainer.is_world_process_zero():
        # A pickle, and PEFT's empty card: neither belongs into a folder that others will load.
        for name in ("training_args.bin", "README.md"):
            (temporary / name).unlink(missing_ok=True)
        save_prompt_format(temporary, answer_format)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    trainer.accelerator.wait_for_everyone()
    return final
