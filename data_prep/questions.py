"""From one row of a PMC-VQA version 1 CSV file to a clean `Question`, or to the reason why there is none.

The gold option is named three times in a row: by position (`Answer_label` counts columns), by the letter printed in
front of each choice, and by the answer's text. `reconcile` says which combinations are believed; docs/data.md
explains the rule.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.prompts import LETTERS

V1_HEADER = ("Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label")

_PRINTED_LETTER = re.compile(r"^['\"]?\s*([A-D])\s*:\s*")
_ANY_LETTER_MARK = re.compile(r"\b[A-D]\s*:")
_ARTICLE = re.compile(r"^PMC\d+")


class RejectedRow(Exception):
    """The row cannot be believed. The message is the reason, without the row's own text, so that it can be counted."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question, cleaned."""

    id: str  # file stem and row number, as in train-17; rows count from 1, the header left out
    source: str  # file name
    row: int
    figure: str  # file name of the figure, or ""
    article: str  # PubMed Central id of the article, or "" where the figure's name does not tell
    question: str
    choices: tuple[str, ...]
    gold: int  # index into choices


def clean_text(cell: str) -> str:
    """One line: every run of white space (new lines and no-break spaces too) becomes one space, outer ones go."""
    return " ".join(unicodedata.normalize("NFC", cell).split())


def clean_choice(cell: str) -> tuple[str | None, str]:
    """(printed letter or None, text of the option) for a cell such as ``" A: Green "``.

    A quote that the source glued on goes with the letter behind it, or with the white space before it; quotes that
    belong to the text (5', "double bubble") stay.
    """
    text = clean_text(cell)
    printed = _PRINTED_LETTER.match(text)
    if printed:
        text = text[printed.end() :]
    for quote in "'\"":
        if text.endswith(f" {quote}") and text.count(quote) % 2:
            text = text[:-2].rstrip()
    return (printed.group(1) if printed else None), text


def _comparable(text: str) -> str:
    """Letters, digits and signs in lower case, without option marks: equal where only the typing differs."""
    bare = _ANY_LETTER_MARK.sub(" ", clean_text(text))
    return " ".join(re.findall(r"[^\W_]+|[+\-<>=%±]", bare.casefold()))


def reconcile(label: str, answer: str, printed: Sequence[str | None], choices: Sequence[str]) -> int:
    """Index of the gold option.

    `label` names a position. Where the answer's text equals one option alone, that option must stand at the position,
    or carry the label as its printed letter (columns that were shifted). Otherwise the row is not believed.

    Raises:
        RejectedRow: the label is no letter, or the three sources do not agree.
    """
    label = clean_text(label)
    if label not in tuple(LETTERS):
        raise RejectedRow("label is not one of A, B, C, D")
    position = LETTERS.index(label)
    matches = [index for index, choice in enumerate(choices) if _comparable(choice) == _comparable(answer)]
    if not matches:
        raise RejectedRow("answer text is none of the options")
    if position in matches:
        return position
    if len(matches) == 1 and printed[matches[0]] == label:
        return matches[0]
    raise RejectedRow("label and answer text name different options")


def read_v1_row(cells: Sequence[str], source: str, row: int) -> Question:
    """The question in one CSV row with the columns of `V1_HEADER`.

    Raises:
        RejectedRow: too few or too many cells, an empty question or option, two equal options, or no agreed answer.
    """
    if len(cells) != len(V1_HEADER):
        raise RejectedRow(f"row does not have {len(V1_HEADER)} cells")
    figure, question, answer, *raw_choices, label = cells
    question = clean_text(question)
    if not question:
        raise RejectedRow("question is empty")
    printed, choices = zip(*map(clean_choice, raw_choices), strict=True)
    if not all(choices):
        raise RejectedRow("an option is empty")
    if len(set(choices)) < len(choices):
        raise RejectedRow("two options are the same")
    gold = reconcile(label, clean_choice(answer)[1], printed, choices)
    figure = clean_text(figure)
    article = _ARTICLE.match(figure)
    stem = source.rsplit(".", 1)[0]
    return Question(
        id=f"{stem}-{row}",
        source=source,
        row=row,
        figure=figure,
        article=article.group() if article else "",
        question=question,
        choices=choices,
        gold=gold,
    )
