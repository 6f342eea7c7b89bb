"""What every cell of a source goes through: JSON values become the text that they stand for, and text is sound."""

import json
import re
from collections.abc import Mapping
from typing import Any

from data_prep.questions import RejectedRow

_SURROGATE = re.compile("[\ud800-\udfff]")


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
