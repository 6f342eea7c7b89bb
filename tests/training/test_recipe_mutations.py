"""A recipe with any key set to anything is accepted, or refused in one line; so is what then goes to preflight."""

import contextlib
import dataclasses
import io
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig, SFTConfig

from sft import preflight
from sft.common.command import UserError
from sft.training.checks import check_all
from sft.training.config import argument_classes, resolve
from sft.training.hardware import planned_hardware
from sft.training.launch import Launch
from sft.training.model import lora_config

FIELDS = [field.name for cls in argument_classes() for field in dataclasses.fields(cls) if field.init]
NUMBERS = [0, 1, -1, 2, 0.5, -0.5, 1e9, 10**12, "1e-4", "nan", "inf"]
WORDS = [None, True, False, "", "auto", "none", "no", "steps", "epoch", "best", "x", "q_proj", "recipes", "1,2"]
VALUES = [*NUMBERS, *WORDS, [], [1], ["x", "y"], {}, {"a": 1}, [["x"]], "cosine_with_min_lr", "adamw_8bit", "wandb"]


@pytest.fixture
def mutated(tmp_path, tiny_deepseek, few_dev):
    """Write the main recipe, for a toy, with a key changed; returns its path, the key and the value."""
    base = yaml.safe_load(Path("recipes/pmcvqa.yaml").read_text(encoding="utf-8"))
    base |= {
        "model_name_or_path": str(tiny_deepseek),
        "dataset_name": str(few_dev),
        "output_dir": str(tmp_path / "out"),
    }
    file = tmp_path / "recipe.yaml"

    def mutate(number: int, rng: random.Random) -> tuple[str, str, object]:
        key = FIELDS[number % len(FIELDS)] if number < 3 * len(FIELDS) else rng.choice(FIELDS)
        value = rng.choice(VALUES)
        file.write_text(yaml.safe_dump({**base, key: value}), encoding="utf-8")
        return str(file), key, value

    return mutate


def outcome(work) -> str:
    """``accepted``, or ``refused`` in one line; anything else fails."""
    try:
        work()
    except UserError as error:
        assert "\n" not in str(error).strip()
        assert len(str(error)) > 20
        return "refused"
    return "accepted"


def build(path: str) -> None:
    """What every command does with a recipe before it looks at model and data."""
    settings = resolve([path])
    settings = settings.for_world_size(1)
    check_all(settings, Launch(), planned_hardware("A100-80GB", 1))
    settings = settings.with_values(preflight.ANYWHERE, "test")
    for cls in (SFTConfig, ModelConfig):
        settings.build(cls)
    lora_config(settings)


def test_a_thousand_mutated_recipes_are_accepted_or_refused_in_one_line(mutated):
    rng, counts = random.Random(17), Counter()  # noqa: S311
    for number in range(1000):
        path, key, value = mutated(number, rng)
        try:
            counts[outcome(lambda path=path: build(path))] += 1
        except Exception as error:
            raise AssertionError(f"{key}: {value!r}") from error
    assert counts.total() == 1000
    assert min(counts.values()) > 200


def test_what_is_accepted_passes_preflight_or_is_refused_there_in_one_line(mutated, monkeypatch):
    rng, counts = random.Random(18), Counter()  # noqa: S311
    while counts.total() < 30:
        path, key, value = mutated(10**6, rng)
        if outcome(lambda path=path: build(path)) == "refused":
            continue
        monkeypatch.setattr(sys, "argv", ["preflight.py", path, "--gpu", "A100-80GB"])
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                counts[outcome(preflight.main)] += 1
        except Exception as error:
            raise AssertionError(f"{key}: {value!r}") from error
    assert counts["accepted"] > counts["refused"]
