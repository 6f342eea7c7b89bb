"""Stop and continue: signals, the checkpoint that a signal saves, and the words that continue the run."""

import functools
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sft.common.command import write_json
from sft.common.models import MANIFEST
from sft.training.checkpoints import load_weights, mark_complete, remove_incomplete
from sft.training.config import Settings

# A second signal within so many seconds is an echo of the first; later it ends the process at once.
SECOND_SIGNAL_SECONDS = 5.0


def begin(
    trainer: Any, settings: Settings, description: dict, checkpoint: Path | None, notes: list[str]
) -> "GracefulStopCallback":
    """Make a run ready to be stopped and continued: clean up, write its manifest, and listen for signals.

    `notes` are what `compare` returned for `checkpoint`.

    Raises:
        UserError: the weights of `checkpoint` do not fit.
    """
    if checkpoint and settings.resume_weights_only:
        load_weights(trainer.model, checkpoint)
        notes = [f"weights of {checkpoint}; optimizer, schedule and place in the data start anew"]
    elif checkpoint:
        notes = [f"continuing from {checkpoint}", *notes]
        trainer.args.eval_on_start = False  # the base model was evaluated at the start of the run
    if trainer.is_world_process_zero():
        out = Path(settings.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        notes += [f"removed {name}, which an earlier run left half-written" for name in remove_incomplete(out)]
        write_json(out / MANIFEST, description)
        print("".join(f"Note: {note}\n" for note in notes), end="", flush=True)
    trainer.accelerator.wait_for_everyone()
    if settings.use_peft:
        trainer.model.active_peft_config.revision = description["base_model"]["revision"]
        # Loading a checkpoint's adapter would make it float32 (PEFT's default); TRL trains that of a quantised model
        # in bf16. Without this, a continued 8-bit run differs from the one that was stopped (test_stopping.py).
        trainer.model.load_adapter = functools.partial(trainer.model.load_adapter, autocast_adapter_dtype=False)
    continued = str(checkpoint) if checkpoint and not settings.resume_weights_only else None
    graceful_stop = GracefulStopCallback(trainer, description, continued)
    trainer.add_callback(graceful_stop)
    return graceful_stop


class AlreadyTrained(Exception):
    """The checkpoint is from the last step, so nothing is left to train."""


class GracefulStopCallback(TrainerCallback):
    """Marks every checkpoint complete; on SIGTERM or SIGUSR1 saves one after the current step and ends the training.

    SLURM sends SIGUSR1 some minutes before the time limit if the job requests it (docs/slurm.sh). A second signal acts
    as usual.
    """

    def __init__(self, trainer: Any, description: dict, continued: str | None):
        self.trainer = trainer
        self.description = description
        self.continued = continued  # the checkpoint that the run goes on from
        self.received_at: float | None = None  # when the first signal came
        self.stopped = False

    def train(self) -> None:
        """Train, from the checkpoint if there is one, to the end or to a signal."""
        try:
            self.trainer.train(resume_from_checkpoint=self.continued)
        except AlreadyTrained:
            trainer = self.trainer
            if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
                trainer._load_best_model()
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen, on every process.

        Raises:
            AlreadyTrained: the run was killed after its last step; transformers 5.23 would take one more.
        """
        if state.global_step >= state.max_steps:
            raise AlreadyTrained

        def listen(number: int, _: Any) -> None:
            # torchrun passes on a SIGTERM that the scheduler has sent already: the same signal, twice.
            if self.received_at is None:
                self.received_at = time.monotonic()
            elif time.monotonic() - self.received_at > SECOND_SIGNAL_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        if state.is_world_process_zero:
            print(f"To stop with a checkpoint: kill -USR1 {os.getpid()}", flush=True)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, listen)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agree with the other processes, whose signal may come a step later, and stop together."""
        import torch

        received = self.received_at is not None
        if self.trainer.accelerator.num_processes > 1:
            flag = torch.tensor(int(received), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            received = bool(flag.item())
        if received:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            self.stopped = True
            args.load_best_model_at_end = False  # the time is better spent on saving

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """transformers comes by here after a stop too: nothing more is evaluated or saved."""
        if self.stopped:
            control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint complete when every process has written its part."""
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.description)

    def print_resume_command(self) -> None:
        """Say where the run stopped and how it goes on: by the same command, from the checkpoint just saved."""
        if self.trainer.is_world_process_zero():
            words = re.sub(r" --(resume_from_checkpoint|resume_weights_only)[= ]\S+", "", shlex.join(sys.argv))
            print(f"Stopped by a signal after step {self.trainer.state.global_step}; the checkpoint is saved.")
            print("Continue with the same command and --resume_from_checkpoint auto:")
            print(f"  ... {words} --resume_from_checkpoint auto", flush=True)
        self.trainer.end()
