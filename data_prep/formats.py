"""The formats of medical multiple-choice questions that preparation reads.

A format is the columns that identify it and one small function from a row, its cells as strings, to a `Question`.
To add one, write the function and a line in `FORMATS`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from data_prep.questions import Question, RejectedRow, check_text, reconcile, reconcile_without_text
from sft.common.prompts import LETTERS, choice_cleaner, clean_choice, clean_text

V1_HEADER = ("Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label")
V2_HEADER = ("index", "Figure_path", "Caption", "Question", *V1_HEADER[3:7], "Answer", "split")
_ARTICLE = re.compile(r"PMC\d+")
_CUT_FIGURE = re.compile(r"^(PMC\d+_.+)_\d+(\.\w+)$")  # PMC1_F1_1234.jpg, cut out of PMC1_F1.jpg

ENOUGH = 50  # rows: as a fifth of MedMCQA's answers are the last option, in 1 of 70,000 such columns none is

Place = tuple[str, str, int]  # where a row came from: the first three fields of a question


def pmc_vqa_fields(cells: Mapping[str, str]) -> tuple[str, str, str, tuple[str, ...], tuple[str | None, ...], str]:
    """(figure, article, question, choices, letters printed before them, answer) of a row of PMC-VQA."""
    figure, question = clean_text(cells["Figure_path"]), clean_text(cells["Question"])
    options = [cells[f"Choice {letter}"] for letter in LETTERS[:4]]
    clean = choice_cleaner(options)
    printed, choices = zip(*map(clean, options), strict=True)
    check_text(question, choices)
    _, answer = clean_choice(cells["Answer"])
    if answer not in choices:
        _, answer = clean(cells["Answer"])
    article = _ARTICLE.match(figure)
    return figure, article.group() if article else "", question, choices, printed, answer


def read_pmc_vqa_v1(cells: Mapping[str, str], place: Place, split: str) -> Question:
    """PMC-VQA version 1: `Answer` is the text, `Answer_label` the letter."""
    figure, article, question, choices, printed, answer = pmc_vqa_fields(cells)
    gold = reconcile(cells["Answer_label"], answer, printed, choices)
    return Question(*place, split or "train", figure, article, question, choices, gold, uncut_figure=figure)


def read_pmc_vqa_v2(cells: Mapping[str, str], place: Place, split: str) -> Question:
    """PMC-VQA version 2: `Answer` is the letter. Where the file's name has no split, the `split` column has."""
    figure, article, question, choices, printed, _ = pmc_vqa_fields(cells)
    gold = reconcile_without_text(cells["Answer"], printed)
    split = split or split_named(clean_text(cells["split"]))
    if not split:
        raise RejectedRow("neither the file's name nor the split column names the split")
    caption, uncut_figure = clean_text(cells["Caption"]), _CUT_FIGURE.sub(r"\1\2", figure)
    return Question(*place, split, figure, article, question, choices, gold, caption, uncut_figure=uncut_figure)


# Options by `cop`: a number from 1, as MedMCQA's authors publish it, or the letter, as `datasets` names the classes.
COP = {name: index for names in ("1234", "abcd") for index, name in enumerate(names)}


def plain_cop(cell: str) -> str:
    """A cell of `cop` in the spelling of `COP`: 2.0, as a column with gaps is saved, is 2."""
    return clean_text(cell).lower().removesuffix(".0")


def fault_of_cop(cells: Counter[str]) -> str:
    """Why a column `cop`, as its cells with their counts, does not tell the right options; "" if it does.

    Copies of MedMCQA that count from 0 exist. A row of theirs can pass for one that counts from 1; a column cannot.
    """
    counts = Counter()
    for cell, count in cells.items():
        counts[plain_cop(cell)] += count
    numbers, zeros, fours = sum(counts[number] for number in "01234"), counts["0"], counts["4"]
    remedy = "write the letter of the right option, a to d, instead of the number"
    if counts and counts.keys() <= {"", "-1"}:
        return "no row has an answer in cop, as in MedMCQA's test split: leave this file or split out"
    if zeros and fours:
        return f"cop is 0 in {zeros} rows and 4 in {fours}, so some rows count from 0 and some from 1: {remedy}"
    if zeros:
        remedy = "write a, b, c, d instead of 0, 1, 2, 3"
        return f"cop counts from 0 ({zeros} of {numbers} are 0, none is 4), and MedMCQA counts from 1: {remedy}"
    if numbers >= ENOUGH and not fours:
        return f"cop is never 0 and never 4 in {numbers} rows, so it may count from 0 or from 1: {remedy}"
    return ""


def read_medmcqa(cells: Mapping[str, str], place: Place, split: str) -> Question:
    """MedMCQA (Pal et al. 2022): `cop` names the right option as in `COP`."""
    question = clean_text(cells["question"])
    choices = tuple(clean_text(cells[name]) for name in ("opa", "opb", "opc", "opd"))
    check_text(question, choices)
    gold = COP.get(plain_cop(cells["cop"]))
    if gold is None:
        raise RejectedRow("cop is not one of 1, 2, 3, 4")
    return Question(*place, split or "train", "", "", question, choices, gold)


def read_medqa(cells: Mapping[str, Any], place: Place, split: str) -> Question:
    """MedQA-USMLE with four options (Jin et al. 2021): `answer_idx` is the letter, `answer` the text."""
    options = cells["options"]
    if not isinstance(options, Mapping) or sorted(options) != list(LETTERS[:4]):
        kinds = {str: "text", list: "a list"}
        raise RejectedRow(
            f"options are not A, B, C, D, but {kinds.get(type(options)) or f'an object of {len(options)}'}"
        )
    if not all(isinstance(option, str) for option in options.values()):
        raise RejectedRow("an option is not text")
    question = clean_text(cells["question"])
    choices = tuple(clean_text(options[letter]) for letter in LETTERS[:4])
    check_text(question, choices)
    gold = reconcile(cells["answer_idx"], clean_text(cells["answer"]), LETTERS[:4], choices)
    return Question(*place, split or "train", "", "", question, choices, gold)


class Format(NamedTuple):
    """How to recognise a source, and how to read its rows."""

    title: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Place, str], Question]  # raises RejectedRow
    licence: str  # as its publisher gives it
    # The column of answers, and why its cells (with their counts) do not tell the right options, or "".
    answers: tuple[str, Callable[[Counter[str]], str]] | None = None


FORMATS = {
    "pmc_vqa_v1": Format("PMC-VQA version 1", V1_HEADER, read_pmc_vqa_v1, "CC BY-SA"),
    "pmc_vqa_v2": Format("PMC-VQA version 2", V2_HEADER, read_pmc_vqa_v2, "CC BY-SA"),
    "medmcqa": Format(
        "MedMCQA", ("question", "opa", "opb", "opc", "opd", "cop"), read_medmcqa, "MIT", ("cop", fault_of_cop)
    ),
    "medqa": Format("MedQA-USMLE, four options", ("question", "options", "answer", "answer_idx"), read_medqa, "MIT"),
}


def detect(columns: Iterable[str]) -> str | None:
    """Name of the format that has these columns, or None. Columns beyond a format's own do not matter."""
    present = set(columns)
    return next((name for name, known in FORMATS.items() if present.issuperset(known.columns)), None)


def split_named(name: str) -> str:
    """The split that a file or a column calls by one of the usual names, or "" if it calls none."""
    words = re.split(r"[^a-z]+", name.lower())
    if "test" in words:
        return "test_clean" if "clean" in words else "test"
    if {"dev", "val", "valid", "validation"} & set(words):
        return "dev"
    return "train" if "train" in words else ""
