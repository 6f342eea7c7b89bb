"""The formats of medical multiple-choice questions that preparation reads.

A format is the columns that identify it and one small function from a row, its cells as strings, to a `Question`.
To add one, write the function and a line in `FORMATS`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from data_prep.questions import Question, RejectedRow, check_text, reconcile, reconcile_without_text
from sft.common.prompts import LETTERS, clean_choice, clean_text

V1_HEADER = ("Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label")
V2_HEADER = ("index", "Figure_path", "Caption", "Question", *V1_HEADER[3:7], "Answer", "split")
_ARTICLE = re.compile(r"PMC\d+")
_CUT_FIGURE = re.compile(r"^(PMC\d+_.+)_\d+(\.\w+)$")  # PMC1_F1_1234.jpg, cut out of PMC1_F1.jpg

Place = tuple[str, str, int]  # where a row came from: the first three fields of a question


def pmc_vqa_fields(cells: Mapping[str, str]) -> tuple[str, str, str, tuple[str, ...], tuple[str | None, ...]]:
    """(figure, article, question, choices, letters printed before them) of a row of PMC-VQA, in either version."""
    figure, question = clean_text(cells["Figure_path"]), clean_text(cells["Question"])
    printed, choices = zip(*[clean_choice(cells[f"Choice {letter}"]) for letter in LETTERS], strict=True)
    check_text(question, choices)
    article = _ARTICLE.match(figure)
    return figure, article.group() if article else "", question, choices, printed


def read_pmc_vqa_v1(cells: Mapping[str, str], place: Place, split: str) -> Question:
    """PMC-VQA version 1: `Answer` is the text, `Answer_label` the letter."""
    figure, article, question, choices, printed = pmc_vqa_fields(cells)
    gold = reconcile(cells["Answer_label"], clean_choice(cells["Answer"])[1], printed, choices)
    return Question(*place, split or "train", figure, article, question, choices, gold, uncut_figure=figure)


def read_pmc_vqa_v2(cells: Mapping[str, str], place: Place, split: str) -> Question:
    """PMC-VQA version 2: `Answer` is the letter. Where the file's name has no split, the `split` column has."""
    figure, article, question, choices, printed = pmc_vqa_fields(cells)
    gold = reconcile_without_text(cells["Answer"], printed)
    split = split or split_named(clean_text(cells["split"]))
    if not split:
        raise RejectedRow("neither the file's name nor the split column names the split")
    caption, uncut_figure = clean_text(cells["Caption"]), _CUT_FIGURE.sub(r"\1\2", figure)
    return Question(*place, split, figure, article, question, choices, gold, caption, uncut_figure=uncut_figure)


def read_medmcqa(cells: Mapping[str, str], place: Place, split: str) -> Question:
    """MedMCQA (Pal et al. 2022): `cop` is the number of the right option from 1, as its authors publish it.

    A saved `datasets` folder names the classes a to d instead.
    """
    question = clean_text(cells["question"])
    choices = tuple(clean_text(cells[name]) for name in ("opa", "opb", "opc", "opd"))
    check_text(question, choices)
    gold = {"1": 0, "2": 1, "3": 2, "4": 3, "a": 0, "b": 1, "c": 2, "d": 3}.get(clean_text(cells["cop"]))
    if gold is None:
        raise RejectedRow("cop is not one of 1, 2, 3, 4")
    return Question(*place, split or "train", "", "", question, choices, gold)


def read_medqa(cells: Mapping[str, Any], place: Place, split: str) -> Question:
    """MedQA-USMLE with four options (Jin et al. 2021): `answer_idx` is the letter, `answer` the text."""
    options = cells["options"]
    if not isinstance(options, Mapping) or sorted(options) != list(LETTERS):
        raise RejectedRow("options are not A, B, C, D")
    question = clean_text(cells["question"])
    choices = tuple(clean_text(options[letter]) for letter in LETTERS)
    check_text(question, choices)
    gold = reconcile(cells["answer_idx"], clean_text(cells["answer"]), LETTERS, choices)
    return Question(*place, split or "train", "", "", question, choices, gold)


class Format(NamedTuple):
    """How to recognise a source, and how to read its rows."""

    title: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Place, str], Question]  # raises RejectedRow
    licence: str  # as its publisher gives it


FORMATS = {
    "pmc_vqa_v1": Format("PMC-VQA version 1", V1_HEADER, read_pmc_vqa_v1, "CC BY-SA"),
    "pmc_vqa_v2": Format("PMC-VQA version 2", V2_HEADER, read_pmc_vqa_v2, "CC BY-SA"),
    "medmcqa": Format("MedMCQA", ("question", "opa", "opb", "opc", "opd", "cop"), read_medmcqa, "MIT"),
    "medqa": Format("MedQA-USMLE, four options", ("question", "options", "answer", "answer_idx"), read_medqa, "MIT"),
}


def detect(columns: Iterable[str]) -> str | None:
    """Name of the format that has these columns, or None. Columns beyond a format's own do not matter."""
    present = set(columns)
    return next((name for name, known in FORMATS.items() if present.issuperset(known.columns)), None)


def nearest(columns: Iterable[str]) -> str:
    """What the columns lack of the format that they have most of, in words."""
    present = set(columns)
    known = max(FORMATS.values(), key=lambda known: len(present.intersection(known.columns)) / len(known.columns))
    missing = [column for column in known.columns if column not in present]
    if len(missing) == len(known.columns):
        return "it has no column of any known format: " + ", ".join(known.title for known in FORMATS.values())
    return f"for {known.title} it lacks {', '.join(missing)}"


def split_named(name: str) -> str:
    """The split that a file or a column calls by one of the usual names, or "" if it calls none."""
    words = re.split(r"[^a-z]+", name.lower())
    if "test" in words:
        return "test_clean" if "clean" in words else "test"
    if {"dev", "val", "valid", "validation"} & set(words):
        return "dev"
    return "train" if "train" in words else ""
