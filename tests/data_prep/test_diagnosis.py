"""Files that cannot be read: each is refused as what it is, with what to do."""

import json

import pytest

from data_prep.formats import V1_HEADER, V2_HEADER
from data_prep.sources import find_sources
from sft.common.command import UserError

HEADER = ",".join(V1_HEADER) + "\n"
ROW = '"PMC1_F1.jpg","Which colour?","green","A: red","B: green","C: blue","D: black","B"\n'
TABLE = HEADER + ROW * 3
QUESTION = {"question": "Which?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 2, "exp": None}
MEDQA = {"question": "Which?", "options": dict(zip("ABCD", "1234", strict=True)), "answer": "2", "answer_idx": "B"}
RENAMED = {"question": "Q", "options": {}, "answer_text": "2", "answer_idx": "B"}
VIEWER = {"features": [], "rows": [{"row_idx": 0, "row": QUESTION}], "num_rows_total": 1}

# A file's name and content, and what its refusal says.
FILES = {
    "semicolons": ("train.csv", TABLE.replace(",", ";"), "separated by semicolons: separate them by commas"),
    "tabs": ("train.csv", TABLE.replace(",", "\t"), "separated by tabs"),
    "bars and another spelling": ("train.csv", TABLE.lower().replace(",", "|"), "separated by vertical bars"),
    "Excel's first line": ("train.csv", "sep=;\n" + TABLE.replace(",", ";"), "this first line is Excel's: remove it"),
    "UTF-16": ("train.csv", TABLE.encode("utf-16"), "is encoded in UTF-16: save it as UTF-8"),
    "UTF-16 without mark": ("train.csv", TABLE.encode("utf-16-be"), "is encoded in UTF-16: save it as UTF-8"),
    "UTF-32": ("train.csv", TABLE.encode("utf-32"), "is encoded in UTF-32: save it as UTF-8"),
    "no header": ("train.csv", ROW, "The first line of a CSV file names the columns"),
    "UTF-16 JSON": ("train.jsonl", json.dumps(QUESTION).encode("utf-16-le"), "is encoded in UTF-16: save it as UTF-8"),
    "cp1252 in the header": ("train.csv", ("é," + TABLE).encode("cp1252"), "not UTF-8 text: save the file as UTF-8"),
    "zeros": ("train.csv", b"\0" * 99, "not a text file"),
    "workbook": ("train.csv", b"PK\x03\x04\x14\0", "a ZIP archive or an Excel workbook: unpack it, or save the sheet"),
    "gzip": ("train.jsonl", b"\x1f\x8b\x08\0", "compressed with gzip: unpack it"),
    "Parquet": ("train.json", b"PAR1\x15\0", "Parquet: open it with `datasets.load_dataset`"),
    "Git LFS": ("train.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
    "web page": ("train.csv", "<!DOCTYPE html>\n<html>", "a web page: download the file itself"),
    "lower case": (
        "train.csv",
        HEADER.lower().replace(" ", "_") + ROW,
        "for PMC-VQA version 1 it lacks Figure_path (here 'figure_path'), Question (here 'question')",
    ),
    "underscores": ("train.csv", HEADER.replace(" ", "_") + ROW, "lacks Choice A (here 'Choice_A')"),
    "another key": (
        "train.jsonl",
        json.dumps(RENAMED),
        "for MedQA-USMLE, four options it lacks answer: rename or add",
    ),
    "a column twice": ("train.csv", TABLE.replace("er_", "er,Answer_"), "two columns are called Answer: rename or"),
    "array": ("train.json", json.dumps([QUESTION]), "a JSON array: write one object a line (JSON lines)"),
    "indented array": ("train.json", "\n" + json.dumps([QUESTION], indent=1), "a JSON array: write one object a line"),
    "indented object": ("train.json", json.dumps({"data": [QUESTION]}, indent=1), "one JSON object on many lines"),
    "rows of the viewer": ("rows.json", json.dumps(VIEWER), "a page of the Hub's dataset viewer: download the data"),
    "rationales": (
        "why.jsonl",
        '{"id": "train-1", "reasoning": "so"}',
        "holds rationales: name it with --add_reasoning",
    ),
    "a number": ("train.jsonl", "1\n", "line 1 is not a JSON object"),
}


def refusal(place) -> str:
    with pytest.raises(UserError) as error:
        for source in find_sources(str(place), "detect", None):
            source.check_answers()
            list(source.rows())
    return str(error.value)


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_is_called_what_it_is(tmp_path, case):
    name, content, words = FILES[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refusal(tmp_path)
    assert words in said
    assert name in said
    assert "complete?" not in said
    # Beside other files it may be a stranger.
    (tmp_path / "test.csv").write_text(TABLE)
    assert refusal(tmp_path).endswith(f"If {name} holds no questions, move it out of the folder")


@pytest.mark.parametrize("quote", ['\\"', '"'])
def test_quotation_marks_that_are_not_doubled_are_not_called_a_broken_download(tmp_path, quote):
    (tmp_path / "train.csv").write_text(TABLE + ROW.replace("Which", f"Which {quote}true{quote}"))
    said = refusal(tmp_path)
    assert 'line 5: broken CSV: a quotation mark inside a quoted cell is not doubled ("")' in said
    assert "download" not in said


def test_a_long_first_row_of_json_is_read_wherever_its_first_bytes_end(tmp_path):
    for length in range(3950, 4000):
        row = MEDQA | {"question": "Q" * length}
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
        assert find_sources(str(tmp_path), "detect", None)[0].format == "medqa"


def test_a_column_that_is_not_needed_may_stand_twice_or_have_no_name(tmp_path):
    """As Excel writes it: a mark at the start, and empty columns and rows at the end."""
    file = tmp_path / "train_2.csv"
    header = ",".join([*V2_HEADER, "note", "note", "", ""])
    row = "0,PMC1_F1.jpg,Leaf,Which?,red,green,blue,black,B,train,x,y,,"
    file.write_text("\ufeff" + "\r\n".join([header, row, "," * 13, "," * 13]))
    (source,) = find_sources(str(file), "detect", None)
    assert [cells[:4] for cells in source.rows()] == [["0", "PMC1_F1.jpg", "Leaf", "Which?"]]


def test_a_folder_without_a_readable_file_says_what_it_holds(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.parquet").write_bytes(b"PAR1")
    assert "holds no .csv or .jsonl file, but data: give" in refusal(tmp_path)
    assert "but train.parquet (a table that is not read: open it with" in refusal(tmp_path / "data")
    assert "but train.parquet (a table that is not read: open it with" in refusal(tmp_path / "data/train.parquet")


def test_tables_and_folders_beside_the_files_that_are_read_are_named(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for name in ("train.parquet", "train.csv.gz", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "test.csv").write_text(TABLE)
    assert len(find_sources(str(tmp_path), "detect", None)) == 1
    assert "Not read: data/, train.csv.gz, train.parquet. To read a table, open it with" in capsys.readouterr().out


@pytest.mark.parametrize("written", [lambda cop: cop, str, float, lambda cop: f"{cop}.0"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "saved"])
def test_answers_that_count_from_0_are_refused_in_every_kind_of_source(tmp_path, kind, written):
    from datasets import Dataset, DatasetDict

    cops = [0, 1, 2, 3] * 5
    rows = Dataset.from_list([QUESTION | {"cop": written(cop), "exp": "so"} for cop in cops])
    if kind == "saved":
        DatasetDict({"train": rows}).save_to_disk(tmp_path / "in")
    elif kind == "csv":
        rows.to_csv(tmp_path / "train.csv")
    else:
        rows.to_json(tmp_path / "train.jsonl")
    said = refusal(tmp_path / "in" if kind == "saved" else tmp_path)
    assert "cop counts from 0 (5 of 20 are 0, none is 4), and MedMCQA counts from 1: write a, b, c, d" in said
    assert "train" in said


def test_classes_saved_by_name_are_not_mistaken_for_numbers(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict

    rows = Dataset.from_list([QUESTION | {"cop": cop} for cop in [0, 1, 2, -1]])
    DatasetDict({"train": rows.cast_column("cop", ClassLabel(names=list("abcd")))}).save_to_disk(tmp_path / "in")
    (source,) = find_sources(str(tmp_path / "in"), "detect", None)
    source.check_answers()
    assert [row["cop"] for row in source.rows()] == ["a", "b", "c", None]


def test_a_split_without_answers_is_called_one(tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(QUESTION | {"cop": -1}) + "\n" for _ in range(5)))
    assert "no row has an answer in cop, as in MedMCQA's test split: leave this file" in refusal(tmp_path)
