"""The internal record of a question: its cells as text, and which option they name as the right one.

A row names it up to three times: by position (the label counts columns), by the letter printed in front of a choice,
and by the answer's text. docs/data.md explains which combinations are believed.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from sft.common.prompts import LETTERS, clean_text
from sft.common.table import RejectedRow

_NAMED = r"[\W_]*(?:(?i:option|choice|answer)[\W_]*)?"
_LETTER = re.compile(rf"{_NAMED}([{LETTERS}{LETTERS.lower()}])[\W_]*")
_NUMBER = re.compile(r"\s*(?:(?i:option|choice|answer)[\s_.:]*)?[\s(\[]*(-?\d{1,9})(?:\.0+)?[\s.:)\]]*")
_PUNCTUATION = str.maketrans("", "", " .,;:!?'\"()[]{}")
# An answer that holds one would be cut: chat templates take everything up to the last closing tag as thoughts.
THINK_TAGS = ("<think>", "</think>")


class Question(NamedTuple):
    """One multiple-choice question, cleaned."""

    id: str  # source without its ending, and the row's own id or its number, as in train-17; rows count from 1
    source: str  # file name, or split name of a saved data set
    row: int
    split: str  # train, dev, test or test_clean
    figure: str  # file name of the figure, or ""
    article: str  # the group that the format names, or else the PubMed Central id in the figure's name; or ""
    question: str
    choices: Sequence[str]
    gold: int  # index into choices
    caption: str = ""  # as in version 2 of PMC-VQA
    reasoning: Sequence[str] = ()  # written rationales: of the format's column, or with --add_reasoning
    uncut_figure: str = ""  # the figure that a version 2 file was cut from; elsewhere the figure itself


def check_text(question: str, choices: Sequence[str], may_repeat: bool = False) -> None:
    """Raise `RejectedRow` for an empty question or option, an option with a think tag, or (else) two equal options."""
    if not question:
        raise RejectedRow("question is empty")
    if not all(choices):
        raise RejectedRow("an option is empty")
    if len(set(choices)) < len(choices) and not may_repeat:
        raise RejectedRow("two options are the same")
    if any(tag in choice for choice in choices for tag in THINK_TAGS):
        raise RejectedRow("an option holds a think tag")


def comparable(text: str, count: int) -> str:
    """Letters, digits and signs in lower case, without punctuation and the marks of `count` options, as in "B: red".

    Texts that differ in how they were typed alone are equal so.
    """
    bare = re.sub(rf"\b[A-{LETTERS[count - 1]}]\s*:", " ", clean_text(text))
    return " ".join(re.findall(r"[^\W_]+|[^\w\s.,;:!?'\"()\[\]{}…‘’“”]", bare.casefold()))


def fingerprint(question: str, choices: Sequence[str]) -> str:
    """Question and options without case, spaces, punctuation and order: how a question that leaked is recognised."""
    first, *rest = "\n".join([question, *choices]).casefold().translate(_PUNCTUATION).split("\n")
    return "\n".join([first, *sorted(rest)])


def position_of(label: str, count: int) -> int:
    """Index of the option, of `count`, that a letter names: ``B``, ``b``, ``(B)``, ``Option B``.

    Raises `RejectedRow` for any other label.
    """
    letter = _LETTER.fullmatch(label)
    if letter and (position := LETTERS.index(letter[1].upper())) < count:
        return position
    found = ", but a number" if re.fullmatch(r"\d+(\.\d+)?", clean_text(label)) else ""
    raise RejectedRow(f"label is not one of {', '.join(LETTERS[:count])}{found}")


def number_of(label: str) -> int | None:
    """The whole number that a cell holds, or None; 2.0, as a column with gaps is saved, is 2."""
    number = _NUMBER.fullmatch(label)
    return int(number[1]) if number else None


def matches_of(answer: str, choices: Sequence[str]) -> list[int]:
    """Indices of the options that an answer's text equals: exactly, or else typed differently."""
    exact = [index for index, choice in enumerate(choices) if choice == answer]
    if exact or not (wanted := comparable(answer, len(choices))):
        return exact
    return [index for index, choice in enumerate(choices) if comparable(choice, len(choices)) == wanted]


def reconcile(position: int, answer: str, printed: Sequence[str | None], choices: Sequence[str]) -> int:
    """Index of the gold option, where the row gives a position (by letter or number) and the answer's text.

    Where the text equals one option alone, that option must stand at the position, or carry its letter as the printed
    one (columns that were shifted). Otherwise `RejectedRow` is raised.
    """
    if choices[position] == answer:
        return position
    matches = matches_of(answer, choices)
    if not matches:
        raise RejectedRow("answer text equals no option")
    if position in matches:
        return position
    if len(matches) == 1 and printed[matches[0]] == LETTERS[position]:
        return matches[0]
    raise RejectedRow("label and answer text name different options")


def reconcile_without_text(position: int, printed: Sequence[str | None]) -> int:
    """Index of the gold option, where the row gives a position alone.

    The letter printed in front of the option there, if any, must be that of the position, and no other option may
    carry it: with no text to decide, nothing is guessed. Otherwise `RejectedRow` is raised.
    """
    carriers = [index for index, letter in enumerate(printed) if letter == LETTERS[position]]
    if carriers != [position] and (carriers or printed[position]):
        raise RejectedRow("label and printed letter name different options")
    return position
