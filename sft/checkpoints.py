"""Where a run starts, what it leaves, and how it survives being stopped.

A checkpoint is complete or absent: `Survive` seals each one with run_manifest.json, which lists its files and their
sizes, once every process has written its part. A checkpoint without a seal is what a killed run left; nothing
continues from it. Before a run continues, its manifest is compared with the one in the checkpoint.
"""

import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sft.common.command import UserError, read_json, without_paths, write_json
from sft.common.data import provenance
from sft.common.models import FACTS, MANIFEST, RECIPE, commit_of, save_prompt_format
from sft.config import AUTO, Settings
from sft.hardware import Hardware, cpu_name
from sft.launch import Launch
from sft.preflight import on_cpu

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "deepspeed")

# Settings that may change between a checkpoint and its continuation: they decide what is seen and kept, not what is
# learned. Paths are free because the data, the tokenizer and the template are compared by content.
FREE = {
    *("output_dir", "dataset_name", "dataset_mixture", "chat_template_path", "run_name", "project", "report_to"),
    *("resume_from_checkpoint", "resume_weights_only", "dry_run", "probe_steps", "price_per_hour", "print_config"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "disable_tqdm", "mcq_eval_samples"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
    *("attn_implementation", "global_batch_size", "per_device_eval_batch_size", "dataset_num_proc"),
    *("ddp_timeout", "ddp_backend", "torch_empty_cache_steps", "push_to_hub"),
}
FREE_KINDS = ("eval_", "save_", "log_", "logging_", "dataloader_", "hub_", "trackio_")
# A second signal within so many seconds is an echo of the first; later it ends the process at once.
ECHO = 5.0
# Settings whose change is meant, but bends the learning-rate schedule.
LENGTH = {"num_train_epochs", "max_steps"}


def git_revision() -> str | None:
    """The commit of this project's code, with ``+changes`` if files differ from it, or None outside a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # a downloaded copy: a repository around it is another project's
        return None
    words = ("git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def manifest(settings: Settings, launch: Launch, hardware: Hardware, data: str, tokens: str) -> dict[str, Any]:
    """Everything that decides what a run learns, and on what, as one JSON object.

    `data` and `tokens` are fingerprints.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "recipe": settings.recipe.name,
        "settings": settings.values,
        "base_model": {"name": settings.model_name_or_path, "revision": commit_of(settings.model)},
        "datasets": provenance(settings.dataset_weights()),
        "hardware": f"CPU, {cpu_name()}" if on_cpu(settings, launch) or not hardware.count else hardware.name,
        "data": data,
        "tokens": tokens,
        "launch": launch.name,
        "launcher": launch.kind,
        "zero_stage": launch.zero_stage,
        "world_size": launch.processes,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "versions": versions,
    }


def seal(checkpoint: Path, description: dict) -> None:
    """Mark `checkpoint` as whole: a manifest that lists every file in it with its size in bytes."""
    files = {
        str(file.relative_to(checkpoint)): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_json(checkpoint / MANIFEST, {**description, "files": files})


def read_seal(checkpoint: Path) -> dict | None:
    """The manifest of a complete checkpoint; None if it was not sealed or something in it is missing since."""
    try:
        sealed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        whole = all((checkpoint / name).stat().st_size == size for name, size in sealed["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return sealed if whole else None


def resume_point(settings: Settings) -> Path | None:
    """The checkpoint to continue from (or to take the weights of), or None for a fresh start.

    ``resume_from_checkpoint`` is a folder, or ``auto`` for the latest complete one in output_dir, if there is one.

    Raises:
        UserError: the checkpoint does not exist or is not complete, or a fresh start would overwrite an earlier run.
    """
    out, resume = Path(settings.output_dir), settings.resume_from_checkpoint
    found = checkpoints_in(out)
    if resume is None or settings.resume_weights_only:
        if found or (out / "final_model").exists():
            advice = "choose another --output_dir"
            if not settings.resume_weights_only:
                advice = f"continue it with --resume_from_checkpoint auto, or {advice}"
            raise UserError(f"output_dir {out} holds an earlier run: {advice}")
        if resume is None:
            return None
    checkpoint = Path(resume)
    if resume.lower() in AUTO:
        checkpoint = next((folder for folder in reversed(found) if read_seal(folder)), None)
        if checkpoint is None:
            if (out / "final_model").exists() or (found and not (out / MANIFEST).is_file()):
                raise UserError(
                    f"output_dir {out} holds an earlier run and no complete checkpoint: choose another one"
                )
            return None
    if not (checkpoint / "trainer_state.json").is_file():
        raise UserError(f"resume_from_checkpoint {resume} is no checkpoint: name a checkpoint-* folder, or auto")
    if settings.resume_weights_only:
        return checkpoint
    if not read_seal(checkpoint):
        raise UserError(
            f"resume_from_checkpoint {resume} is not complete (the run was stopped while writing it, or files are "
            "missing): pass auto, which takes the latest complete one"
        )
    if not (any(checkpoint.glob("optimizer.*")) or any(checkpoint.glob("global_step*"))):
        raise UserError(
            f"{checkpoint} holds no optimizer state (save_only_model), so the run cannot go on as it was: begin a new "
            "one with --resume_weights_only yes --output_dir NEW"
        )
    later = [folder.name for folder in found if step_of(folder) > step_of(checkpoint) and read_seal(folder)]
    if later:
        raise UserError(
            f"output_dir {out} holds {', '.join(later)}, which a run from {checkpoint.name} would overwrite: pass "
            "auto to go on from the latest, or choose another --output_dir"
        )
    return checkpoint


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a ``checkpoint-N`` folder was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """The ``checkpoint-N`` folders in `folder`, by step; copies under other names are not ours to touch."""
    return sorted((path for path in folder.glob("checkpoint-*") if re.fullmatch(r".*-\d+", path.name)), key=step_of)


def remove_incomplete(output_dir: Path) -> list[str]:
    """Delete what a killed run left half-written in its own folder; returns the names."""
    removed = []
    if (output_dir / MANIFEST).is_file():  # else these are not ours to judge
        for folder in [*checkpoints_in(output_dir), *output_dir.glob(".final_model.tmp")]:
            if not read_seal(folder):
                shutil.rmtree(folder)
                removed.append(folder.name)
    return removed


def begin(trainer: Any, settings: Settings, description: dict, checkpoint: Path | None, notes: list[str]) -> "Survive":
    """Make a run ready to be stopped and continued: clean up, note what it is, and listen for signals.

    `notes` are what `compare` had to say of `checkpoint`.

    Raises:
        UserError: the weights of `checkpoint` do not fit.
    """
    if checkpoint and settings.resume_weights_only:
        load_weights(trainer.model, checkpoint)
        notes = [f"weights of {checkpoint}; optimizer, schedule and place in the data start anew"]
    elif checkpoint:
        notes = [f"continuing from {checkpoint}", *notes]
        trainer.args.eval_on_start = False  # it was asked at the start of the run
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
        # in bf16. Without this, a continued 8-bit run is not the run that was stopped (tests/sft/test_survive.py).
        trainer.model.load_adapter = functools.partial(trainer.model.load_adapter, autocast_adapter_dtype=False)
    continued = str(checkpoint) if checkpoint and not settings.resume_weights_only else None
    survive = Survive(trainer, description, continued)
    trainer.add_callback(survive)
    return survive


def compare(checkpoint: Path, now: dict) -> list[str]:
    """Lines about differences between a checkpoint's run and this one that do no harm.

    Raises:
        UserError: one that would make the continuation another run: the line lists all of them, and the ways out.
    """
    before = read_seal(checkpoint) or {}
    faults, notes = [], []
    for key, words in (
        ("world_size", "process(es)"),
        ("launcher", "launch"),
        ("zero_stage", "ZeRO stage"),
        ("data", "fingerprint of the training rows"),
        ("tokens", "fingerprint of tokenizer and chat template"),
    ):
        if before.get(key) != now[key]:
            faults.append(f"{words} {before.get(key)}, now {now[key]}")
    settings, current = before.get("settings", {}), now["settings"]
    # A key that only one side knows came or went with a version of the libraries, which is told below.
    for key in sorted((settings.keys() & current.keys()) - FREE):
        if settings[key] == current[key] or key.startswith(FREE_KINDS):
            continue
        change = f"{key} {settings[key]}, now {current[key]}"
        if key in LENGTH:
            notes.append(f"{change}: the learning rate follows the new length from here on")
        elif key != "gradient_accumulation_steps" or before.get("world_size") == now["world_size"]:
            faults.append(change)
    if faults:
        raise UserError(
            f"{checkpoint} belongs to another run: {'; '.join(faults)}. Optimizer, schedule and place in the data "
            "would not fit: put the old values back, or begin a new run with its weights alone: "
            f"--resume_from_checkpoint {checkpoint} --resume_weights_only yes --output_dir NEW"
        )
    for name, version in now["versions"].items():
        if before.get("versions", {}).get(name) != version:
            notes.append(f"{name} {before.get('versions', {}).get(name)}, now {version}")
    if before.get("git_revision") != now["git_revision"]:
        notes.append(f"code {before.get('git_revision')}, now {now['git_revision']}")
    return notes


def load_weights(model: Any, checkpoint: Path) -> None:
    """Put the weights of a checkpoint into a model that has not been prepared for training yet.

    Raises:
        UserError: no adapter there that fits.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    file = checkpoint / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"{checkpoint} holds no adapter: for a full fine-tune set model_name_or_path to this folder")
    try:
        result = set_peft_model_state_dict(model, load_file(file))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the adapter in {checkpoint} does not fit this recipe's lora_* keys") from error
    if result.unexpected_keys:
        raise UserError(f"the adapter in {checkpoint} does not fit this recipe's lora_target_modules")


def command_line() -> str:
    """The command that started this process, launcher and all, as a user would type it."""
    ours = [Path(sys.argv[0]), *sys.argv[1:]]
    launcher: list[str] = []
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
        script = next(i for i, word in enumerate(parent) if word.endswith("run.py"))
        ends = {"accelerate": "accelerate", "accelerate_cli": "accelerate", "torchrun": "torchrun"}
        names = [ends.get(re.split(r"[/.]", word)[-1]) for word in parent[:script]]
        first = next(i for i, name in enumerate(names) if name)
        launcher = [names[first], *parent[first + 1 : script]]
    except (OSError, StopIteration):
        launcher = ["python"]
    return shlex.join(map(str, [*launcher, *ours]))


class AlreadyTrained(Exception):
    """The checkpoint is from the last step, so nothing is left to train."""


class Survive(TrainerCallback):
    """Seals every checkpoint; on SIGTERM or SIGUSR1 saves one after the step at hand and ends the training.

    SLURM sends SIGUSR1 some minutes before the time limit if asked to (docs/slurm.sh). A second signal acts as usual.
    """

    def __init__(self, trainer: Any, description: dict, continued: str | None):
        self.trainer = trainer
        self.description = description
        self.continued = continued  # the checkpoint that the run goes on from
        self.received: int | None = None
        self.heard = 0.0
        self.stopped = False
        self.command = command_line()  # now: by the time of the signal the launcher may be gone

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
            # torchrun passes on a SIGTERM that the scheduler has sent already: the same signal, told twice.
            if self.received is not None and time.monotonic() - self.heard > ECHO:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.heard = time.monotonic() if self.received is None else self.heard
            self.received = number

        if state.is_world_process_zero:
            print(f"To stop with a checkpoint: kill -USR1 {os.getpid()}", flush=True)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, listen)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Signals act as usual again."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agree with the other processes, whose signal may come a step later, and stop together."""
        if self._agreed():
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            self.stopped = True
            args.load_best_model_at_end = False  # the time is better spent on saving

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """transformers comes by here after a stop too: nothing more is evaluated or saved."""
        if self.stopped:
            control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the checkpoint when every process has written its part."""
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.description)

    def say_goodbye(self) -> None:
        """Tell where the run stopped and how it goes on."""
        if self.trainer.is_world_process_zero():
            # From wherever this run began, the next one goes on from the checkpoint just saved.
            words = re.sub(r" --(resume_from_checkpoint|resume_weights_only)[= ]\S+", "", self.command)
            words += " --resume_from_checkpoint auto"
            print(f"Stopped by a signal after step {self.trainer.state.global_step}; the checkpoint is saved.")
            print(f"Continue with: {words}", flush=True)
        self.trainer.end()

    def _agreed(self) -> bool:
        if self.trainer.accelerator.num_processes == 1:
            return self.received is not None
        import torch

        flag = torch.tensor(int(self.received is not None), device=self.trainer.args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


def results(trainer: Any) -> dict[str, Any]:
    """What eval_results.json says: loss and accuracy on dev of the base model (step 0) and of the model kept.

    Called by every process: a kept model that is not that of the last step was loaded, and is evaluated once more.
    """
    logged: dict[int, dict[str, Any]] = {}
    for row in trainer.state.log_history:
        logged.setdefault(row["step"], {}).update(row)
    base, kept = logged.get(0, {}), logged.get(trainer.state.global_step, {})
    best = trainer.state.best_model_checkpoint
    loaded = best is not None and step_of(Path(best)) != trainer.state.global_step
    if trainer.eval_dataset is not None and (loaded or "eval_loss" not in kept):
        kept = trainer.evaluate()

    def measured(metrics: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in metrics.items() if key == "eval_loss" or key.startswith("eval_mcq")}

    # Without eval_on_start nothing is known of the base model.
    found = {"base": measured(base), "best": measured(kept)}
    return {"best_checkpoint": Path(best).name if best else None, **{key: row for key, row in found.items() if row}}


def save_final_model(trainer: Any, settings: Settings, answer_format: str) -> Path:
    """Save OUTPUT_DIR/final_model, ready to be published, under a temporary name, then rename.

    It holds model, tokenizer and chat template, how it wants to be asked, and the facts of the run without the paths
    of this machine. Called by every process: under ZeRO-3 each holds a part of the weights.
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
        save_prompt_format(temporary, answer_format)
        for name in FACTS:
            if (final.parent / name).is_file():
                shutil.copyfile(final.parent / name, temporary / name)
        description = read_json(final.parent / MANIFEST)
        write_json(temporary / MANIFEST, without_paths(description))
        (temporary / RECIPE).write_text(settings.as_recipe(description["base_model"]["revision"]), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    trainer.accelerator.wait_for_everyone()
    return final
