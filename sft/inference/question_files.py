"""Files of `sft/infer.py --input` and `--output`: questions to ask and their answers, as CSV or JSON lines."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft.common.command import UserError, atomic_write, first_line
from sft.common.prompts import LETTERS
from sft.inference.assistant import Answer, Question, clean_question

# Columns that hold an option: "A", "Choice A" (PMC-VQA), "option_a", "Options A", "opa" (MedMCQA). Others that look
# like one ("E", "option 1", "choices") are refused, because the question would be asked without it.
_OPTION = re.compile(r"(?:(?:option|choice|answer|alternative)s?[\s_.:-]*|op)?[(\[]?([a-d])[)\].]?")
_LIKE_AN_OPTION = re.compile(
    r"(?:(?:option|choice|answer|alternative|distractor|response)s?[\s_.:-]*|opt?)?[(\[]?(?:[a-h]|\d)[)\].]?"
    r"|options?|choices?|alternatives?|distractors?"
)


def option_columns(names: Sequence[str], where: str) -> list[str]:
    """What the columns of a table, or the keys of an object, hold: "question", the letter of an option, or "".

    Raises `UserError`, which begins with `where`, if there is no question, one of them stands twice, or one looks
    like an option and is none that is read.
    """
    kinds = []
    for name in (name.strip().lower() for name in names):
        letter = _OPTION.fullmatch(name)
        kinds.append("question" if name == "question" else letter[1].upper() if letter else "")
        if not kinds[-1] and _LIKE_AN_OPTION.fullmatch(name):
            raise UserError(f"{where} has {name!r}, which looks like an option: name the options A, B, C, D")
    listed = ", ".join(names)
    if twice := [kind for kind in dict.fromkeys(kinds) if kind and kinds.count(kind) > 1]:
        raise UserError(f"{where} has {twice[0]} more than once: name question, A, B, C, D, each once; found {listed}")
    if "question" not in kinds:
        raise UserError(f"{where} needs the columns question, A, B, C, D; found {listed[:200] or 'nothing'}")
    return kinds


def utf8_text(where: str, file: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; a `UserError` begins with `where`."""
    try:
        content = file.read_bytes()
        if b"\0" in content:
            raise UserError(f"{where} is UTF-16 text, or no text: save it as UTF-8 (in Excel: CSV UTF-8)")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}, line {line}: not UTF-8: save it as UTF-8 (in Excel: CSV UTF-8)") from error
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from error


def csv_cells(where: str, text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (where, cells) of the header and of each row, all with as many cells; empty lines are left out.

    Raises `UserError`, which begins with `where`, for text with other separators, or a row of another length.
    """
    first = text.partition("\n")[0]
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if mark in first and "," not in first:
            raise UserError(f"{where} is separated by {name}: save it with commas (CSV, UTF-8)")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        yield where, header
        for number, cells in enumerate((row for row in reader if row), start=1):
            if len(cells) > len(header):
                raise UserError(f"{where}, row {number}: more cells than columns: put texts with commas in quotes")
            if len(cells) < len(header):
                advice = "write a comma for each empty cell"
                raise UserError(f"{where}, row {number}: {len(cells)} cells under {len(header)} columns: {advice}")
            yield f"{where}, row {number}: ", cells
    except csv.Error as error:
        raise UserError(f"{where} is not valid CSV: {error}, at line {reader.line_num}") from error


def csv_rows(where: str, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, question, options) of the rows of a CSV file."""
    rows = csv_cells(where, text)
    header = next(rows)[1]
    kinds = option_columns(header, where)
    if ignored := [name for name, kind in zip(header, kinds, strict=True) if not kind and name.strip()]:
        read = [name for name, kind in zip(header, kinds, strict=True) if kind]
        print(f"{where}: columns read: {', '.join(read)}; ignored: {', '.join(ignored)}")
    for row_where, cells in rows:
        row = dict(zip(kinds, cells, strict=True))
        options = [row.get(letter, "") for letter in LETTERS]
        while options and not options[-1].strip():
            options.pop()
        yield row_where, row["question"], options


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all differ; of equal keys, Python would take the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value


def json_rows(where: str, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, question, options) of the lines of a JSON lines file."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        line_where = f"{where}, line {number}: "
        try:
            row = json.loads(line, object_pairs_hook=object_of)
            if not isinstance(row, dict):
                raise ValueError("write one JSON object a line")
            question, options = row["question"], row.get("choices", [])
            json.dumps([question, options], ensure_ascii=False).encode("utf-8")  # half a surrogate pair is refused
        except (ValueError, KeyError, RecursionError) as error:
            raise UserError(f"{line_where}not JSON with question and choices: {first_line(error)}") from error
        if named := [key for key in row if key != "choices" and _LIKE_AN_OPTION.fullmatch(key.strip().lower())]:
            raise UserError(f"{line_where}{named[0]!r} looks like options: give them as the list choices")
        if isinstance(options, dict):
            if list(options) != list(LETTERS[: len(options)]):
                raise UserError(f"{line_where}name the choices A, B, C, D, in this order")
            options = [*options.values()]
        if not isinstance(options, list) or not all(isinstance(text, str) for text in (question, *options)):
            raise UserError(f"{line_where}question has to be a text, and choices a list of texts")
        yield line_where, question, options


def read_questions(file: Path) -> list[Question]:
    """The questions in a CSV or JSON lines file; raises `UserError` for one that cannot be asked."""
    rows_of = {".csv": csv_rows, ".jsonl": json_rows}.get(file.suffix.lower())
    if not rows_of:
        raise UserError(f"--input {file}: give a .csv or a .jsonl file")
    where = f"--input {file}"
    rows = rows_of(where, utf8_text(where, file))
    questions = [clean_question(question, options, row_where) for row_where, question, options in rows]
    if not questions:
        raise UserError(f"--input {file} holds no question")
    return questions


def check_output(output: Path, overwrite: bool) -> None:
    """Make the folder of the output file; raise `UserError` if the file has another ending, exists or is refused."""
    if output.suffix.lower() not in WRITERS:
        raise UserError(f"--output {output}: name a .csv or a .jsonl file")
    if output.exists() and not (overwrite and output.is_file() and not output.is_symlink()):
        advice = "pass --overwrite to replace it, or " if output.is_file() else ""
        raise UserError(f"--output {output} exists already: {advice}name another file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error


def as_json_lines(answers: Sequence[Answer]) -> str:
    return "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)


def as_csv(answers: Sequence[Answer]) -> str:
    """Answers as a CSV table: columns A to D, or more, are the options, p_A and so on their probabilities."""
    letters = LETTERS[: max([4, *(len(answer.choices) for answer in answers)])]
    chances = [f"p_{letter}" for letter in letters]
    columns = ["question", *letters, "answer", "answer_text", "outcome", "text", "reasoning", *chances]
    table = io.StringIO()
    writer = csv.DictWriter(table, [*columns, "temperature", "tokens", "seconds"], extrasaction="ignore")
    writer.writeheader()
    for answer in answers:
        row = asdict(answer) | answer.choices | {f"p_{key}": value for key, value in answer.probabilities.items()}
        for key in ("text", "reasoning"):
            # A spreadsheet would take such a text, a list with dashes too, for a formula.
            if row[key].startswith(("=", "+", "-", "@")):
                row[key] = f"'{row[key]}"
        writer.writerow(row)
    return table.getvalue()


WRITERS = {".csv": as_csv, ".jsonl": as_json_lines}


def write_answers(answers: Sequence[Answer], output: Path) -> None:
    """Write answers atomically, in the form that the name ends with; a full disk raises `UserError`."""
    try:
        with atomic_write(output) as temporary:
            # Without a byte order mark, which programs would read as a part of the first column's name.
            temporary.write_text(WRITERS[output.suffix.lower()](answers), encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    print(f"Wrote {len(answers)} answers to {output}")
