"""Files of `sft/infer.py --input` and `--output`: questions to ask and their answers, as CSV or JSON lines."""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from sft.common.command import UserError, atomic_write
from sft.common.prompts import LETTERS
from sft.inference.assistant import Answer, Question, clean_question


def csv_rows(file: Path, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, question, options) of the rows of a CSV file."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower().removeprefix("choice ") for name in reader.fieldnames or []]
        if header.count("question") != 1 or any(header.count(letter) > 1 for letter in "abcd") or "e" in header:
            raise UserError(f"--input {file} needs the columns question, A, B, C, D, each once; found {header}")
        reader.fieldnames = header
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise UserError(f"{file}, row {number}: more cells than columns: put texts with commas in quotes")
            options = [row.get(letter) or "" for letter in LETTERS.lower()]
            while options and not options[-1].strip():
                options.pop()
            yield f"{file}, row {number}: ", row["question"] or "", options
    except csv.Error as error:
        raise UserError(f"--input {file} is not valid CSV: {error}, at line {reader.line_num}") from error


def json_rows(file: Path, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, question, options) of the lines of a JSON lines file."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}: "
        try:
            row = json.loads(line)
            question, options = row["question"], row.get("choices", [])
            json.dumps([question, options], ensure_ascii=False).encode("utf-8")  # half a surrogate pair is refused
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where}not JSON with question and choices: {error}") from error
        if isinstance(options, dict):
            if list(options) != list(LETTERS[: len(options)]):
                raise UserError(f"{where}name the choices A, B, C, D, in this order")
            options = [*options.values()]
        if not isinstance(options, list) or not all(isinstance(text, str) for text in (question, *options)):
            raise UserError(f"{where}question has to be a text, and choices a list of texts")
        yield where, question, options


def read_questions(file: Path) -> list[Question]:
    """The questions in a CSV or JSON lines file; raises `UserError` for one that cannot be asked."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input {file} cannot be read: {error}") from error
    rows_of = {".csv": csv_rows, ".jsonl": json_rows}.get(file.suffix.lower())
    if not rows_of:
        raise UserError(f"--input {file}: give a .csv or a .jsonl file")
    questions = [clean_question(question, options, where) for where, question, options in rows_of(file, text)]
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
    """Answers as a CSV table: columns A to D are the options, p_A to p_D their probabilities."""
    chances = [f"p_{letter}" for letter in LETTERS]
    columns = ["question", *LETTERS, "answer", "answer_text", "outcome", "text", "reasoning", *chances]
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
