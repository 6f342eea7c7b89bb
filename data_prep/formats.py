"""The formats of multiple-choice questions that preparation reads: which column holds what.

A format is a YAML file: those in known_formats/ are shipped, `--format FILE` names another one, and `--columns` states
one on the command line. docs/own_questions.md explains the keys.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import BaseConstructor

from sft.common.command import UserError
from sft.common.prompts import LETTERS, MIN_OPTIONS
from sft.common.unique_keys import UniqueKeys

# How answers can name the right option, where a format states it instead of leaving it to the column.
READINGS = ("letter", "number from 0", "number from 1", "text")
POSITION = "position"  # a letter, or a number from 0 or from 1, as the column shows; never a text
INTO = "->"  # between a column and a key inside of it, as in context->contexts


@dataclass(frozen=True)
class Format:
    """Which column of a source holds what. Of a key that names columns, "" or () means that there is none."""

    name: str  # as --format takes it
    title: str = ""
    licence: str = ""  # as its publisher gives it
    columns: tuple[str, ...] = ()  # that a source of this format has, as it has them
    hub_files: tuple[str, ...] = ()  # of its repository on the Hub, where that holds other formats too
    configs: tuple[str, ...] = ()  # the parts of its repository to read, where it has several
    question: tuple[str, ...] = ()  # joined by a space
    question_repeats_options: str = ""  # words at which the question ends, behind which its options stand again
    options: tuple[str, ...] = ()  # one column with all of them, or a column each; (): lines inside the question
    fixed_options: tuple[str, ...] = ()  # the same options in every row
    option_count: int | None = None  # rows with another number of options are rejected
    letters: str = ""  # printed: the letter in front of an option is not its text, whatever the others have
    answer: str = ""  # "": the right option is marked
    answer_is: str = ""  # one of READINGS, or POSITION
    answer_text: str = ""  # the right option's text, beside its letter or number
    no_answer: str = ""  # what stands in `answer` where the publisher keeps it back
    id: str = ""
    group: str = ""  # rows of one group belong together: an article, a patient
    split: str = ""
    split_is: str = ""  # fallback: the file's name decides first; else the two must not contradict each other
    rationale: str = ""
    caption: str = ""
    figure: str = ""
    figures: str = ""  # cut: each was cut out of a larger one, and its name tells which

    @property
    def named(self) -> tuple[str, ...]:
        """Every column that a key names, without the keys inside of it."""
        single = (getattr(self, key) for key in SINGLE)
        return tuple(dict.fromkeys(path.split(INTO)[0] for path in (*self.question, *self.options, *single) if path))

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which a row is no question."""
        named = (*self.question, *(self.options if len(self.options) == 1 else ()), self.answer)
        return tuple(path.split(INTO)[0] for path in named if path)


# What files and columns call the splits. What is called an evaluation set is not trained on.
SPLIT_NAMES = {
    "test": {"test", "tests", "testset", "testing", "eval", "evaluation", "holdout", "heldout"},
    "dev": {"dev", "devel", "development", "val", "valid", "validation"},
    "train": {"train", "trainset", "training"},
}
UNNAMED = Format("columns", "own questions")  # what --columns begins with
# Keys that name one column, several, or hold words.
SINGLE = ("answer", "answer_text", "id", "group", "split", "rationale", "caption", "figure")
SEVERAL = ("columns", "hub_files", "configs", "question", "options", "fixed_options")
WORDS = {"letters": ("printed",), "figures": ("cut",), "split_is": ("fallback",), "answer_is": (*READINGS, POSITION)}
KEYS = tuple(field.name for field in fields(Format) if field.name != "name")
ALIASES = {"article": "group", "choices": "options", "explanation": "rationale"}


def made(name: str, keys: Mapping[str, Any], where: str, base: Format | None = None) -> Format:
    """The format of these keys; `base` has the others. For a wrong key a `UserError`, which begins with `where`."""
    values: dict[str, Any] = {}
    for given, value in keys.items():
        key = ALIASES.get(given, given)
        if key not in KEYS:
            raise UserError(f"{where}: {given} is not a key of a format: the keys are {', '.join(KEYS[3:])}")
        if key in values:
            raise UserError(f"{where}: {key} is given twice")
        items = value if isinstance(value, list) else [value]
        if key == "option_count":
            if not (isinstance(value, str) and value.isdecimal()):
                raise UserError(f"{where}: option_count {value}: give a number from {MIN_OPTIONS} to {len(LETTERS)}")
            values[key] = int(value)
        elif not items or not all(isinstance(item, str) and item.strip() for item in items):
            raise UserError(f"{where}: {key} {value}: give the names of columns")
        elif key in SEVERAL:
            values[key] = tuple(item.strip() for item in items)
        elif len(items) > 1:
            raise UserError(f"{where}: {key} names one column, not {len(items)}")
        else:
            values[key] = items[0].strip()
        if key in WORDS and values[key] not in WORDS[key]:
            raise UserError(f"{where}: {key} {value}: give {' or '.join(WORDS[key])}")
    known = replace(base, name=name, **values) if base else Format(name, **values)
    if fault := _fault(known):
        raise UserError(f"{where}: {fault}")
    # Of `base`, what these keys replace is needed no longer; what they name is.
    before, columns = set(base.named) if base else set(), known.columns
    if base:
        kept = (column for column in columns if column in known.named or column not in before)
        columns = (*kept, *(column for column in known.named if column not in before))
    return replace(known, title=known.title or name, columns=columns or known.named)


def _fault(known: Format) -> str:
    """Why this is not a format that can be read, or ""."""
    if not known.question:
        return "question is not given: name the column that holds it, as in question=stem"
    count = known.option_count or (len(known.fixed_options) if known.fixed_options else MIN_OPTIONS)
    if not MIN_OPTIONS <= count <= len(LETTERS):
        return f"a question has {MIN_OPTIONS} to {len(LETTERS)} options"
    if len(known.options) > len(LETTERS):
        return f"{len(known.options)} options: a question has at most {len(LETTERS)}"
    letters = [name[-1].upper() for name in known.options]
    of_letters = len({name[:-1].lower() for name in known.options}) == 1 < len(letters) and set(letters) <= {*LETTERS}
    if of_letters and letters != list(LETTERS[: len(letters)]):  # a label could mean the letter or the place
        return f"options are the columns of {', '.join(letters)}: name them in order, from A"
    if known.options and known.fixed_options:
        return "options and fixed_options are both given: the first names columns, the second the options themselves"
    if not known.answer and (known.answer_text or known.answer_is or known.fixed_options):
        return "answer is not given: name the column that tells the right option, as in answer=label"
    return ""


def parse_columns(text: str, base: Format | None = None) -> Format:
    """The format that `--columns` states: ``question=stem, options=A,B,C, answer=label``; `base` has the other keys.

    Raises `UserError` for anything else.
    """
    keys: dict[str, Any] = {}
    for part in re.split(r"[,;\n]\s*(?=\w+\s*=)", text.strip().rstrip(",;")):
        key, sign, value = part.partition("=")
        key, items = key.strip(), [item.strip() for item in re.split(r"[,|]", value)]
        if not sign or not all(items):
            raise UserError(f'--columns {part!r}: write "question=stem, options=A,B,C,D, answer=label"')
        if key in keys:
            raise UserError(f"--columns: {key} is given twice")
        keys[key] = items if len(items) > 1 else items[0]
    return made(base.name if base else "columns", keys, "--columns", base or UNNAMED)


def read_format(file: Path, name: str | None = None) -> Format:
    """The format of a YAML file, called as the file. Raises `UserError` if it cannot be read, or has a wrong key."""
    where = f"--format {file}"
    try:
        node = UniqueKeys(file.read_text(encoding="utf-8-sig")).get_single_node()
        keys = BaseConstructor().construct_document(node) if node else None  # all as it is written: no, 1, -1
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a YAML file: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not isinstance(keys, dict):
        raise UserError(f"{where} has no keys: write question: stem, and options and answer in further lines")
    return made(name or file.stem, keys, where)


FORMATS = {
    name: read_format(Path(__file__).with_name("known_formats") / f"{name}.yaml")
    for name in (
        *("pmc_vqa_v1", "pmc_vqa_v2", "medmcqa", "medqa", "pubmedqa", "pubmedqa_original"),
        *("mmlu", "medxpertqa", "head_qa"),
    )
}


def wanted_format(value: str, columns: str | None) -> Format | None:
    """The format that `--format` and `--columns` name, or None to detect it. Raises `UserError` for another value."""
    base = None
    if value != "detect":
        if value not in FORMATS and Path(value).suffix.lower() not in (".yaml", ".yml"):
            raise UserError(f"--format {value}: give {', '.join(FORMATS)}, or a YAML file that names the columns")
        base = FORMATS.get(value) or read_format(Path(value))
    return parse_columns(columns, base) if columns else base


def spelling(name: str) -> str:
    """The letters and digits of a column's name."""
    return re.sub(r"[\W_]+", "", name).casefold()


def match(columns: Sequence[str], formats: Iterable[Format]) -> tuple[Format, tuple[str, ...]] | None:
    """The first of the formats whose columns are all here, and `columns` with these in the format's spelling; or None.

    A name may differ in case, spaces and underscores from the format's. A format whose names are here exactly comes
    before one whose names are spelt otherwise. Columns beyond a format's own do not matter.
    """
    formats = tuple(formats)
    for known in formats:
        if set(columns).issuperset(known.columns):
            return known, tuple(columns)
    for known in formats:
        own = {spelling(name): name for name in known.columns}
        renamed = tuple(name if name in known.columns else own.get(spelling(name), name) for name in columns)
        if set(renamed).issuperset(known.columns):
            return known, renamed
    return None


def _words(name: str) -> set[str]:
    """The words of a name, in lower case: of "PMCVQATest 2" pmcvqa and test."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def split_named(name: str) -> str:
    """The split that a file calls by one of the usual names, or "" if it calls none. Of several, the held-out one."""
    words = _words(name)
    if words & SPLIT_NAMES["test"]:
        return "test_clean" if "clean" in words else "test"
    return next((split for split in ("dev", "train") if words & SPLIT_NAMES[split]), "")


def split_of(cell: str) -> str:
    """The split that a cell names, or "" if it names none, several, or says more ("not test")."""
    words = _words(cell) - {"set", "split", "clean"}
    return split_named(cell) if any(words and words <= names for names in SPLIT_NAMES.values()) else ""
