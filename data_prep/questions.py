"""The internal record of a question: its cells as text, and which option they name as the right one.

A row names it up to three times: by position (the label counts columns), by the letter printed in front of a choice,
and by the answer's text. docs/data.md explains which combinations are believed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sft.common.prompts import LETTERS, clean_text

_ANY_LETTER_MARK = re.compile(r"\b[A-D]\s*:")
_MARKED_LETTER = re.compile(r"[\W_]*((option|choice|answer)[\W_]*)?[a-d][\W_]*", re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", " .,;:!?'\"()[]{}")
_SURROGATE = re.compile("[\ud800-\udfff]")
# An answer that holds one would be cut: chat templates take everything up to the last closing tag as thoughts.
THINK_TAGS = ("<think>", "</think>")


class RejectedRow(Exception):
    """The row cannot be believed. The message is the reason, without the row's own text, so that it can be counted."""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's keys and values as a dict. Raises `RejectedRow` for a key that stands twice."""
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise RejectedRow("a key stands twice")
    return cells


# Numbers stay as they are written; NaN and Infinity, which are no JSON, stand for nothing.
JSON = json.JSONDecoder(object_pairs_hook=each_once, parse_int=str, parse_float=str, parse_constant=lambda _: None)


def sound(text: str) -> str:
    """`text` itself. Raises `RejectedRow` if it holds a NUL byte or is not UTF-8."""
    if "\0" in text:
        raise RejectedRow("row holds a NUL byte")
    if not text.isascii() and _SURROGATE.search(text):
        raise RejectedRow("row is not UTF-8 text")
    return text


def as_text(value: Any) -> Any:
    """Values of JSON or `datasets` as the text that they stand for, "" for null and NaN; objects keep their keys."""
    if isinstance(value, Mapping):
        return {sound(key): as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_text(item) for item in value]
    return "" if value is None or value != value else sound(str(value))


class Question(NamedTuple):
    """One multiple-choice question, cleaned."""

    id: str  # source without its ending, and row number, as in train-17; rows count from 1, the header left out
    source: str  # file name, or split name of a saved data set
    row: int
    split: str  # train, dev, test or test_clean
    figure: str  # file name of the figure, or ""
    article: str  # PubMed Central id of the article, or "" where the figure's name does not tell
    question: str
    choices: Sequence[str]
    gold: int  # index into choices
    caption: str = ""  # version 2 of PMC-VQA alone
    reasoning: str = ""  # a written rationale, with --add_reasoning
    uncut_figure: str = ""  # the figure that a version 2 file was cut from; elsewhere the figure itself


def check_text(question: str, choices: Sequence[str]) -> None:
    """Raise `RejectedRow` for an empty question or option, two equal options, or an option with a think tag."""
    if not question:
        raise RejectedRow("question is empty")
    if not all(choices):
        raise RejectedRow("an option is empty")
    if len(set(choices)) < len(choices):
        raise RejectedRow("two options are the same")
    if any(tag in choice for choice in choices for tag in THINK_TAGS):
        raise RejectedRow("an option holds a think tag")


def comparable(text: str) -> str:
    """Letters, digits and signs in lower case, without punctuation and option marks: equal if typed differently."""
    bare = _ANY_LETTER_MARK.sub(" ", clean_text(text))
    return " ".join(re.findall(r"[^\W_]+|[^\w\s.,;:!?'\"()\[\]{}…‘’“”]", bare.casefold()))


def fingerprint(question: str, choices: Sequence[str]) -> str:
    """Question and options without case, spaces, punctuation and order: how a question that leaked is recognised."""
    first, *rest = "\n".join([question, *choices]).casefold().translate(_PUNCTUATION).split("\n")
    return "\n".join([first, *sorted(rest)])


def position_of(label: str) -> int:
    """Index of the option that a label names by its position. Raises `RejectedRow` for any label but A to D."""
    label = clean_text(label)
    if label in tuple(LETTERS[:4]):
        return LETTERS.index(label)
    found = ", but a number" if re.fullmatch(r"\d+(\.\d+)?", label) else ""
    found = ", but a letter in another form" if _MARKED_LETTER.fullmatch(label) else found
    raise RejectedRow(f"label is not one of A, B, C, D{found}")


def reconcile(label: str, answer: str, printed: Sequence[str | None], choices: Sequence[str]) -> int:
    """Index of the gold option, where the row gives a label and the answer's text.

    Where the text equals one option alone, that option must stand at the label's position, or carry the label as its
    printed letter (columns that were shifted). Otherwise `RejectedRow` is raised.
    """
    position = position_of(label)
    if choices[position] == answer:
        return position
    wanted = comparable(answer)
    matches = [choices.index(answer)] if answer in choices else []
    matches = matches or [index for index, choice in enumerate(choices) if comparable(choice) == wanted]
    if not matches:
        raise RejectedRow("answer text equals no option")
    if position in matches:
        return position
    if len(matches) == 1 and printed[matches[0]] == LETTERS[position]:
        return matches[0]
    raise RejectedRow("label and answer text name different options")


def reconcile_without_text(label: str, printed: Sequence[str | None]) -> int:
    """Index of the gold option, where the row gives a label alone.

    The letter printed in front of the option at that position, if any, must be the label, and no other option may
    carry it: with no text to decide, nothing is guessed. Otherwise `RejectedRow` is raised.
    """
    position = position_of(label)
    carriers = [index for index, letter in enumerate(printed) if letter == LETTERS[position]]
    if carriers != [position] and (carriers or printed[position]):
        raise RejectedRow("label and printed letter name different options")
    return position
