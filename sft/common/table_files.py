"""Tables in files: CSV, JSON and Parquet, each known by its ending and judged by its content.

What can be read in two ways is refused.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft.common.arrow_table import parquet_table
from sft.common.command import UserError
from sft.common.csv_table import CsvTable, csv_table
from sft.common.json_table import JsonTable, json_table
from sft.common.table import RejectedRow, Table
from sft.common.text_encoding import encoding_of

ENDINGS = {
    **dict.fromkeys((".csv", ".tsv"), CsvTable),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), JsonTable),
    ".parquet": None,
}
# How a file begins that is not the table that its name promises.
BEGINNINGS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save the sheet as CSV UTF-8",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"PAR1": "Parquet: let its name end with .parquet",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the data with `git lfs pull`",
    b"<!": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
}


def open_table(file: Path, fits: Callable[[tuple[str, ...]], bool], encoding: str | None = None) -> Table:
    """How a file is to be read whose header `fits`; `encoding` is that of text that does not show it.

    If no header fits, the table has the columns of the likeliest reading. Raises `UserError` if it is no such file,
    cannot be read, or can be read in two ways.
    """
    kind = ENDINGS[file.suffix.lower()]
    try:
        with open(file, "rb") as content:
            head = content.read(4096)
        what = next((what for beginning, what in BEGINNINGS.items() if head.startswith(beginning)), "")
        if kind is None and (not what or head.startswith(b"PAR1")):
            return parquet_table(file)
        if what:
            raise UserError(f"{file}: not a table, but {what}")
        table = kind(file, encoding=encoding_of(file, encoding))
        with table.text() as lines:
            if "\0" in lines.readline():
                raise UserError(f"{file}: not a text file: is it a CSV or JSON file, unpacked?")
        return csv_table(table, fits) if kind is CsvTable else json_table(table)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    except csv.Error as error:
        raise UserError(f"{file}: line 1 is not CSV: {error}") from error


def rows_of(table: Table, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (``WHERE, row 1: ``, cells) of each row. Raises `UserError` for a row that cannot be read."""
    for number, raw in enumerate(table.rows(), start=1):
        try:
            yield f"{where}, row {number}: ", table.cells(raw)
        except RejectedRow as reason:
            advice = "write it again, in UTF-8, with a cell for each column"
            raise UserError(f"{where}, row {number}: {reason}: {advice}") from reason
