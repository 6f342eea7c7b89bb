"""A table, whatever file it comes from: its columns, and its rows as texts, each cell as it was written.

Faults of a file raise `UserError`, faults of one row `RejectedRow`.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft.common.command import UserError
from sft.common.text_encoding import titled

_SURROGATE = re.compile("[\ud800-\udfff]")
Classes = tuple[tuple[str, tuple[str, ...]], ...]  # columns that hold numbers, and the names of these numbers


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
    """Values of JSON or Parquet as the text that they stand for, "" for null and NaN; objects keep their keys."""
    if isinstance(value, Mapping):
        return {sound(str(key)): as_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_text(item) for item in value]
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or value != value else sound(str(value))


def classes_of(features: Mapping[str, Any]) -> Classes:
    """The columns of the Hub's feature ClassLabel, and the names that their numbers stand for."""
    kinds = ((name, kind) for name, kind in features.items() if isinstance(kind, dict))
    return tuple((name, tuple(kind["names"])) for name, kind in kinds if kind.get("_type") == "ClassLabel")


@dataclass(frozen=True)
class Table:
    """A file, or a split of a saved data set, and how it is to be read: what CSV, JSON and Arrow have in common."""

    path: Path
    columns: tuple[str, ...] = ()  # as the file calls them
    names: tuple[str, ...] = ()  # as its rows call them
    classes: Classes = ()

    def called(self, names: Sequence[str]) -> "Table":
        """This table with other names of its columns, in their order."""
        return replace(self, names=tuple(names))

    def described(self) -> str:
        """What kind of file it is: ``CSV, semicolons, Windows-1252``."""
        raise NotImplementedError

    def rows(self, only: set[str] | None = None) -> Iterator[Any]:
        """The rows as they come, to be read by `cells`; where that saves time, of the columns `only`.

        Raises `UserError` where the file breaks off.
        """
        raise NotImplementedError

    def cells(self, raw: Any) -> dict[str, Any]:
        """The cells of one row by column: texts, or lists and objects of texts. Raises `RejectedRow`."""
        cells = as_text(raw)
        for name, classes in self.classes:
            label = cells.get(name, "")
            cells[name] = classes[int(label)] if label.isdecimal() and int(label) < len(classes) else ""
        if self.names == self.columns:
            return cells
        names = dict(zip(self.columns, self.names, strict=True))
        return each_once([(names.get(name, name), cell) for name, cell in cells.items()])


@dataclass(frozen=True)
class TextTable(Table):
    """A table in a text file."""

    encoding: str = "utf-8"  # the codec

    def described(self) -> str:
        return titled(self.encoding)

    @contextlib.contextmanager
    def text(self, newline: str = "") -> Iterator[Any]:
        """The file, opened. What does not decode becomes surrogates, which `sound` refuses, in rows and headers.

        Raises `UserError` where even that is impossible.
        """
        try:
            with open(self.path, encoding=self.encoding, errors="surrogateescape", newline=newline) as lines:
                yield lines
        except UnicodeError as error:
            raise UserError(f"{self.path}: its text is not {titled(self.encoding)}: {error}") from error
