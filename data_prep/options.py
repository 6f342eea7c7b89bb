"""The options of a row, as sources write them: a list, JSON text, an object by letter, columns, lines with letters."""

import ast
import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from data_prep.formats import INTO, Format
from sft.common.prompts import LETTERS, MIN_OPTIONS, choice_cleaner, clean_choice, clean_text, typed_choice
from sft.common.table import JSON, RejectedRow, as_text

# What an object that is one option of a list calls its letter or number, its text, and that it is the right one.
KEY_NAMES = ("key", "label", "letter", "aid", "id", "option", "index", "value")
TEXT_NAMES = ("text", "atext", "content", "value", "option", "answer", "choice", "label")
RIGHT_NAMES = ("correct", "is_correct", "iscorrect", "right", "is_right", "is_answer", "correctness")
YES, NO = ("true", "1", "1.0", "yes", "right", "correct"), ("false", "0", "0.0", "no", "wrong", "incorrect", "")
_MARK = r"(?:\*+|✓|✔|\[x\]|\((?:correct|right)\))"
_MARKED = re.compile(rf"(?i)^\s*{_MARK}\s*|\s*{_MARK}\s*$")


class Options(NamedTuple):
    """The options of one row."""

    texts: tuple[str, ...]  # cleaned
    printed: tuple[str | None, ...]  # the letter that stood in front of each, or by which the row calls it
    keys: tuple[str, ...]  # what else the row calls each by: numbers, names; or ()
    marked: tuple[bool, ...]  # is it marked as the right one?
    clean: Callable[[str], tuple[str | None, str]]  # as its options were, for the text of the answer
    in_order: bool = True  # False where they were put into the order of their letters


def value_at(cells: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or inside of it of a key: ``context->contexts``; "" if it is not there."""
    value: Any = cells
    for name in path.split(INTO):
        value = value.get(name, "") if isinstance(value, Mapping) else ""
    return value


def text_at(cells: Mapping[str, Any], path: str, joined: bool = False) -> str:
    """The text of a column, where `joined` of a list of texts too. Raises `RejectedRow` for any other value."""
    value = cells.get(path)
    if isinstance(value, str):  # nearly always
        return value
    value = value_at(cells, path)
    if joined and isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    if not isinstance(value, str):
        raise RejectedRow("a cell is a list or an object instead of text")
    return value


def decoded(text: str) -> Any:
    """The list or object that `text` is written as, by JSON or by Python's `repr`; `text` itself if it is neither."""
    if text.strip()[:1] not in ("[", "{"):
        return text
    with contextlib.suppress(ValueError, RecursionError):
        return as_text(JSON.decode(text.strip()))
    try:
        return as_text(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def lettered_lines(text: str) -> tuple[str, list[str]]:
    """(what stands before, the options with their letters), where the last lines of `text` begin with A, B, C, ...

    Raises `RejectedRow` if there are no such lines, or another line stands among or behind them.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    letters = [typed_choice(line, len(LETTERS))[0] for line in lines]
    first = max((number for number, letter in enumerate(letters) if letter == "A"), default=len(lines))
    if letters[first:] != list(LETTERS[: len(lines) - first]) or first >= len(lines) - 1:
        raise RejectedRow("its last lines are not options with the letters A, B, C, ...")
    return "\n".join(lines[:first]), lines[first:]


def _letter(text: str) -> str:
    """What a key such as ``(a)`` or ``B.`` is without its marks, as a capital letter."""
    return text.strip(" ().:").upper()


def _by_name(item: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The key of an object that is one of the names, in any case."""
    return next((key for name in names for key in item if key.lower() == name), None)


@lru_cache(maxsize=1024)  # mostly of the same columns or keys, row after row
def _are_letters(texts: tuple[str, ...]) -> bool:
    """Are these the letters of as many options, in any order?"""
    letters = sorted(map(_letter, texts))
    return letters == list(LETTERS[: len(letters)])


def _count(texts: Sequence[str]) -> bool:
    """Are these the letters of as many options, or their numbers from 0 or 1?"""
    numbers = [sorted(str(first + number) for number in range(len(texts))) for first in (0, 1)]
    return _are_letters(tuple(texts)) or sorted(texts) in numbers


def _of_objects(items: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[str], list[bool]]:
    """(texts, keys, marks) of a list of objects, one an option."""
    named = {name: None for item in items for name in item}
    counting = [name for name in named if _count([str(item.get(name, "")) for item in items])]
    text = _by_name({name: None for name in named if name not in counting}, TEXT_NAMES) or _by_name(named, TEXT_NAMES)
    key = _by_name({name: None for name in named if name != text}, KEY_NAMES)
    right = _by_name(named, RIGHT_NAMES)
    if text is None or any(name not in item for item in items for name in (text, key) if name):
        raise RejectedRow("an option is an object without a text of its own")
    marks = [str(item.get(right, "")).lower() for item in items] if right else []
    if not all(mark in (*YES, *NO) for mark in marks):
        raise RejectedRow(f"an option's {right} is neither true nor false")
    keys = [str(item[key]) for item in items] if key else []
    return [item[text] for item in items], keys, [mark in YES for mark in marks]


def _of_value(value: Any) -> tuple[list[Any], list[str], list[bool]]:
    """(texts, keys or [], marks or []) of options that stand in one column."""
    value = decoded(value) if isinstance(value, str) else value
    if isinstance(value, str):
        with contextlib.suppress(RejectedRow):
            before, lines = lettered_lines(value)
            if not before:
                return lines, [], []
        raise RejectedRow("its options are neither a list nor lines with the letters A, B, C, ...")
    if isinstance(value, Mapping) and value and all(isinstance(item, list) for item in value.values()):
        # One object with a list for each name, as Parquet and `datasets` store a list of objects.
        lengths = set(map(len, value.values()))
        if len(lengths) > 1:
            raise RejectedRow("the options' letters and texts are not equally many")
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    if isinstance(value, Mapping):
        of_letters = [len(_letter(key)) == 1 for key in value]
        if any(of_letters) and not all(of_letters):  # an explanation, or the answer
            raise RejectedRow("beside letters, the object of its options has other keys")
        return list(value.values()), list(value), []
    if value and all(isinstance(item, list) and len(item) == 2 for item in value):  # (letter, text)
        value = [{"key": item[0], "text": item[1]} for item in value]
    if value and all(isinstance(item, Mapping) for item in value):
        return _of_objects(value)
    return list(value), [], []


def read_options(cells: Mapping[str, Any], known: Format) -> tuple[str | None, Options]:
    """(the question before its options, or None where they stand elsewhere; the options) of a row.

    Raises `RejectedRow` if they cannot be read, or are more or fewer than the format or the project allows.
    """
    question, keys, marks = None, [], []
    if known.fixed_options:
        texts = list(known.fixed_options)
    elif not known.options or known.options == known.question:
        question, texts = lettered_lines(text_at(cells, known.question[-1]))
    elif len(known.options) == 1:
        texts, keys, marks = _of_value(value_at(cells, known.options[0]))
    else:
        texts = [text_at(cells, name) for name in known.options]
        keys = [] if _are_letters(known.options) else [*known.options]
    while not known.option_count and texts and isinstance(texts[-1], str) and not texts[-1].strip():  # as others have
        texts, keys, marks = texts[:-1], keys[: len(texts) - 1], marks[: len(texts) - 1]
    if not all(isinstance(text, str) for text in texts):
        raise RejectedRow("an option is not text")
    if known.option_count and len(texts) != known.option_count:
        raise RejectedRow(f"options are not {', '.join(LETTERS[: known.option_count])}, but {len(texts)}")
    if not MIN_OPTIONS <= len(texts) <= len(LETTERS):
        raise RejectedRow(f"the row has {len(texts)} options, not {MIN_OPTIONS} to {len(LETTERS)}")
    return question, _cleaned(texts, keys, marks, known)


def _cleaned(texts: list[str], keys: list[str], marks: list[bool], known: Format) -> Options:
    """The options without the letters and marks that stand in their texts, in the order of their letters."""
    if not known.answer and not marks:
        clean = _own_letters_cleaner(texts)
        texts = [clean(text)[1] for text in texts]
        marks = [bool(_MARKED.search(text)) for text in texts]
        texts = [_MARKED.sub("", text) for text in texts]
    if keys and _are_letters(tuple(keys)):
        order = sorted(range(len(texts)), key=lambda index: _letter(keys[index]))
        texts = [clean_text(texts[index]) for index in order]
        marks = [marks[index] for index in order] if marks else []
        is_sorted = order == list(range(len(texts)))
        return Options(tuple(texts), tuple(LETTERS[: len(texts)]), (), tuple(marks), _without_letters, is_sorted)
    clean = partial(clean_choice, count=len(texts))
    pairs = [clean(text) for text in texts] if known.letters else []
    if not (pairs and all(letter for letter, _ in pairs)):  # seldom in PMC-VQA
        clean = choice_cleaner(texts) if known.letters else _own_letters_cleaner(texts)
        pairs = map(clean, texts)
    printed, cleaned = zip(*pairs, strict=True)
    return Options(cleaned, printed, _cleaned_keys(tuple(keys)), tuple(marks), clean)


@lru_cache(maxsize=1024)
def _cleaned_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(clean_text(key).upper() for key in keys)


def _without_letters(text: str) -> tuple[None, str]:
    return None, clean_text(text)


def _own_letters_cleaner(texts: Sequence[str]) -> Callable[[str], tuple[str | None, str]]:
    """`typed_choice` where the options have the letters A, B, C, ... in front of them, each once.

    Elsewhere what looks like a letter is text: "A. fumigatus", "E: 5 mg". If each option begins with another one, it
    may be a letter too (a gap: A, C, D), and stays in sight, so that a label can contradict it.
    """
    found = [typed_choice(text, len(LETTERS)) for text in texts]
    letters = [letter or "" for letter, _ in found]
    if not all(letters) or len(set(letters)) < len(letters):
        return _without_letters
    if _are_letters(tuple(letters)) and all(text for _, text in found):
        return lambda text: typed_choice(text, len(texts))
    return lambda text: (typed_choice(text, len(LETTERS))[0], clean_text(text))
