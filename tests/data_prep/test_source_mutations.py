"""A thousand files with one fault each: what is accepted is what its cells say, the rest is refused in one line."""

import argparse
import ast
import csv
import io
import json
import random
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from data_prep import worker
from data_prep.formats import FORMATS
from data_prep.prepare import with_answers
from data_prep.questions import Question
from data_prep.questions import comparable as comparable_of
from data_prep.reading import chunks, read_chunk
from data_prep.sample_rows import V1_HEADER
from data_prep.sources import find_sources
from sft.common.command import UserError
from sft.common.prompts import clean_choice, clean_text

LETTERS = "ABCD"  # of these formats
V2_HEADER = FORMATS["pmc_vqa_v2"].columns
ROWS = 12
MUTATIONS = 260  # of each format
NAMES = {"pmc_vqa_v1": "train.csv", "pmc_vqa_v2": "train_2.csv", "medmcqa": "train.jsonl", "medqa": "train.jsonl"}
MEDMCQA_KEYS = ("question", "opa", "opb", "opc", "opd", "cop")

# Cells that a row may get instead of its own.
CELLS = [
    *(
        "",
        " ",
        "A",
        "b",
        "(C)",
        "E",
        "0",
        "4",
        "2.0",
        "-1",
        "None",
        "N/A",
        '"',
        "'",
        '\\"',
        "a,b",
        "a;b",
        "x\ny",
        "\0",
    ),
    *("é", "\ufeff", "µ", "<think>", "a</think>b", "B: Colour 3", "=1+1", "A: ", "\ud800", "PMC7_F1.jpg", "{}", "[]"),
]
VALUES = [None, True, 0, 4, 2.0, 2.5, -1, [], {}, ["A"], {"A": "x"}, float("nan"), 10**30, *CELLS]
BYTES = [
    b"\0",
    b"\xff",
    b"\xe9",
    b'"',
    b"'",
    b",",
    b";",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"\\",
    b"{",
    b"}",
    b":",
    b" ",
    b"A",
]


def valid(name: str) -> list:
    """The rows of a small valid file: lists of cells with the header first, or objects."""
    rows = []
    for i in range(ROWS):
        gold, options = i % 4, [f"Colour {i * 4 + k}" for k in range(4)]
        options[(gold + 1) % 4] = f'A "dark", {i}' if i % 3 == 0 else f"µ {i}"
        question = f"Which colour has sample {i}?" if i % 4 else f"Which colour,\nif any, has sample {i}?"
        printed = [f" {letter}: {option} " for letter, option in zip(LETTERS, options, strict=True)]
        if name == "pmc_vqa_v1":
            rows.append([f"PMC{i}_F1.jpg", question, options[gold], *printed, LETTERS[gold]])
        elif name == "pmc_vqa_v2":
            rows.append([str(i), f"PMC{i}_F1_1.jpg", f"Caption {i}", question, *options, LETTERS[gold], "train"])
        elif name == "medmcqa":
            rows.append({"id": i, **dict(zip(MEDMCQA_KEYS, [question, *options, gold + 1], strict=True)), "exp": None})
        else:
            options = dict(zip(LETTERS, options, strict=True))
            answer = {"answer": options[LETTERS[gold]], "answer_idx": LETTERS[gold]}
            rows.append({"question": question, "options": options, **answer})
    return [list({"pmc_vqa_v1": V1_HEADER, "pmc_vqa_v2": V2_HEADER}[name]), *rows] if "pmc" in name else rows


def written(rows: list, **dialect: object) -> str:
    """The text of a file with these rows."""
    if isinstance(rows[0], dict):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", **dialect).writerows(rows)
    return text.getvalue()


def encoded(text: str, encoding: str = "utf-8") -> bytes:
    return text.encode(encoding, "surrogatepass" if "utf" in encoding else "replace")


# Each mutation takes the valid rows and a random generator; it returns the bytes of a file, and the numbers of the
# valid rows that it leaves alone.
ALL = set(range(1, ROWS + 1))


def left_alone(rows: list, number: int, ends: bool = True) -> set[int]:
    """The numbers of the rows beside `rows[number]`; a line that lost its end takes the next one with it."""
    if not isinstance(rows[0], dict):
        if number == 0:  # the header tells what every row means
            return set()
        number -= 1
    return ALL - {number + 1} - (set() if ends else {number + 2})


def change_bytes(rows, rng):
    """Insert, delete or replace one to three bytes of a row."""
    lines = [encoded(written([row])) for row in rows]
    number = rng.randrange(len(lines))
    line = bytearray(lines[number])
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(line))
        line[place : place + rng.randint(0, 1)] = rng.choice([*BYTES, b""])
    lines[number] = bytes(line)
    return b"".join(lines), left_alone(rows, number, line.endswith(b"\n"))


def change_cell(rows, rng):
    """Put another value into a cell, or exchange two cells."""
    number = rng.randrange(len(rows))
    row = rows[number]
    keys = list(row) if isinstance(row, dict) else range(len(row))
    one, other = rng.sample(list(keys), 2)
    if rng.random() < 0.2:
        row[one], row[other] = row[other], row[one]
    elif isinstance(row, dict):
        row[one] = rng.choice(VALUES)
        if one == "options" and rng.random() < 0.5:
            row[one] = {letter: rng.choice(VALUES) for letter in rng.choice(["ABCD", "abcd", "ABCDE", "ABC"])}
    else:
        row[one] = rng.choice(CELLS)
    return encoded(written(rows)), left_alone(rows, number)


def change_column(rows, rng):
    """Change a column in every row: its name, its values, or both."""
    if isinstance(rows[0], dict):
        key = rng.choice(list(rows[0]))
        new = rng.choice([key.upper(), f" {key}", f"{key}_text", None, "question"])
        change = rng.choice([lambda x: x, str, lambda x: [x], lambda x: x - 1 if isinstance(x, int) else x])
        pairs = [[(new if k == key else k, change(v) if k == key else v) for k, v in row.items()] for row in rows]
        # Written by hand, so that a key can stand twice.
        lines = [", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in row if k is not None) for row in pairs]
        return encoded("".join(f"{{{line}}}\n" for line in lines)), set()
    place, other = rng.sample(range(len(rows[0])), 2)
    way = rng.choice(["name", "drop", "twice", "empty", "lower", "underscores", "exchange", "values"])
    for row in rows:
        if way == "drop":
            del row[place]
        elif way in ("twice", "empty"):
            row.append(row[place] if way == "twice" else "")
        elif way == "values" and row is not rows[0]:
            row[place] = row[other]
    header = rows[0]
    if way == "name":
        header[place] = rng.choice(["", "Answer", f" {header[place]} ", header[place].upper(), "é"])
    if way == "exchange":
        header[place], header[other] = header[other], header[place]
    if way in ("lower", "underscores"):
        rows[0] = [name.lower() if way == "lower" else name.replace(" ", "_") for name in header]
    return encoded(written(rows)), set()


def change_rows(rows, rng):
    """Insert an empty, a short or a foreign row, or cut the file."""
    lines = [written([row]) for row in rows]
    number = rng.randint(1, len(lines) - 1)
    foreign = ["\n", " \n", "x\n", "{}\n", "[]\n", "null\n", '"a"\n', "1\n", "," * (len(rows[0]) - 1) + "\n", lines[0]]
    if rng.random() < 0.7:
        return encoded("".join([*lines[:number], rng.choice(foreign), *lines[number:]])), ALL
    before = number if isinstance(rows[0], dict) else number - 1
    return encoded("".join([*lines[:number], lines[number][: rng.randrange(len(lines[number]))]])), set(
        range(1, before + 1)
    )


def change_shape(rows, rng):
    """Write the same rows in another encoding or notation: all are read, or the file is refused."""
    text = written(rows)
    encodings = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "utf-8-sig", "utf-8"]
    if rng.random() < 0.5:
        return encoded(text, rng.choice(encodings)), ALL
    if isinstance(rows[0], dict):
        shapes = [json.dumps(rows), json.dumps(rows, indent=1), json.dumps(dict(enumerate(rows)), indent=1)]
        shapes += [json.dumps({"data": rows}), json.dumps({key: [row[key] for row in rows] for key in rows[0]})]
        shapes += [json.dumps({"features": [], "rows": [{"row": row} for row in rows]}), text.replace("\n", ",\n")]
        shapes += [json.dumps({key: {i: row[key] for i, row in enumerate(rows)} for key in rows[0]})]
        return encoded(rng.choice([*shapes, text.replace("\n", "\r\n"), text.replace("\n", "\n\n")])), ALL
    if rng.random() < 0.3:
        return encoded("sep=;\n" + written(rows, delimiter=";")), ALL
    ways = [{"delimiter": sign} for sign in ";\t|"] + [{"quoting": csv.QUOTE_ALL}]
    ways += [{"quoting": csv.QUOTE_ALL, "doublequote": False, "escapechar": "\\"}]
    return encoded(written(rows, **rng.choice(ways)).replace("\n", rng.choice(["\n", "\r\n"]))), ALL


def read(file: Path) -> dict[int, Question | str]:
    """The question, or the reason of its rejection, of each row. Raises `UserError`."""
    (source,) = with_answers(find_sources(str(file), None, None))
    became: dict[int, Question | str] = {}
    for chunk in chunks([source]):
        batch, rejected = read_chunk(chunk)
        became |= {row: reason for _, row, reason, _ in rejected}
        became |= {row["row"]: Question(**{k: row[k] for k in Question._fields}) for row in batch.to_pylist()}
    return became


def spelling(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def each_name(pairs: list[tuple], names: dict[str, str]) -> dict:
    """Cells by name, in the format's spelling; a name that stands twice says nothing."""
    pairs = [(names.get(name, name), cell) for name, cell in pairs]
    counts = Counter(name for name, _ in pairs)
    return {name: cell if counts[name] == 1 else None for name, cell in pairs}


def names_of(header: list[str], name: str) -> dict[str, str]:
    """How the format calls the columns that it has in another spelling."""
    columns = FORMATS[name].columns
    own = {spelling(column): column for column in columns}
    exact = set(columns) <= set(header)
    return {} if exact else {column: own.get(spelling(column), column) for column in header if column not in columns}


def cells_by_number(file: Path, name: str) -> dict[int, dict]:
    """The cells of every row as another reader finds them."""
    text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    if file.suffix == ".csv":
        header, *rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(row)]
        header = [column.strip() for column in header]
        names = names_of(header, name)
        return {i: each_name(list(zip(header, row, strict=False)), names) for i, row in enumerate(rows, 1)}
    lines = [line for line in text.split("\n") if line.strip()]
    names = names_of([*json.loads(lines[0])], name)
    found = {}
    for i, line in enumerate(lines, 1):
        try:
            found[i] = json.loads(line, object_pairs_hook=lambda pairs: each_name(pairs, names))
        except ValueError:
            found[i] = None
    return found


def text_of(value) -> str:
    """A cell as text; a list of texts is one text."""
    if isinstance(value, list):
        return " ".join(map(text_of, value))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def says(name: str, cells: dict, question: Question, first: int) -> bool:
    """Do the cells of a row say this question, these options and this answer? Numbers count from `first`."""
    known = FORMATS[name]
    if name == "medqa":
        options = cells["options"] if not isinstance(cells["options"], str) else ast.literal_eval(cells["options"])
        texts = [*options.values()] if isinstance(options, dict) else options
    else:
        texts = [cells[column] for column in known.options]
    comparable = partial(comparable_of, count=len(texts))
    # Without printed letters, a letter in front of one option is its text.
    choices = [clean_choice(text_of(text)) if known.letters else (None, clean_text(text_of(text))) for text in texts]
    same = question.choices == [text for _, text in choices]
    same &= question.question == clean_text(text_of(cells[known.question[0]]))
    label, (printed, right) = clean_text(text_of(cells[known.answer])), choices[question.gold]
    letter = re.match(r"[\W_]*(?:(?:option|choice|answer)[\W_]*)?([A-D])\b", label, re.IGNORECASE)
    marked = bool(letter) and letter[1].upper() in (LETTERS[question.gold], printed)
    marked |= comparable(label) == comparable(right) or label in map(
        str, (question.gold + first, question.gold + first + 0.0)
    )
    # A column of answers that are texts says all.
    if known.answer_text and known.answer_text in cells and comparable(label) != comparable(right):
        same &= comparable(clean_choice(text_of(cells[known.answer_text]))[1]) == comparable(right)
    return same and marked


@pytest.fixture(scope="module", autouse=True)
def options():
    worker.start(argparse.Namespace(seed=0, pretokenize=None, tokenizer=None, keep_for_evaluation=False), None)


CHANGES = [change_bytes, change_cell, change_column, change_rows, change_shape]


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_read_as_its_cells_say_or_refused_in_one_line(name, tmp_path):
    file = tmp_path / NAMES[name]
    file.write_bytes(encoded(written(valid(name))))
    before = read(file)
    assert len(before) == ROWS
    assert all(isinstance(question, Question) for question in before.values())
    ends = Counter()
    for number in range(MUTATIONS):
        rng = random.Random(f"{name} {number}")  # noqa: S311
        change = CHANGES[number % len(CHANGES)]
        content, kept = change(valid(name), rng)
        file.write_bytes(content)
        where = f"{change.__name__} {number} of {name}: {content[:2000]!r}"
        try:
            became = read(file)
        except UserError as refusal:
            assert file.name in str(refusal), where
            assert "\n" not in str(refusal), where
            ends["refused"] += 1
            continue
        ends["accepted"] += 1
        if change is not change_shape:
            found = cells_by_number(file, name)
            assert len(found) == len(became), where
            first = (
                0
                if any(
                    isinstance(cells, dict) and text_of(cells.get("cop", 1)) in ("0", "0.0")
                    for cells in found.values()
                )
                else 1
            )
            for row, question in became.items():
                if isinstance(question, Question):
                    assert says(name, found[row], question, first), f"row {row}, {question}, {where}"
        questions = [question[3:] for question in became.values() if isinstance(question, Question)]
        for row in kept:
            assert before[row][3:] in questions, f"row {row} was not touched, {where}"
    print(name, dict(ends))
    assert min(ends["accepted"], ends["refused"]) > MUTATIONS / 10
