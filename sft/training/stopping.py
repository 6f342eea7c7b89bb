"""Stop and continue: signals, the checkpoint that a signal saves, and the command that continues the run."""

import itertools
import os
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from sft.common.models import save_prompt_format
from sft.training import libraries
from sft.training.checkpoints import mark_complete

# A second signal within so many seconds is an echo of the first; later it ends the process at once.
SECOND_SIGNAL_SECONDS = 5.0
RESUME_OPTIONS = ("--resume_from_checkpoint", "--resume_weights_only")


class AlreadyTrained(Exception):
    """The checkpoint is from the last step, so nothing is left to train."""


class GracefulStopCallback(TrainerCallback):
    """Marks every checkpoint complete; on SIGTERM or SIGUSR1 saves one after the current step and ends the training.

    SLURM sends SIGUSR1 some minutes before the time limit if the job requests it (docs/slurm.sh). A second signal acts
    as usual. `manifest` and the answer format are written into every checkpoint.
    """

    def __init__(self, trainer: Any, tokenizer: Any, manifest: dict, answer_format: str):
        self.trainer, self.tokenizer = trainer, tokenizer
        self.manifest = manifest
        self.answer_format = answer_format
        self.received_at: float | None = None  # when the first signal came
        self.stopped = False

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
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_prompt_format(checkpoint, self.tokenizer, self.answer_format)
            mark_complete(checkpoint, self.manifest)


def train(trainer: Any, checkpoint: Path | None) -> None:
    """Train to the end or to a signal, from `checkpoint` if there is one."""
    try:
        libraries.train(trainer, resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except AlreadyTrained:
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)


def resume_command(argv: Sequence[str]) -> str:
    """This command, its own options about resuming replaced by `--resume_from_checkpoint auto`."""
    kept = [
        word
        for before, word in itertools.pairwise(["", *argv])
        if not word.startswith(RESUME_OPTIONS) and (before not in RESUME_OPTIONS or word.startswith("--"))
    ]
    return shlex.join([*kept, "--resume_from_checkpoint", "auto"])
