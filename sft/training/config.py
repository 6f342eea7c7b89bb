"""A recipe and the command line, resolved strictly into `Settings` without touching a device.

A key is a field of TRL's ScriptArguments, SFTConfig or ModelConfig, or of `RunArguments` below.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from sft.common.command import UserError, shipped, strip_local_paths
from sft.common.unique_keys import UniqueKeys
from sft.training.libraries import library_refusals

# Names in other recipes, today or for older libraries, and what they are called here.
OTHER_NAMES = {
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps (a value below 1 is a share of all steps)",
    "evaluation_strategy": "eval_strategy",
    "torch_dtype": "dtype",
    "overwrite_output_dir": "output_dir (choose a new folder)",
    "group_by_length": "packing",
    "gradient_checkpointing": "activation_checkpointing",
    "deepspeed": "a launch file: accelerate launch --config_file accelerate_configs/zero3.yaml",
    "fsdp": "a launch file: accelerate launch --config_file accelerate_configs/fsdp2.yaml",
    "fsdp_config": "a launch file: accelerate launch --config_file accelerate_configs/fsdp2.yaml",
    "hub_strategy": "push_to_hub alone: a run publishes once, when it is done (docs/publishing.md)",
    "hub_always_push": "push_to_hub alone: a run publishes once, when it is done (docs/publishing.md)",
    "hub_revision": "push_to_hub alone, and a tag with sft/publish.py --tag (docs/publishing.md)",
    "trust_remote_code": "nothing here: code from model repositories is never run",
    "load_in_8_bit": "load_in_8bit",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "use_liger_kernel": "model_init_kwargs: {use_kernels: true}",
    "hub_token": "the environment (hf auth login): anyone who reads a file can use a token in it",
    "dataset_config": "dataset_name alone (a prepared data set has one configuration)",
    "lora_rank": "lora_r",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
}
# Keys that say how a run is started or where its model goes, not what it learns: they do not travel with the model.
LAUNCH_ONLY_KEYS = (
    *("resume_from_checkpoint", "resume_weights_only", "print_config", "dry_run", "probe_steps", "price_per_hour"),
    *("push_to_hub", "hub_model_id", "hub_private_repo"),
)

# Values of resume_from_checkpoint that mean the latest checkpoint in output_dir.
AUTO = ("auto", "yes", "true")


@dataclasses.dataclass
class RunArguments:
    """The keys of a recipe that TRL does not know."""

    # {A: 1, B: 0.5} trains on every row of A and a random half of B; dev questions always come from dataset_name.
    dataset_mixture: str | None = None
    # Values of the chat template's variables, such as {enable_thinking: false}; they are written into the template.
    chat_template_kwargs: str | None = None
    figures: bool = True  # show a model that sees the figures of its questions; false trains it on the text alone
    # Sequences (packs, with packing) that all GPUs together take in one optimizer step; it decides
    # gradient_accumulation_steps, so that the step stays the same on any number of GPUs.
    global_batch_size: int | None = None
    mcq_eval_samples: int = 0  # dev questions to answer at every evaluation (option likelihood), drawn once
    # Take only the weights of resume_from_checkpoint; optimizer, schedule and place in the data start anew.
    resume_weights_only: bool = False
    print_config: bool = False  # print every setting and where its value came from, and stop
    dry_run: bool = False  # show three rows as they are trained, take one step on the longest rows, and stop
    probe_steps: int = 0  # measure so many steps on the real data, report speed, memory and time of all, and stop
    price_per_hour: float | None = None  # of all GPUs together, for the probe's report


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe; raises `UserError` for a file that cannot be read as such."""
    try:
        loader = UniqueKeys(path.read_text(encoding="utf-8-sig"))
        written = loader.get_single_node()
        recipe = loader.construct_document(written) if written else None
        if isinstance(recipe, dict):
            # A number or date is read as it is written: YAML takes 2026_11_27 for 20261127, and 042 for 34.
            values = [(key.value, value) for key, value in written.value if isinstance(value, yaml.ScalarNode)]
            recipe |= {key: v.value for key, v in values if v.tag.endswith((":int", ":float", ":timestamp"))}
            as_arguments(recipe)  # raises for a mapping that no setting takes
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise UserError(f"recipe {path}: {reason}: choose one of recipes/*.yaml") from error
    # ValueError of a date in no calendar, the others of values that no setting takes
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from error
    except UserError as error:
        raise UserError(f"recipe {path}: {error}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"recipe {path} must hold lines of the form key: value")
    return recipe


def as_arguments(recipe: dict[str, Any]) -> list[str]:
    """The recipe as command-line arguments, so that one parser coerces and checks the values of both."""
    arguments = []
    for key, value in recipe.items():
        if isinstance(value, list):
            arguments += [f"--{key}", *map(str, value)] if value else []  # argparse knows no empty list
        elif isinstance(value, bool):  # YAML's `eval_strategy: no` is False too, and there it is the choice "no"
            arguments.append(f"--{key}={'yes' if value else 'no'}")
        else:
            text = "none" if value is None else json.dumps(value) if isinstance(value, dict) else value
            arguments.append(f"--{key}={text}")
    return arguments


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every key's value, coerced and checked by type and choices, and its source. Attributes are the keys."""

    recipe: Path
    values: dict[str, Any]
    sources: dict[str, str]
    stored: str | None = None  # how the base model's weights are stored, where they are quantised: ``gptq 4-bit``

    def __getattr__(self, key: str) -> Any:
        try:
            return self.values[key]
        except KeyError:
            raise AttributeError(key) from None

    @property
    def quantised(self) -> str | None:
        """``8-bit`` or ``4-bit`` where the frozen weights are quantised by bitsandbytes, or as stored, else None."""
        return self.stored or ("8-bit" if self.load_in_8bit else "4-bit" if self.load_in_4bit else None)

    @property
    def precision(self) -> str:
        """In what the matrices are multiplied: ``bf16``, ``fp16`` (both with automatic casts) or ``no``."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "no"

    @property
    def model(self) -> str:
        """The model to start from, with its revision: a folder, or ``OWNER/NAME@REVISION`` on the Hub."""
        pinned = self.model_revision not in (None, "main") and not Path(self.model_name_or_path).exists()
        return f"{self.model_name_or_path}@{self.model_revision}" if pinned else self.model_name_or_path

    def dataset_weights(self) -> dict[str, float]:
        """{data set: how often a row is taken}; raises `UserError` for a `dataset_mixture` that is not positive."""
        if self.dataset_mixture is None:
            return {self.dataset_name: 1.0}
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

    def for_world_size(self, processes: int) -> "Settings":
        """These settings with the gradient_accumulation_steps that `global_batch_size`, if set, needs.

        Raises `UserError` if the batch cannot be divided so.
        """
        batch = self.global_batch_size
        if batch is None:
            return self
        together = max(1, self.per_device_train_batch_size * processes)  # fewer are refused as a value
        steps, rest = divmod(batch, together)
        if rest or steps < 1:
            raise UserError(
                f"global_batch_size {batch} cannot be divided among {processes} process(es) with "
                f"per_device_train_batch_size {self.per_device_train_batch_size}: pass --global_batch_size "
                f"{together * max(1, steps)}, or another number of processes"
            )
        given = self.gradient_accumulation_steps
        if "gradient_accumulation_steps" in self.sources and given != steps:
            raise UserError(
                f"gradient_accumulation_steps {given} x {together} is not global_batch_size {batch}: leave "
                f"gradient_accumulation_steps out, or set global_batch_size to {given * together}"
            )
        return self.with_values({"gradient_accumulation_steps": steps}, "global_batch_size")

    def with_values(self, changes: dict[str, Any], source: str) -> "Settings":
        """These settings with some keys changed by `source`."""
        sources = {**self.sources, **dict.fromkeys(changes, source)}
        return dataclasses.replace(self, values={**self.values, **changes}, sources=sources)

    def describe(self) -> str:
        """All settings as YAML, those that someone set first, each with its source: a recipe of its own."""
        lines = []
        for key in sorted(self.values, key=lambda key: key not in self.sources):
            if key != "print_config" and key not in OTHER_NAMES:
                line = f"{key}: {json.dumps(self.values[key], ensure_ascii=False)}"
                lines.append(f"{line:<70} # {self.sources.get(key, 'default')}")
        return "\n".join(lines)

    def as_recipe(self, revision: str | None = None) -> str:
        """What recipe and command line set, as a recipe, with its base model at `revision`: it trains the same."""
        values = {
            key: strip_local_paths(value)
            for key, value in self.values.items()
            if self.sources.get(key) not in (None, "global_batch_size") and key not in LAUNCH_ONLY_KEYS
        }
        values |= {"model_revision": revision} if revision else {}
        return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())

    @property
    def is_trial(self) -> bool:
        """Whether nothing of the run is kept: a dry run or a probe."""
        return bool(self.dry_run or self.probe_steps)

    def build(self, cls: type) -> Any:
        """One of TRL's argument classes with these values; raises `UserError` if they do not go together.

        SFTConfig joins the launcher's other processes.
        """
        # With push_to_hub the trainer would upload all of output_dir; sft/publish.py uploads the final model instead.
        values = {**self.values, "push_to_hub": False}
        with library_refusals(str(self.recipe)):
            return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.init})


def argument_classes() -> tuple[type, ...]:
    """The classes whose fields are a recipe's keys."""
    from trl import ModelConfig, ScriptArguments, SFTConfig

    return ScriptArguments, SFTConfig, ModelConfig, RunArguments


def check_keys(where: str, keys: Iterable[str], known: set[str]) -> None:
    """Refuse keys that no field has, with the name of the right one."""
    for key in keys:
        if key in OTHER_NAMES:
            raise UserError(f"{where}: unknown key {key}: use {OTHER_NAMES[key]}")
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            advice = f"did you mean {close[0]}?" if close else "see `trl sft --help` for all keys"
            raise UserError(f"{where}: unknown key {key}: {advice}")


def resolve(argv: Sequence[str]) -> Settings:
    """The settings of ``[recipe, --key, value, ...]``; the command line overrides the recipe.

    Raises `UserError` for an unreadable recipe, an unknown or removed key, or a value that its field refuses.
    """
    if not argv or argv[0].startswith("-"):
        raise UserError("name a recipe first: accelerate launch sft/run.py recipes/pmcvqa.yaml [--key value ...]")
    path, overrides = str(shipped(Path(argv[0]))), argv[1:]
    recipe = read_recipe(Path(path))

    from trl import TrlParser

    classes = argument_classes()
    fields = {field.name for cls in classes for field in dataclasses.fields(cls) if field.init}
    known = fields | {f"no_{name}" for name in fields}
    given = {word[2:].split("=")[0].replace("-", "_") for word in overrides if word.startswith("--")}
    check_keys(path, recipe, known)
    check_keys("command line", sorted(given), known)

    class Parser(TrlParser):
        def error(self, message: str) -> None:
            key = message.removeprefix("argument --").split(":")[0].split("/")[0]
            raise UserError(f"{'command line' if key in given or key not in recipe else path}: {message}")

    parser = Parser(classes, allow_abbrev=False)
    # A text field would read the word none as a name; left out, it is None all the same.
    recipe = {key: value for key, value in recipe.items() if value is not None or parser.get_default(key) is not None}
    namespace, left = parser.parse_known_args([*as_arguments(recipe), *overrides])
    if left:
        raise UserError(f"command line: {left[0]!r} belongs to no option: write --key value")
    values = {key: value for key, value in vars(namespace).items() if key in fields}
    # The first two as SFTConfig decides. TRL would pack dev rows as training rows, and eval_loss would depend on how.
    unset = {"bf16": not values["fp16"], "activation_checkpointing": True, "eval_packing": False}
    values |= {key: value for key, value in unset.items() if values[key] is None}
    set_here = (key if key in fields else key.removeprefix("no_") for key in given)
    return Settings(Path(path), values, dict.fromkeys(recipe, path) | dict.fromkeys(set_here, "command line"))
