"""What a file is that preparation cannot read, and what to do with it, in the words of a refusal."""

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

from data_prep.formats import FORMATS, Format
from sft.common.command import UserError

# Files of tables that are not read; beside files that are read, preparation names them.
OTHER_ENDINGS = (
    *(".parquet", ".arrow", ".feather", ".tsv", ".ndjson", ".xlsx", ".xls", ".ods"),
    *(".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"),
)
HOW_TO_CONVERT = "open it with `datasets.load_dataset` and give the folder that `save_to_disk` writes"
# How a file begins that is not the text that its name promises.
BEGINNINGS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save the sheet as CSV UTF-8",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"PAR1": f"Parquet: {HOW_TO_CONVERT}",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the data with `git lfs pull`",
    b"<!": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
}
# Keys of JSON files that are no questions.
OTHER_KEYS = {
    ("features", "rows"): "it is a page of the Hub's dataset viewer: download the data set's files instead",
    ("id", "reasoning"): "it holds rationales: name it with --add_reasoning, and keep it outside of the folder",
}
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def check_beginning(file: Path, head: bytes) -> None:
    """Raise `UserError` if `head`, the first bytes of a .csv, .json or .jsonl file, shows that it is another kind."""
    even, odd = set(head[:40:2]), set(head[1:40:2])
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if marked or (odd and even != odd and {0} in (even, odd)):
        encoding = "UTF-32" if b"\0\0" in head[:8] else "UTF-16"
        raise UserError(f"{file}: its text is encoded in {encoding}: save it as UTF-8 (in a spreadsheet, CSV UTF-8)")
    for beginning, what in BEGINNINGS.items():
        if head.startswith(beginning):
            raise UserError(f"{file}: not a text file with questions, but {what}")
    first_line, ends, _ = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    last = first_line.rstrip()[-2:]
    if b"\0" in first_line:
        raise UserError(f"{file}: not a text file: is it a CSV file, unpacked?")
    if file.suffix.lower() != ".csv":
        if first_line.startswith(b"["):
            raise UserError(f"{file}: a JSON array: write one object a line (JSON lines), as `jq -c '.[]'` does")
        if ends and last != b"}," and last.endswith((b"{", b"[", b",")):
            raise UserError(f"{file}: one JSON object on many lines: JSON lines have an object, one question, a line")


def _spelling(name: str) -> str:
    """The letters and digits of a column's name."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _closest(columns: Iterable[str]) -> tuple[Format, dict[str, str]]:
    """The format that has most of its columns here, however they are spelt, and these columns as spelt here."""
    present = {_spelling(name): name for name in columns}
    formats = {
        known: {name: present[_spelling(name)] for name in known.columns if _spelling(name) in present}
        for known in FORMATS.values()
    }
    return max(formats.items(), key=lambda item: len(item[1]) / len(item[0].columns))


def fault_of_header(columns: tuple[str, ...]) -> str:
    """Why columns, or the keys of a JSON object, are of no known format, and what to do."""
    for keys, what in OTHER_KEYS.items():
        if set(keys) <= set(columns):
            return what
    line = ",".join(columns)
    if line.lower().startswith("sep="):
        return "this first line is Excel's: remove it, and separate the cells by commas"
    known, here = _closest(columns)
    for delimiter, name in DELIMITERS.items():
        if len(_closest(line.split(delimiter))[1]) > len(here):
            return f"the cells are separated by {name}: separate them by commas (in a spreadsheet, save as CSV UTF-8)"
    if not here:
        titles = ", ".join(known.title for known in FORMATS.values())
        return (
            f"it has no column of any known format ({titles}). The first line of a CSV file names the columns; a JSON "
            "file has one question a line"
        )
    missing = [
        f"{name} (here {here[name]!a})" if name in here else name for name in known.columns if here.get(name) != name
    ]
    return f"for {known.title} it lacks {', '.join(missing)}: rename or add what is missing"
