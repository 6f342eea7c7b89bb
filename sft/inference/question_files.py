"""Files of `sft/infer.py --input` and `--output`: questions to ask, in a table, and answers, CSV or JSON lines."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft.common.command import UserError, atomic_write
from sft.common.prompts import LETTERS
from sft.common.table_files import ENDINGS, open_table, rows_of
from sft.inference.assistant import Answer, Question, clean_question

# Columns that hold an option: "A", "Choice A" (PMC-VQA), "option_a", "Options A", "opa" (MedMCQA). Others that look
# like one ("option 1", "options") are refused, because the question would be asked without it.
_OPTION = re.compile(r"(?:(?:option|choice|answer|alternative)s?[\s_.:-]*|op)?[(\[]?([a-j])[)\].]?")
_LIKE_AN_OPTION = re.compile(
    r"(?:(?:option|choice|answer|alternative|distractor|response)s?[\s_.:-]*|opt?)[(\[]?(?:[a-z]|\d+)[)\].]?"
    r"|[(\[]?(?:[a-k]|\d)[)\].]?|options?|choices?|alternatives?|distractors?"
)


def option_columns(names: Sequence[str], where: str) -> list[str]:
    """What the columns of a table hold: "question", the letter of an option, "choices" (all options), or "".

    Raises `UserError`, which begins with `where`, if there is no question, one of them stands twice, or one looks
    like an option and is none that is read.
    """
    kinds = []
    for name in (name.strip().lower() for name in names):
        letter = _OPTION.fullmatch(name)
        kinds.append(name if name in ("question", "choices") else letter[1].upper() if letter else "")
        if not kinds[-1] and _LIKE_AN_OPTION.fullmatch(name):
            raise UserError(f"{where} has {name!r}, which looks like an option: name the options A to J")
    listed = ", ".join(names)
    if twice := [kind for kind in dict.fromkeys(kinds) if kind and kinds.count(kind) > 1]:
        raise UserError(
            f"{where} has {twice[0]} more than once: name question, A, B, C, ..., each once; found {listed}"
        )
    if "question" not in kinds:
        raise UserError(f"{where} needs the columns question, A, B, C, ...; found {listed[:200] or 'nothing'}")
    if "choices" in kinds and set(kinds) & set(LETTERS):
        raise UserError(f"{where} has options in choices and in columns of their own: give them once; found {listed}")
    return kinds


def options_in(row: dict[str, Any], where: str) -> list[str]:
    """The options of a row: the list or object in `choices`, or the columns A, B, C, ... up to the last one filled.

    Raises `UserError`, which begins with `where`, if they are no texts, or letters are not A, B, C, ... in this order.
    """
    options = row.get("choices", {letter: row.get(letter, "") for letter in LETTERS})
    if isinstance(options, dict):
        if list(options) != list(LETTERS[: len(options)]):
            raise UserError(f"{where}name the choices A, B, C, ..., in this order")
        options = [*options.values()]
        while options and options[-1] in ("", None):
            options.pop()
    if not isinstance(options, list) or not all(isinstance(text, str) for text in (row["question"], *options)):
        raise UserError(f"{where}question has to be a text, and choices a list of texts")
    return options


def read_questions(file: Path, encoding: str | None = None) -> list[Question]:
    """The questions in a table; `encoding` is that of text that does not show it.

    Raises `UserError` for a file that is no table of questions, and for a question that cannot be asked.
    """
    where, questions = f"--input {file}", []
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"{where}: give a file that ends with one of {', '.join(ENDINGS)}")
    table = open_table(file, lambda names: "question" in (name.strip().lower() for name in names), encoding)
    kinds_of_first = option_columns(table.columns, where)
    named = list(zip(table.columns, kinds_of_first, strict=True))
    read, ignored = (
        ", ".join(name for name, kind in named if name and bool(kind) == taken) for taken in (True, False)
    )
    print(f"{where}: {table.described()}; columns read: {read}" + (f"; ignored: {ignored}" if ignored else ""))
    for row_where, cells in rows_of(table, where):
        # Objects of JSON need not have the same keys.
        kinds = kinds_of_first if (*cells,) == table.columns else option_columns([*cells], row_where.rstrip(": "))
        row = dict(zip(kinds, cells.values(), strict=True))
        questions.append(clean_question(row["question"], options_in(row, row_where), row_where))
    if not questions:
        raise UserError(f"{where} holds no question")
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
