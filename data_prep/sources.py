"""Where questions come from: CSV and JSON-lines files, saved `datasets` folders, PMC-VQA on the Hub.

Faults of a file stop the preparation with a `UserError`; faults of one row raise `RejectedRow` in `cells_of`.
"""

import contextlib
import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from data_prep.diagnosis import HOW_TO_CONVERT, OTHER_ENDINGS, check_beginning, fault_of_header
from data_prep.formats import FORMATS, Format, match, split_named
from data_prep.questions import JSON, RejectedRow, as_text, sound
from sft.common.command import UserError, first_line, sha256
from sft.common.hub import is_id, loading_errors, unreached

# The published files of each version; both lie in one repository, and their headers differ.
HUB_FILES = {
    "pmc_vqa_v1": ("train.csv", "test.csv", "test_clean.csv"),
    "pmc_vqa_v2": ("train_2.csv", "test_2.csv"),
}
FILE_ENDINGS = (".csv", ".jsonl", ".json")
# How files are opened: bytes that are not UTF-8 become surrogates, which `sound` refuses, in a row as in a header.
TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
csv.field_size_limit(1 << 24)  # characters of one cell: beyond any caption


@dataclass(frozen=True)
class Source:
    """One file, or one split of a saved data set."""

    path: Path  # of the file, or of the saved folder
    name: str  # file name, or split name
    stem: str  # what the ids of its rows begin with
    kind: str  # csv, jsonl or saved
    columns: tuple[str, ...]
    format: Format
    split: str  # train, dev, test, test_clean; "" where the name does not tell
    answers: str = ""  # how they are read (data_prep/answers.py), once the column of answers was judged

    def sha256(self) -> str:
        """SHA-256 of the bytes that are read, in hexadecimal."""
        if self.kind != "saved":
            return sha256(self.path)
        folder = self.path / self.name
        return sha256(*sorted((folder if folder.is_dir() else self.path).glob("*.arrow")))

    def rows(self) -> Iterator[Any]:
        """The rows as they come, to be read by `cells_of`. Raises `UserError` where the file breaks off."""
        return {"csv": _csv_rows, "jsonl": _json_lines, "saved": _saved_rows}[self.kind](self)

    def described(self) -> str:
        return self.kind

    def readable(self, only: set[str] | None = None) -> Iterator[Mapping[str, Any]]:
        for raw in self.rows():
            with contextlib.suppress(RejectedRow):
                yield cells_of(raw, self)


def find_sources(place: str, wanted: Format | None, revision: str | None) -> list[Source]:
    """The sources at `place`: a file, a folder of files, a saved `datasets` folder, or an id on the Hub.

    They are of the format `wanted`, or of any known one. Prints which others are there. Raises `UserError` if nothing
    is there, for a file of no known format, if none has the wanted format, for two files of one name, or for a Hub id
    without version and commit.
    """
    path = Path(place)
    if not path.exists():
        every = [_file_source(file, wanted) for file in _download(place, wanted, revision)]
    elif revision:
        raise UserError(f"--revision {revision} is for a data set on the Hub, and {place} is here on the disk")
    elif path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        every = _saved_sources(path, wanted)
    else:
        if (path / "report.json").is_file() and (path / "rejected.csv").is_file():
            raise UserError(f"--dataset_path {path} is prepared already: give the folder that it was made from")
        every = list(_sources_in(path, wanted))
    sources = [source for source in every if wanted in (None, source.format)]
    if not sources:
        there = ", ".join(f"{source.name} ({source.format.title})" for source in every)
        raise UserError(f"--format {wanted.name}: {path} holds no {wanted.title}, but {there}")
    for first, second in combinations(sources, 2):
        if first.stem == second.stem:
            raise UserError(f"{first.name} and {second.name} would give their rows the same ids: rename one of them")
    for source in every:
        if source not in sources:
            print(f"Left out by --format: {source.name}, {source.format.title}")
    return sources


def _sources_in(path: Path, wanted: Format | None) -> Iterator[Source]:
    """The sources of a folder's files, or of one file. Prints which tables and subfolders are not read."""
    visible = [file for file in sorted(path.iterdir()) if file.name[0] != "."] if path.is_dir() else [path]
    files = [file for file in visible if file.suffix.lower() in FILE_ENDINGS]
    if not files:
        there = f", but {', '.join(file.name for file in visible[:5])}" if visible else ""
        there += f" (a table that is not read: {HOW_TO_CONVERT})" if any(map(_other_table, visible)) else ""
        raise UserError(
            f"--dataset_path {path} holds no .csv or .jsonl file{there}: give the folder with train.csv, test.csv"
        )
    if others := [file.name + "/" * file.is_dir() for file in visible if _other_table(file) or file.is_dir()]:
        print(f"Not read: {', '.join(others)}. To read a table, {HOW_TO_CONVERT}")
    for file in files:
        try:
            yield _file_source(file, wanted)
        except UserError as error:
            if len(files) == 1:
                raise
            raise UserError(f"{error}. If {file.name} holds no questions, move it out of the folder") from error


def _other_table(file: Path) -> bool:
    return file.suffix.lower() in OTHER_ENDINGS and file.is_file()


def _download(place: str, wanted: Format | None, revision: str | None) -> list[Path]:
    """The files of a PMC-VQA version on the Hub, at one commit, in the Hub's cache."""
    if not is_id(place):
        raise UserError(
            f"--dataset_path {place} does not exist: give the folder that holds train.csv and test.csv, or one file"
        )
    if not wanted or wanted.name not in HUB_FILES or not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise UserError(
            f"--dataset_path {place} is not a folder here. As a data set on the Hub it needs its version, --format "
            f"{' or '.join(HUB_FILES)}, and --revision with the 40 digits of a commit, so that it stays the same data"
        )
    from huggingface_hub import hf_hub_download

    unreached()
    files = []
    for name in HUB_FILES[wanted.name]:
        with loading_errors(f"{name} of {place} cannot be had from the Hub at {revision}"):
            files.append(Path(hf_hub_download(place, name, repo_type="dataset", revision=revision)))
    return files


def _source(
    path: Path, name: str, stem: str, kind: str, columns: tuple[str, ...], where: str, wanted: Format | None
) -> Source:
    """The source with the format of its columns. Raises `UserError` if they are of no known format."""
    try:
        sound("".join(columns))
    except RejectedRow:
        raise UserError(f"{where}: the header is not UTF-8 text: save the file as UTF-8") from None
    matched = match(columns, [wanted] if wanted and FORMATS.get(wanted.name) != wanted else FORMATS.values())
    if matched is None:
        header = ascii(",".join(columns))[1:-1][:200] or "an empty file or first line"
        raise UserError(f"{where}: header of no known format: found {header}; {fault_of_header(columns)}")
    known, columns = matched
    if twice := [name for name in known.columns if columns.count(name) > 1]:
        raise UserError(f"{where}: two columns are called {twice[0]}: rename or remove the wrong one")
    return Source(path, name, stem, kind, columns, known, split_named(stem))


def _file_source(file: Path, wanted: Format | None) -> Source:
    kind = "csv" if file.suffix.lower() == ".csv" else "jsonl"
    try:
        with open(file, "rb") as content:
            check_beginning(file, content.read(4096))
        with open(file, **TEXT, newline="") as lines:
            if kind == "csv":
                columns = [name.strip() for name in next(csv.reader(lines), [])]
            else:
                columns = json.loads(next((line for line in lines if not line.isspace()), "{}"))
                if not isinstance(columns, dict):
                    raise ValueError("it has no keys")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (csv.Error, ValueError, RecursionError) as error:
        raise UserError(f"{file}: line 1 is not {'CSV' if kind == 'csv' else 'a JSON object'}: {error}") from error
    return _source(file, file.name, file.stem, kind, tuple(columns), str(file), wanted)


def _saved_sources(path: Path, wanted: Format | None) -> list[Source]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{path}: not a complete saved data set, or an empty split: {first_line(error)}") from error
    splits = saved if isinstance(saved, DatasetDict) else {split_named(path.name) or "train": saved}
    return [
        _source(path, name, name, "saved", tuple(rows.column_names), f"{path}, split {name}", wanted)
        for name, rows in splits.items()
    ]


def _csv_rows(source: Source) -> Iterator[list[str]]:
    with open(source.path, **TEXT, newline="") as lines:
        rows = csv.reader(lines, strict=True)
        next(rows)
        cells, line = source.columns, rows.line_num
        try:
            for cells in rows:
                if rows.line_num > line + 1 and _holds_rows(cells):
                    raise UserError(
                        f"{source.path}: the row from line {line + 1} to {rows.line_num} has a cell that "
                        "contains further rows: a quote is opened there and closed much later"
                    )
                line = rows.line_num
                if any(cells):  # not an empty line, nor one of commas alone
                    yield cells
        except csv.Error as error:
            raise UserError(f"{source.path}: line {rows.line_num}: {_csv_fault(error, line + 1)}") from error
    if cells and (len(cells) < len(source.columns) or (source.columns[-1] and not cells[-1])):
        with open(source.path, "rb") as content:
            content.seek(-1, 2)
            if content.read() not in b"\r\n":
                raise UserError(f"{source.path}: line {line}: the file ends inside a row: is the download complete?")


def _csv_fault(error: csv.Error, first: int) -> str:
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


def _holds_rows(cells: list[str]) -> bool:
    """Is an inner line of a cell a row of its own: as many cells, the outer two (path, label) without white space?"""
    lines = [line for cell in cells for line in cell.splitlines()[1:-1]]
    rows = [row for line in lines for row in csv.reader([line]) if len(row) == len(cells)]
    return any(len(row[0].split()) < 2 and len(row[-1].split()) < 2 for row in rows)


def _json_lines(source: Source) -> Iterator[str]:
    number, line = 0, "\n"
    with open(source.path, **TEXT, newline="\n") as lines:
        for number, line in enumerate(lines, start=1):  # noqa: B007
            if not line.isspace():
                yield line
    if not line.endswith("\n") and not line.rstrip().endswith("}"):
        raise UserError(f"{source.path}: line {number}: the file ends inside a row: is the download complete?")


def _saved_rows(source: Source, only: set[str] | None = None) -> Iterator[dict[str, Any]]:
    from datasets import ClassLabel, Dataset, Value, load_from_disk

    saved = load_from_disk(str(source.path))
    rows = saved if isinstance(saved, Dataset) else saved[source.name]
    # Images stay where they are.
    wanted = {name for name, kind in rows.features.items() if isinstance(kind, Value | ClassLabel)}
    wanted = only or wanted | set(source.format.columns) | set(source.format.optional)
    classes = {name: rows.features[name] for name in wanted if isinstance(rows.features[name], ClassLabel)}
    for row in rows.select_columns([name for name in rows.column_names if name in wanted]):
        for name, kind in classes.items():
            known = row[name] is not None and 0 <= row[name] < kind.num_classes
            row[name] = kind.int2str(row[name]) if known else None
        yield row


def cells_of(raw: Any, source: Source) -> Mapping[str, Any]:
    """The cells of one row by column, every one a string.

    Raises `RejectedRow` for another number of cells than the header has, unsound text, or a line that is not a JSON
    object of the format.
    """
    if source.kind == "csv":
        sound("".join(raw))
        if len(raw) != len(source.columns):
            raise RejectedRow(f"row has too {'few' if len(raw) < len(source.columns) else 'many'} cells")
        return dict(zip(source.columns, raw, strict=True))
    columns = source.format.columns
    if source.kind == "jsonl":
        try:
            raw = JSON.decode(sound(raw))
        except (ValueError, RecursionError):
            raise RejectedRow("line is not JSON") from None
        if not isinstance(raw, dict) or not all(column in raw for column in columns):
            raise RejectedRow("line lacks a column of its format")
    return as_text(raw)
