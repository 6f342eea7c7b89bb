"""JSON as people have it: an object a line, an array, an object of objects, or a page of the Hub's dataset viewer."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sft.common.command import UserError
from sft.common.table import JSON, Classes, RejectedRow, TextTable, classes_of, sound

_SPACE = re.compile(r"\s*")
LINES, ARRAY, OBJECT, PAGE = "JSON lines", "JSON array", "JSON object", "page of the Hub's viewer"


@dataclass(frozen=True)
class JsonTable(TextTable):
    """Rows are the texts of JSON objects. In an object of objects, the outer key is the column `key`."""

    kind: str = LINES

    def described(self) -> str:
        return f"{self.kind}, {super().described()}"

    def rows(self, only: set[str] | None = None) -> Iterator[str]:
        return _rows(self)

    def cells(self, raw: str) -> dict[str, Any]:
        try:
            row = JSON.decode(sound(raw))
            if self.kind == PAGE:
                if row.get("truncated_cells"):
                    raise RejectedRow("the Hub's viewer has cut a cell")
                row = row["row"]
        except (ValueError, RecursionError, LookupError, AttributeError):
            raise RejectedRow("line is not JSON" if self.kind == LINES else "row is not JSON") from None
        if not isinstance(row, dict):
            raise RejectedRow("row is not a JSON object")
        return super().cells(row)


def json_table(table: JsonTable) -> JsonTable:
    """The table with its kind of JSON, and the keys of its first row. Raises `UserError` for any other JSON."""
    with table.text("\n") as lines:
        first = next((line for line in lines if not line.isspace()), "{}")
    row: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(first)
    classes, at_a_time = (), isinstance(row, dict) and not isinstance(row.get("rows"), list)
    if first.lstrip().startswith("["):
        kind = ARRAY
    elif at_a_time and not (row and all(isinstance(cell, dict | list) for cell in row.values())):
        kind = LINES
    elif not first.lstrip().startswith("{"):
        raise UserError(f"{table.path}: line 1 is not a JSON object: write one question a line")
    else:
        with _broken(table), table.text("\n") as content:
            parts = {json.loads(key): value for key, value in _elements(content.read())}
        if parts.get("rows", "").startswith("["):
            kind = PAGE
            classes = _of_viewer(table, parts)
        elif all(value.startswith("{") for value in parts.values()):
            kind = OBJECT
        else:
            raise UserError(
                f"{table.path}: one JSON object that is no table: give a list of objects, or one object a line, each "
                f"a question; found the keys {', '.join(map(ascii, parts))[:200]}"
            )
    table = replace(table, kind=kind)
    columns = tuple(row or {}) if kind == LINES else ()
    for raw in table.rows() if not columns else ():
        with contextlib.suppress(RejectedRow):
            columns = tuple(table.cells(raw))
            break
    return replace(table, columns=columns, names=columns, classes=classes)


def _of_viewer(table: JsonTable, parts: Mapping[str, str]) -> Classes:
    """The classes of a page of the Hub's viewer. Prints it if the page has not all rows."""
    count, total = sum(1 for _ in _elements(parts["rows"])), parts.get("num_rows_total", "0")
    if total.isdecimal() and count < int(total):
        print(f"{table.path}: a page of the Hub's viewer with {count} of {total} rows")
    features = json.loads(parts.get("features", "[]"))
    with contextlib.suppress(TypeError, LookupError):
        return classes_of({feature["name"]: feature["type"] for feature in features})
    return ()


@contextlib.contextmanager
def _broken(table: JsonTable) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        end = ": is the download complete?" if at_end else ""
        raise UserError(f"{table.path}: line {error.lineno} is not JSON: {error.msg}{end}") from error
    except RecursionError as error:
        raise UserError(f"{table.path}: its JSON is nested too deeply to be a table") from error


def _elements(text: str) -> Iterator[tuple[str, str]]:
    """(text of the key, or "" in an array; text of the value) of each element of a JSON object or array.

    Raises `json.JSONDecodeError`.
    """
    value = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode

    def after(at: int, sign: str) -> int:
        at = _SPACE.match(text, at).end()
        if not text.startswith(sign, at):
            raise json.JSONDecodeError(f"{sign} expected", text, at)
        return _SPACE.match(text, at + len(sign)).end()

    at = after(0, "")
    opening, closing = ("{", "}") if text.startswith("{", at) else ("[", "]")
    at = after(at, opening)
    more = not text.startswith(closing, at)
    while more:
        start, key = at, ""
        if opening == "{":
            after(start, '"')
            _, at = value(text, start)
            key, start = text[start:at], after(at, ":")
        _, at = value(text, start)
        yield key, text[start:at]
        at = after(at, "")
        if more := text.startswith(",", at):
            at = after(at, ",")
    if (end := after(at, closing)) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _rows(table: JsonTable) -> Iterator[str]:
    with table.text("\n") as content:
        if table.kind == LINES:
            number, line = 0, "\n"
            for number, line in enumerate(content, start=1):  # noqa: B007
                if not line.isspace():
                    yield line
            if not line.endswith("\n") and not line.rstrip().endswith("}"):
                raise UserError(f"{table.path}: line {number}: the file ends inside a row: is the download complete?")
            return
        text = content.read()
    with _broken(table):
        if table.kind == PAGE:
            text = next(value for key, value in _elements(text) if json.loads(key) == "rows")
        for key, value in _elements(text):
            inner = value[1:].lstrip()
            yield f'{{"key": {key}{"" if inner == "}" else ", "}{inner}' if key else value
