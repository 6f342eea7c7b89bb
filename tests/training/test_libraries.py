"""What a library raises while a run is built is one line; an error of our own code stays a traceback."""

import json

import pytest
import torch

from sft.common.command import UserError
from sft.training.libraries import library_refusals


def test_what_a_library_raises_becomes_one_line_with_its_first_line():
    with (
        pytest.raises(UserError, match=r"^the recipe: Expecting property name .*: line 1"),
        library_refusals("the recipe"),
    ):
        json.loads("{]")


def test_errors_of_our_own_code_stay_what_they_are(monkeypatch):
    from sft.common import command

    def called_back(_: dict) -> None:
        command.read_json(None)  # a fault of ours, in what a library calls

    with pytest.raises(AttributeError), library_refusals("the recipe"):
        json.loads("{}", object_hook=called_back)
    with pytest.raises(ValueError, match="Expecting"), library_refusals("the recipe", building=lambda: False):
        json.loads("{]")


def test_a_tracker_that_fails_when_training_begins_is_one_line(here, toy_options, tmp_path, monkeypatch):
    """A library's callback, as that of a tracker without access."""
    from transformers.integrations import TensorBoardCallback

    monkeypatch.setattr(TensorBoardCallback, "on_train_begin", lambda *_, **__: json.loads("{]"))
    words = ("--output_dir", tmp_path / "out", "--report_to", "tensorboard", "--eval_on_start", "no")
    done = here("sft/run.py", *toy_options("pmcvqa"), *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the training cannot begin: Expecting property name")


def test_a_full_memory_gets_advice_at_any_time():
    with (
        pytest.raises(UserError, match=r"out of memory \(CUDA.*per_device_train_batch_size"),
        library_refusals("training", building=lambda: False),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
