"""A recipe and the command line, parsed strictly into TRL's own configuration classes.

In: argv, whose first word is a recipe (YAML). Every key is a field of TRL's ScriptArguments, SFTConfig or
ModelConfig, or of `DataArguments` below; `--key value` on the command line overrides it. Out: these classes.
"""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_prep.command import UserError

# Names that recipes elsewhere carry, today or from older libraries, and what they are called here.
OTHER_NAMES = {
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps (a value below 1 is a share of all steps)",
    "evaluation_strategy": "eval_strategy",
    "torch_dtype": "dtype",
    "overwrite_output_dir": "output_dir (choose a new folder)",
    "group_by_length": "packing",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "use_liger_kernel": "model_init_kwargs: {use_kernels: true}",
    "hub_token": "the environment (hf auth login): a token in a file is a token lost",
    "dataset_config": "dataset_name alone (a prepared data set has one configuration)",
    "lora_rank": "lora_r",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
}


@dataclasses.dataclass
class DataArguments:
    """The one key of a recipe that TRL does not know."""

    dataset_mixture: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Prepared data sets to train on and how often to take each: {A: 1, B: 0.5} is every row of A and "
            "a random half of B (default: dataset_name once). Dev questions always come from dataset_name."
        },
    )

    def weights(self, dataset_name: str) -> dict[str, float]:
        """{data set: how often each of its rows is taken}.

        Raises:
            UserError: not a mapping from data sets to positive numbers.
        """
        if self.dataset_mixture is None:
            return {dataset_name: 1.0}
        try:
            weights = {str(path): float(weight) for path, weight in json.loads(self.dataset_mixture).items()}
        except (ValueError, TypeError, AttributeError):
            weights = {}
        if not weights or not all(0 < weight < 1000 for weight in weights.values()):
            raise UserError(
                f"dataset_mixture {self.dataset_mixture}: write data sets and positive weights: "
                "{PMC-VQA-Processed: 1, MedMCQA-Processed: 0.5}"
            )
        return weights


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not a text file"
        raise UserError(f"recipe {path}: {reason}: choose one of recipes/*.yaml") from error
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"recipe {path} must hold lines of the form key: value")
    return recipe


def as_arguments(recipe: dict[str, Any]) -> list[str]:
    """The recipe as command-line words, so that one parser coerces and checks the values of both.

    YAML's booleans become yes and no, which boolean fields read as such and choices such as `eval_strategy: no` as
    the word that was written.
    """
    words = []
    for key, value in recipe.items():
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        elif isinstance(value, bool):
            words.append(f"--{key}={'yes' if value else 'no'}")
        elif isinstance(value, dict):
            words.append(f"--{key}={json.dumps(value)}")
        else:
            words.append(f"--{key}={'none' if value is None else value}")
    return words


def suggestion(key: str, known: set[str]) -> str:
    """What to write instead of the unknown `key`."""
    if key in OTHER_NAMES:
        return f"use {OTHER_NAMES[key]}"
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else "see `trl sft --help` for all keys"


def parse(argv: Sequence[str]) -> tuple[Any, Any, Any, DataArguments]:
    """(ScriptArguments, SFTConfig, ModelConfig, DataArguments) from ``[recipe, --key, value, ...]``.

    Raises:
        UserError: no recipe, an unknown or removed key, or a value that its field refuses.
    """
    if not argv or argv[0].startswith("-"):
        raise UserError("name a recipe first: accelerate launch sft/run.py recipes/pmcvqa.yaml [--key value ...]")
    recipe_path, overrides = Path(argv[0]), list(argv[1:])
    recipe = read_recipe(recipe_path)

    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

    classes = (ScriptArguments, SFTConfig, ModelConfig, DataArguments)
    defaults = {field.name: field.default for cls in classes for field in dataclasses.fields(cls) if field.init}
    known = set(defaults)
    given = {word[2:].split("=")[0].replace("-", "_") for word in overrides if word.startswith("--")}
    known |= {f"no_{name}" for name in known}
    for where, keys in ((str(recipe_path), recipe), ("command line", sorted(given))):
        for key in keys:
            if key not in known or key in OTHER_NAMES:
                raise UserError(f"{where}: unknown key {key}: {suggestion(str(key), known)}")

    class Parser(TrlParser):
        def error(self, message: str) -> None:
            key = message.removeprefix("argument --").split(":")[0].split("/")[0]
            where = "command line" if key in given or key not in recipe else recipe_path
            raise UserError(f"{where}: {message}")

    parser = Parser(classes, allow_abbrev=False)
    # A text field would read the word none as a name; left out, it is None all the same.
    recipe = {key: value for key, value in recipe.items() if value is not None or defaults[key] is not None}
    try:
        # Later words win, so the command line overrides the recipe.
        *parsed, left = parser.parse_args_into_dataclasses(
            [*as_arguments(recipe), *overrides], return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{recipe_path}: {error}") from error
    if left:
        raise UserError(f"command line: {left[0]!r} belongs to no option: write --key value")
    return tuple(parsed)


def check(script_args: Any, training_args: Any, model_args: Any) -> None:
    """Refuse settings that would fail late or, worse, succeed at the wrong thing.

    Raises:
        UserError: no model or data named, model selection on the test split, a quantised model without LoRA, or LoRA
            on the output layer.
    """
    for key, value in (
        ("model_name_or_path", model_args.model_name_or_path),
        ("dataset_name", script_args.dataset_name),
    ):
        if not value:
            raise UserError(f"{key} is not set: name it in the recipe or pass --{key}")
    if training_args.eval_strategy != "no" and script_args.dataset_test_split.startswith("test"):
        raise UserError(
            f"dataset_test_split {script_args.dataset_test_split} would choose the checkpoint by the test questions: "
            "use dev, and read the test split with sft/evaluate.py"
        )
    if (model_args.load_in_8bit or model_args.load_in_4bit) and not model_args.use_peft:
        raise UserError("a quantised model cannot be trained whole: set use_peft: true, or load_in_8bit: false")
    targets = model_args.lora_target_modules or []
    if model_args.use_peft and "lm_head" in ([targets] if isinstance(targets, str) else targets):
        raise UserError("lora_target_modules: TRL's loss does not train an adapter on lm_head: leave it out")
