"""What the libraries refuse while a run is built becomes a `UserError`, and much of it before the model loads."""

import contextlib
import copy
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft.common.command import UserError, first_line
from sft.training.launch import current_launch

OURS = tuple(str(Path(__file__).parents[2] / package) + os.sep for package in ("sft", "data_prep"))


@contextlib.contextmanager
def library_refusals(where: str, building: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Turn what a library raises in the block into a `UserError`: ``WHERE: its first line``, while `building` says so.

    A full memory becomes one at any time. An error of our own code, also of what the library calls back, stays.
    """
    try:
        yield
    except Exception as error:
        full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        # Of a full memory the other processes speak themselves: it may be theirs alone (`run` prints the first's).
        if full and os.environ.get("RANK", "0") == "0":
            raise UserError(
                f"{where}: out of memory ({first_line(error)}): lower per_device_train_batch_size (in an evaluation "
                "per_device_eval_batch_size), turn on activation_checkpointing, or use recipes/pmcvqa_16gb.yaml; "
                "python sft/preflight.py shows what takes how much"
            ) from error
        if full or not building() or not _raised_by_library(error):
            raise
        raise UserError(f"{where}: {first_line(error).rstrip('.')}") from error


def _raised_by_library(error: Exception) -> bool:
    """Whether the call that failed went from our code into a library and not back, so that what it got is wrong."""
    ours = [frame.filename.startswith(OURS) for frame in traceback.extract_tb(error.__traceback__)]
    return False in ours and True not in ours[ours.index(False) :]


def rehearse(settings: Any, training_args: Any) -> None:
    """Build with a model of one weight what the libraries build of the settings after the model has loaded.

    Quantisation, accelerator, trackers, loader, optimizer, schedule. Raises `UserError` for what they refuse.
    """
    import torch
    from transformers import PretrainedConfig, Trainer
    from trl import ModelConfig, get_quantization_config

    if current_launch().kind not in ("none", "ddp"):  # DeepSpeed and FSDP need the model itself
        return
    args = copy.copy(training_args)
    with library_refusals(str(settings.recipe)), tempfile.TemporaryDirectory() as args.output_dir:
        get_quantization_config(settings.build(ModelConfig))
        stand_in = torch.nn.Linear(1, 1)
        stand_in.config = PretrainedConfig()
        trainer = Trainer(stand_in, args, train_dataset=[0], eval_dataset=[0])
        trainer.get_train_dataloader()
        if not args.optim_target_modules:  # names of the real model
            trainer.create_optimizer_and_scheduler(num_training_steps=10)


def train(trainer: Any, **options: Any) -> Any:
    """`trainer.train`; what a library refuses before the first step (DeepSpeed, a tracker) is a `UserError`."""
    from transformers import TrainerCallback

    class FirstStep(TrainerCallback):
        began = False

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = True

    first = FirstStep()
    trainer.add_callback(first)
    with library_refusals("the training cannot begin", building=lambda: not first.began):
        return trainer.train(**options)
