"""Files of questions that a user asks with `sft/infer.py --input`: CSV or JSON lines."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from sft.common.command import UserError
from sft.common.prompts import LETTERS


def csv_rows(file: Path, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, question, options) of the rows of a CSV file."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower().removeprefix("choice ") for name in next(reader, [])]
        known = [name for name in header if name in ("question", *LETTERS.lower())]
        if "question" not in known or len(set(known)) < len(known) or "e" in header:
            raise UserError(f"--input {file} needs the columns question, A, B, C, D, each once; found {header}")
        for number, cells in enumerate(filter(None, reader), start=1):
            if len(cells) > len(header):
                raise UserError(f"{file}, row {number}: more cells than columns: put texts with commas in quotes")
            row = dict(zip(header, cells, strict=False))
            options = [row.get(letter, "") for letter in LETTERS.lower()]
            while options and not options[-1].strip():
                options.pop()
            yield f"{file}, row {number}: ", row.get("question", ""), options
    except csv.Error as error:
        raise UserError(f"--input {file} is not sound CSV: {error}, at line {reader.line_num}") from error


def json_rows(file: Path, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, question, options) of the lines of a JSON lines file."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                question, options = row["question"], row.get("choices", [])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{file}, line {number}: not JSON with question and choices: {error}") from error
            if isinstance(options, dict):
                if list(options) != list(LETTERS[: len(options)]):
                    raise UserError(f"{file}, line {number}: name the choices A, B, C, D, in this order")
                options = [*options.values()]
            if not isinstance(options, list) or not all(isinstance(text, str) for text in (question, *options)):
                raise UserError(f"{file}, line {number}: question has to be a text, and choices a list of texts")
            try:
                "".join((question, *options)).encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(f"{file}, line {number}: not text: {error}") from error
            yield f"{file}, line {number}: ", question, options


def read_questions(file: Path) -> list[tuple[str, list[str]]]:
    """(question, options) of each row of a CSV or JSON lines file, as they are asked.

    Raises:
        UserError: no such file, another kind of file, a row that is none, or a question that cannot be asked.
    """
    from sft.inference.assistant import as_asked

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input {file} cannot be read: {error}") from error
    kinds = {".csv": csv_rows, ".jsonl": json_rows}
    if file.suffix.lower() not in kinds:
        raise UserError(f"--input {file}: give a .csv or a .jsonl file")
    found = [as_asked(question, options, where) for where, question, options in kinds[file.suffix.lower()](file, text)]
    if not found:
        raise UserError(f"--input {file} holds no question")
    return found
