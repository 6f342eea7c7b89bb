"""CSV as spreadsheets and programs write it: which delimiter and quoting a file has, and its rows."""

import contextlib
import csv
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sft.common.command import UserError
from sft.common.table import RejectedRow, TextTable, sound

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
csv.field_size_limit(1 << 24)  # characters of one cell: beyond any caption


@dataclass(frozen=True)
class CsvTable(TextTable):
    """Rows are lists of cells."""

    delimiter: str = ","
    escaped: bool = False  # a quotation mark in a quoted cell is written \" and not ""
    spaced: bool = False  # a space stands behind each delimiter, and before quotation marks
    first_line: int = 1  # of the header

    def described(self) -> str:
        quoting = ', quotation marks as \\"' if self.escaped else ""
        return f"CSV, {DELIMITERS.get(self.delimiter, self.delimiter)}, {super().described()}{quoting}"

    def rows(self, only: set[str] | None = None) -> Iterator[list[str]]:
        return _rows(self)

    def cells(self, raw: list[str]) -> dict[str, str]:
        sound("".join(raw))
        if len(raw) < len(self.names) and not any(self.names[len(raw) :]):
            raw = [*raw, *[""] * (len(self.names) - len(raw))]  # Excel leaves empty cells without a column's name out
        if len(raw) != len(self.names):
            raise RejectedRow(f"row has too {'few' if len(raw) < len(self.names) else 'many'} cells")
        return dict(zip(self.names, raw, strict=True))


@contextlib.contextmanager
def _reader(table: CsvTable, strict: bool = True) -> Iterator[Any]:
    """A reader that stands before the header."""
    quoting = {"doublequote": False, "escapechar": "\\"} if table.escaped else {}
    with table.text() as lines:
        for _ in range(table.first_line - 1):
            lines.readline()
        quoting |= {"delimiter": table.delimiter, "skipinitialspace": table.spaced}
        yield csv.reader(lines, strict=strict, **quoting)


def csv_table(table: CsvTable, fits: Callable[[tuple[str, ...]], bool]) -> CsvTable:
    """The table with delimiter, quoting and header. Raises `UserError` if two of them fit, and give other rows."""
    with table.text() as lines:
        stated = re.fullmatch(r'"?sep=(.)"?\s*', lines.readline())
    escapes = _escapes(table)
    possible = []
    for escaped in (False, True)[: 1 + escapes]:
        for delimiter in stated[1] if stated else DELIMITERS:
            way = replace(table, delimiter=delimiter, escaped=escaped, first_line=2 if stated else 1)
            with _reader(way, strict=False) as reader:
                first = [*next(reader, []), *next(reader, [])]
            way = replace(way, spaced=any(re.match(r'\s+"', cell) and cell.count('"') > 1 for cell in first))
            with _reader(way, strict=False) as reader:
                columns = tuple(name.strip() for name in next(reader, []))
            possible.append(replace(way, columns=columns, names=columns))
    fitting = [way for way in possible if fits(way.columns)]
    if len(fitting) < 2:
        return fitting[0] if fitting else max(possible, key=lambda way: len(way.columns))
    faults = [_faults(way) for way in fitting]
    most = 0 if 0 in faults else sys.maxsize
    best = [way for way, count in zip(fitting, faults, strict=True) if count <= most] or fitting[:1]
    if not all(_equal(best[0], other) for other in best[1:]):
        ways = " or ".join(way.described() for way in best)
        raise UserError(f"{table.path}: it can be read in two ways, {ways}: write it again with a CSV writer")
    return best[0]


def _escapes(table: CsvTable) -> bool:
    """May \\" be a quotation mark? Not where a backslash stands before anything but such a mark or a backslash."""
    with table.text() as content:
        if not any("\\" in block for block in iter(partial(content.read, 1 << 20), "")):  # nearly always
            return False
    with table.text() as lines:
        rest = [re.sub(r"\\\\", "", line) for line in lines if "\\" in line]
    return any('\\"' in line for line in rest) and not any(re.search(r'\\(?!")', line) for line in rest)


def _faults(table: CsvTable) -> float:
    """How many rows have not as many cells as the header; infinite where reading breaks off."""
    try:
        return sum(len(row) != len(table.columns) for row in table.rows())
    except UserError:
        return float("inf")


def _equal(one: CsvTable, other: CsvTable) -> bool:
    return one.columns == other.columns and all(
        first == second for first, second in itertools.zip_longest(one.rows(), other.rows())
    )


def _rows(table: CsvTable) -> Iterator[list[str]]:
    path, columns, offset = table.path, table.columns, table.first_line - 1
    cells, line = columns, 0
    with _reader(table) as rows:
        try:
            next(rows, None)
            line = rows.line_num
            for cells in rows:
                if rows.line_num > line + 1 and _holds_rows(cells, table.delimiter):
                    raise UserError(
                        f"{path}: the row from line {line + 1 + offset} to {rows.line_num + offset} has a cell that "
                        "contains further rows: a quote is opened there and closed much later"
                    )
                line = rows.line_num
                if any(cells):  # not an empty line, nor one of commas alone
                    yield cells
        except csv.Error as error:
            where = f"{path}: line {rows.line_num + offset}"
            raise UserError(f"{where}: {_fault(error, line + 1 + offset)}") from error
    named = max((number for number, name in enumerate(columns, start=1) if name), default=0)
    if len(cells) < named or (columns and columns[-1] and not cells[-1] and not _often_empty(table)):
        with open(path, "rb") as content:
            content.seek(-min(4, path.stat().st_size), 2)
            if content.read().rstrip(b"\0")[-1:] not in (b"\r", b"\n"):
                raise UserError(f"{path}: line {line + offset}: the file ends inside a row: is the download complete?")


def _often_empty(table: CsvTable) -> bool:
    """Is the last cell empty in a row before the last?"""
    with _reader(table) as rows:
        next(rows)
        return sum(1 for row in rows if any(row) and not row[-1]) > 1


def _fault(error: csv.Error, first: int) -> str:
    """What is wrong in a row, which begins in line `first`, that the strict reader refuses."""
    if "end of data" in str(error):
        return (
            "the file ends inside a quoted cell: is the download complete? Else a quotation mark of the row in line "
            f'{first} is not doubled ("")'
        )
    if "expected after" in str(error):
        return (
            'broken CSV: a quotation mark inside a quoted cell is not doubled (""), but single or escaped (\\"): '
            "write the file again with a CSV writer"
        )
    return f"broken CSV: {error}"


def _holds_rows(cells: list[str], delimiter: str) -> bool:
    """Does a cell hold the end of its row, further rows, and the beginning of the row in which its quote was closed?

    Between the rows, no white space follows a delimiter, as it does in a sentence. An inner line can also be a row of
    as many cells, of which the outer two (path, label) have no white space, and another one has.
    """

    def split(line: str) -> list[str]:
        return next(csv.reader([line], delimiter=delimiter), [])

    for place, cell in enumerate(cells):
        lines = cell.splitlines()
        if len(lines) < 2:
            continue
        outer = [split(lines[0]), split(lines[-1])]
        spaced = any(part[:1].isspace() for parts in outer for part in parts)
        if [len(parts) for parts in outer] == [len(cells) - place, place + 1] and not spaced:
            return True
        rows = [row for line in lines[1:-1] if len(row := split(line)) == len(cells)]
        if any(len(row[0].split()) < 2 and len(row[-1].split()) < 2 and " " in "".join(row) for row in rows):
            return True
    return False
