"""What is found at a place, file by file; and what cannot be read is refused as what it is, with what to do."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.formats import FORMATS, parse_columns
from data_prep.sample_rows import V1_HEADER
from data_prep.sources import cells_of, find_sources
from sft.common.command import UserError

HEADER = ",".join(V1_HEADER) + "\n"
ROW = '"PMC1_F1.jpg","Which colour?","green","A: red","B: green","C: blue","D: black","B"\n'
TABLE = HEADER + ROW * 3
CELLS = ["PMC1_F1.jpg", "Which colour?", "green", "A: red", "B: green", "C: blue", "D: black", "B"]
QUESTION = {"question": "Which?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 2, "exp": None}
MEDQA = {"question": "Which?", "options": dict(zip("ABCD", "1234", strict=True)), "answer": "2", "answer_idx": "B"}

# A file's name and content, and what its refusal says.
FILES = {
    "no header": ("train.csv", ROW, "The first line of a CSV file names the columns"),
    "another code page in the header": ("train.csv", ("ł," + TABLE).encode("cp1250"), "name its --encoding"),
    "zeros": ("train.csv", b"\0" * 99, "not a text file"),
    "workbook": ("train.csv", b"PK\x03\x04\x14\0", "a ZIP archive or an Excel workbook: unpack it, or save the sheet"),
    "gzip": ("train.jsonl", b"\x1f\x8b\x08\0", "compressed with gzip: unpack it"),
    "Parquet": ("train.json", b"PAR1\x15\0", "Parquet: let its name end with .parquet"),
    "Git LFS": ("train.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
    "web page": ("train.csv", "<!DOCTYPE html>\n<html>", "a web page: download the file itself"),
    "a column twice": ("train.csv", TABLE.replace("er_", "er,Answer_"), "two columns are called Answer: rename or"),
    "indented object": ("train.json", json.dumps({"data": [QUESTION]}, indent=1), "one JSON object that is no table"),
    "rationales": (
        "why.jsonl",
        '{"id": "train-1", "reasoning": "so"}',
        "holds rationales: name it with --add_reasoning",
    ),
    "a number": ("train.jsonl", "1\n", "line 1 is not a JSON object"),
}


def refusal(place, **options) -> str:
    with pytest.raises(UserError) as error:
        for source in find_sources(str(place), None, None, **options):
            list(source.rows())
    return str(error.value)


def found(place, wanted=None, **options) -> dict:
    """Name, stem, split and number of rows of each source."""
    sources = find_sources(str(place), wanted, None, **options)
    return {source.name: (source.stem, source.split, sum(1 for _ in source.readable())) for source in sources}


def write_parquet(file, rows=3):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(zip(V1_HEADER, CELLS, strict=True))] * rows), file)


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


def test_quotation_marks_that_are_not_doubled_are_not_called_a_broken_download(tmp_path):
    for row in ('Which "true"', '\\alpha \\"true\\"'):  # in the second, a backslash is no escape
        (tmp_path / "train.csv").write_text(TABLE + ROW.replace("Which", row))
        said = refusal(tmp_path)
        assert 'line 5: broken CSV: a quotation mark inside a quoted cell is not doubled ("")' in said
        assert "download" not in said


@pytest.mark.parametrize(
    ("name", "content", "described"),
    [
        ("train.csv", "sep=;\n" + TABLE.replace(",", ";"), "CSV, semicolons, UTF-8"),
        ("train.tsv", TABLE.replace(",", "\t").encode("utf-16"), "CSV, tabs, UTF-16"),
        ("train.csv", TABLE.lower().replace("choice ", "choice_").replace(",", "|"), "CSV, vertical bars, UTF-8"),
        ("train.csv", TABLE.replace("Which", "Wörter: which").encode("cp1252"), "CSV, commas, Windows-1252"),
        ("train.csv", TABLE.replace("Which", 'Which \\"true\\"'), 'CSV, commas, UTF-8, quotation marks as \\"'),
        ("train.json", json.dumps([dict(zip(map(str.upper, V1_HEADER), CELLS, strict=True))]), "JSON array, UTF-8"),
    ],
)
def test_cells_have_the_names_of_the_format_however_they_are_spelt_and_written(tmp_path, name, content, described):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (source,) = find_sources(str(tmp_path), None, None)
    assert source.described() == described
    assert set(V1_HEADER) <= set(source.columns)
    for cells in source.readable():
        assert cells["Choice A"].lower() == "a: red"
        assert cells["Answer_label"].upper() == "B"
    assert cells_of(next(source.rows()), source) == next(source.readable())


def test_an_encoding_is_taken_as_named(tmp_path):
    (tmp_path / "train.csv").write_bytes(TABLE.replace("Which", "Żółw: which").encode("cp1250"))
    assert found(tmp_path) == {"train.csv": ("train", "train", 0)}  # every row is rejected
    (source,) = find_sources(str(tmp_path), None, None, encoding="cp1250")
    assert next(source.readable())["Question"] == "Żółw: which colour?"


def test_a_long_first_row_of_json_is_read_wherever_its_first_bytes_end(tmp_path):
    for length in range(3950, 4000):
        row = MEDQA | {"question": "Q" * length}
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
        assert find_sources(str(tmp_path), None, None)[0].format == FORMATS["medqa"]


def test_a_column_that_is_not_needed_may_stand_twice_or_have_no_name(tmp_path):
    """As Excel writes it: a mark at the start, and empty columns and rows at the end."""
    file = tmp_path / "train_2.csv"
    header = ",".join([*FORMATS["pmc_vqa_v2"].columns, "note", "note", "", ""])
    row = "0,PMC1_F1.jpg,Leaf,Which?,red,green,blue,black,B,train,x,y,,"
    file.write_text("\ufeff" + "\r\n".join([header, row, "," * 13, "," * 13]))
    (source,) = find_sources(str(file), None, None)
    assert [cells[:4] for cells in source.rows()] == [["0", "PMC1_F1.jpg", "Leaf", "Which?"]]


def test_a_folder_without_a_table_says_what_it_holds(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/notes.md").touch()
    assert "holds no table (.csv, .tsv, .json, .jsonl, .ndjson, .parquet), but data: give" in refusal(tmp_path)
    (tmp_path / "data/train.xlsx").touch()
    assert "train.xlsx (a table that is not read: unpack it, or save it as CSV UTF-8)" in refusal(tmp_path / "data")
    assert "but train.xlsx (a table that is not read" in refusal(tmp_path / "data/train.xlsx")


def test_what_is_beside_the_tables_that_are_read_is_named(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for name in ("train.xlsx", "train.csv.gz", "notes.md", ".hidden.csv", "dataset_infos.json"):
        (tmp_path / name).touch()
    (tmp_path / "test.csv").write_text(TABLE)
    write_parquet(tmp_path / "train.parquet")
    assert found(tmp_path) == {"test.csv": ("test", "test", 3), "train.parquet": ("train", "train", 3)}
    printed = capsys.readouterr().out
    assert "Not read: train.csv.gz, train.xlsx (unpack it, or save it as CSV UTF-8)\nNot read: data (name a" in printed
    assert "Passed over: dataset_infos.json" in printed


def test_files_that_would_give_the_same_ids_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text(TABLE)
    write_parquet(tmp_path / "train.parquet")
    assert "train.csv and train.parquet would give their rows the same ids: rename" in refusal(tmp_path)


def test_parts_of_a_table_are_one_source_with_the_ids_of_the_whole(tmp_path):
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", 3)
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", 4)
    write_parquet(tmp_path / "data/test-00000-of-00001-0123456789abcdef.parquet", 2)
    assert found(tmp_path) == {"test.parquet": ("test", "test", 2), "train.parquet": ("train", "train", 7)}
    assert found(tmp_path / "data") == found(tmp_path)
    (tmp_path / "data/train-00000-of-00002.parquet").unlink()
    assert "train has 1 of 2 parts: is the download complete?" in refusal(tmp_path)


def test_folders_name_splits(tmp_path):
    for name in ("train/0.parquet", "train/1.parquet", "train/10.parquet", "validation/rows.parquet"):
        write_parquet(tmp_path / name)
    assert found(tmp_path) == {
        "train.parquet": ("train", "train", 9),
        "validation-rows.parquet": ("validation-rows", "dev", 3),
    }
    (source,) = (s for s in find_sources(str(tmp_path), None, None) if s.stem == "train")
    assert [table.path.name for table in source.tables] == ["0.parquet", "1.parquet", "10.parquet"]


def test_one_part_of_several_is_read_as_named_by_the_user_or_the_format(tmp_path, capsys):
    for name in ("Text", "MM"):
        write_parquet(tmp_path / f"{name}/test-00000-of-00001.parquet")
    pmc = parse_columns("question=Question, options=Choice A,Choice B,Choice C,Choice D, answer=Answer_label")
    with pytest.raises(UserError, match="has several parts: choose one with --config: MM, Text"):
        find_sources(str(tmp_path), pmc, None)
    assert found(tmp_path, config="MM") == {"test.parquet": ("test", "test", 3)}
    assert "--config Video: " in refusal(tmp_path, config="Video")
    assert "has no such part, but MM, Text" in refusal(tmp_path, config="Video")
    assert found(tmp_path) == {"test.parquet": ("test", "test", 3)}  # as MedXpertQA's format names it
    assert "Left out: the parts MM" in capsys.readouterr().out
    for name in FORMATS["mmlu"].configs:
        write_parquet(tmp_path / f"mmlu/{name}/test-00000-of-00001.parquet")
    write_parquet(tmp_path / "mmlu/astronomy/test-00000-of-00001.parquet")
    assert sorted(found(tmp_path / "mmlu")) == [f"{name}-test.parquet" for name in FORMATS["mmlu"].configs]


def test_classes_saved_by_name_are_not_mistaken_for_numbers(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict

    rows = Dataset.from_list([QUESTION | {"cop": cop} for cop in [0, 1, 2, -1]])
    rows = rows.cast_column("cop", ClassLabel(names=list("abcd")))
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "train.parquet")
    for place in ("saved", "train.parquet"):
        (source,) = find_sources(str(tmp_path / place), None, None)
        assert [cells["cop"] for cells in source.readable()] == ["a", "b", "c", ""]
        assert source.split == "train"
