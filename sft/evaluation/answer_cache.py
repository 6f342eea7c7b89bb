"""Answers are written as they come, so that an evaluation that was stopped continues where it stopped.

The folder holds fingerprint.json (what decides the answers: model, data, options) and one answers-N.jsonl a process
(of part K answers-K-N.jsonl), one line an answer. Answers are written a batch at a time, and a batch of which a line
is missing is asked again.
"""

import argparse
import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sft.common.command import UserError, read_json, sha256, strip_local_paths, write_json
from sft.common.data import data_fingerprint
from sft.common.hub import pinned, repo_file
from sft.common.models import MANIFEST, base_of, commit_of
from sft.common.prompts import PROMPT_VERSION
from sft.common.template_choice import OWN
from sft.evaluation.comparison import RESULTS
from sft.evaluation.tasks import Task

FINGERPRINT = "fingerprint.json"
# Weights, configurations, templates and vocabularies.
DECIDE = (".safetensors", ".json", ".jinja", ".txt", ".model")
# Raised with every change to what a model is asked or how its answers are scored, which the options do not show. Not
# with a change of parsing or metrics: they are computed anew from the kept answers.
SCORING_VERSION = 1
# Words for the parts of a fingerprint, where their names do not say what the user did.
DIFFERS = {
    "questions": "questions (another --split, --dataset_path, --num_samples or --seed)",
    "model": "weights",
    "scoring_version": "scoring (by another version of this project)",
}


class Answers:
    """The answers in `folder`, by task and question id; raises `UserError` if their fingerprint is another one.

    `owners` says in words whose the fingerprints are, for whoever reads the file.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], owners: dict[str, Any], overwrite: bool):
        self.folder, self.fingerprint, self.owners, self.overwrite = folder, fingerprint, owners, overwrite
        self.by_key: dict[tuple[str, str], dict] = {}
        finds_answers = (folder / FINGERPRINT).is_file()
        if not finds_answers and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} holds something that is no evaluation's: choose another --name")
        self.starts_empty = overwrite or not finds_answers
        if not self.starts_empty:
            self.read()

    def read(self) -> None:
        """Read the answers of every process, without lines that were cut off."""
        file = self.folder / FINGERPRINT
        try:
            # Two that were not named at first.
            earlier = {"scoring_version": 1, "figures": None, **json.loads(file.read_text(encoding="utf-8"))}
            other = [DIFFERS.get(key, key) for key in self.fingerprint if earlier.get(key) != self.fingerprint[key]]
            if other:
                advice = "pass --overwrite to replace it, or choose another --name"
                raise UserError(f"{self.folder.parent} holds an evaluation with other {' and '.join(other)}: {advice}")
            for file in sorted(self.folder.glob("answers-*.jsonl")):
                for line in file.read_bytes().split(b"\n")[:-1]:
                    answer = json.loads(line)
                    self.by_key[answer.pop("task"), answer.pop("id")] = answer
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{file} is damaged: pass --overwrite to ask anew") from error

    def begin(self) -> None:
        """Make the folder ready; one process does so, before any writes. Another part may have made it just now."""
        if not self.starts_empty:
            return
        if self.overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=".answers.") as temporary:
                new = Path(temporary) / self.folder.name
                new.mkdir()
                write_json(new / FINGERPRINT, {**self.fingerprint, "fingerprint_of": self.owners})
                new.rename(self.folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise UserError(f"--output_dir: cannot write {self.folder}: {error.strerror}") from error
            self.read()  # whether it answers the same questions
        self.starts_empty = False

    def write(self, process: str | int, batches: Iterable[tuple[str, dict[str, dict]]]) -> Iterator[int]:
        """Append batches, (task, {id: answer}), to the file of a process; yields the size of each once it is there."""
        file = self.folder / f"answers-{process}.jsonl"
        if file.is_file():  # the last line of a run that was killed may be half a line
            os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
        with file.open("a", encoding="utf-8") as stream:
            for task, answers in batches:
                lines = [json.dumps({"task": task, "id": id, **answer}) for id, answer in answers.items()]
                stream.write("".join(f"{line}\n" for line in lines))
                stream.flush()
                yield len(answers)


def models_of(model_path: str) -> list[dict[str, Any]]:
    """A model and, of an adapter, its base: name, commit on the Hub, and what decides their answers.

    That is the SHA-256 of every file, or of a model on the Hub its name and commit.
    """
    folder, base, commit = Path(model_path), base_of(model_path), commit_of(model_path)
    if folder.is_dir():
        parts = [f"{f.name}:{sha256(f)}" for f in sorted(folder.iterdir()) if f.suffix in DECIDE and f.is_file()]
    else:
        parts = [f"{pinned(model_path)[0]}@{commit}"]
    model = {"name": strip_local_paths(pinned(model_path)[0]), "commit": commit, "fingerprint": parts}
    return [model, *(models_of(base) if base != model_path else [])]


def model_at(url: str, name: str) -> list[dict[str, Any]]:
    """As `models_of`, of a model on a server. The address may be private: its hash is enough."""
    name, where = strip_local_paths(name), hashlib.sha256(url.encode()).hexdigest()[:16]
    return [{"name": name, "commit": None, "fingerprint": [f"{name} at server {where}"]}]


def base_model_of(model_path: str, models: list[dict[str, Any]]) -> dict[str, Any]:
    """Name and commit of the model that was trained from, as the run's records or the adapter's name it, or itself."""
    with contextlib.suppress(UserError, KeyError, TypeError):  # a model of somebody else, or of an older version
        if file := repo_file(model_path, MANIFEST):
            base = read_json(file)["base_model"]
            return {"name": strip_local_paths(base["name"]), "commit": base["revision"]}
    return {key: models[-1][key] for key in ("name", "commit")}


def check_kept(folder: Path, tasks: list[Task], overwrite: bool) -> None:
    """Raise `UserError` if scores of a finished evaluation in `folder` would be lost, or it holds something else."""
    file = folder / RESULTS
    if overwrite or not file.exists():
        return
    try:
        lost = set(json.loads(file.read_text(encoding="utf-8"))["tasks"]) - {task.name for task in tasks}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not an evaluation's: pass --overwrite, or choose another --name") from error
    if lost:
        advice = "ask for it too, pass --overwrite, or choose another --name"
        raise UserError(f"{folder} holds also {'; '.join(sorted(lost))}: {advice}")


def fingerprint_of(args: argparse.Namespace, questions: list[dict], device: str, models: list[dict]) -> dict[str, Any]:
    """Everything that decides the answers to `questions`; equal fingerprints, equal answers.

    `models` are those of `models_of`, or without files those of a server.
    """
    from datasets import Dataset

    columns = ["id", "question", "choices", "gold", "answer_format"]
    options = ("backend", "dtype", "quantization", "batch_size") if args.backend == "local" else ("backend",)
    options = {key: getattr(args, key) for key in options}
    template = None
    if not args.tokenizer:
        options |= {"chat_template_kwargs": args.chat_template_kwargs} if args.chat_template_kwargs else {}
    elif args.chat_template and not args.chat_template_kwargs:
        template = sha256(Path(args.chat_template))
    elif args.tokenizer.template_source != OWN:  # one that stands in for the model's own, or has values of variables
        template = hashlib.sha256(str(args.tokenizer.chat_template).encode()).hexdigest()
    figures = None
    if args.figures:
        shown = Dataset.from_list([{key: q.get(key) or [] for key in ("images", "figure_sha256")} for q in questions])
        figures = f"{args.tokenizer.vision.fingerprint()} {data_fingerprint(shown, shown.column_names)}"
    return {
        "model": [part for model in models for part in model["fingerprint"]],
        "questions": data_fingerprint(Dataset.from_list(questions), columns),
        "prompt_version": PROMPT_VERSION,
        "scoring_version": SCORING_VERSION,
        "chat_template": template,
        "figures": figures,
        "options": options,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "device": device,
    }
