"""Tables come back cell by cell as they were written, whatever kind of file holds them; or they are refused."""

import csv
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.common.command import UserError
from sft.common.table import RejectedRow
from sft.common.table_files import ENDINGS, open_table

NAMES = ("question", "A", "B", "label")
ROWS = [
    ["001", "1.50", "NA", "true"],
    ["N/A", "None", "nan", "1e5"],
    ['He said "no, never"', "a;b|c\td,e", "'single'", "-0"],
    ["two\nlines", "Windows\r\nlines", " spaces ", "=1+1"],
    ["é µ ° ±", "“quoted” – dash…", "m²", "½"],
    ["{not json}", "[1, 2]", "#", ""],
    ["C:\\path", "\\alpha", "#N/A", "007"],
    ["last", "row", "here", "x"],
]
WESTERN = {"utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"}


def fits(columns):
    return set(NAMES) <= set(columns)


def in_csv(rows, **dialect):
    text = io.StringIO()
    csv.writer(text, **{"lineterminator": "\n", **dialect}).writerows([NAMES, *rows])
    return text.getvalue()


def objects(rows):
    return [dict(zip(NAMES, row, strict=True)) for row in rows]


def viewer(rows):
    rows = [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(objects(rows))]
    return json.dumps({"features": [{"name": "question", "type": {"_type": "Value"}}], "rows": rows}, indent=1)


TEXTS = {
    **{f"CSV with {sign!r}": (".csv", lambda rows, sign=sign: in_csv(rows, delimiter=sign)) for sign in ",;\t|"},
    "Excel's first line": (".csv", lambda rows: "sep=;\r\n" + in_csv(rows, delimiter=";", lineterminator="\r\n")),
    "all quoted": (".csv", lambda rows: in_csv(rows, quoting=csv.QUOTE_ALL)),
    "tabs": (".tsv", lambda rows: in_csv(rows, delimiter="\t")),
    "empty rows": (".csv", lambda rows: in_csv(rows) + ",,,\r\n" * 2000 + "\n"),
    "JSON lines": (".jsonl", lambda rows: "".join(json.dumps(row) + "\n\n" for row in objects(rows))),
    "JSON lines, not ASCII": (
        ".ndjson",
        lambda rows: "\r\n".join(json.dumps(row, ensure_ascii=False) for row in objects(rows)),
    ),
    "array": (".json", lambda rows: json.dumps(objects(rows))),
    "indented array": (".json", lambda rows: "\n" + json.dumps(objects(rows), indent=2, ensure_ascii=False) + "\n"),
    "objects by key": (".json", lambda rows: json.dumps({f"k{i}": row for i, row in enumerate(objects(rows))})),
    "indented objects by key": (".json", lambda rows: json.dumps(dict(enumerate(objects(rows))), indent=1)),
    "page of the viewer": (".json", viewer),
}


def read(file, encoding=None):
    """The cells of every row, "rejected: ..." for one that is; raises `UserError`."""
    table = open_table(file, fits, encoding)
    rows = []
    for raw in table.rows():
        try:
            cells = table.cells(raw)
            rows.append([cells.get(name) for name in NAMES])
        except RejectedRow as reason:
            rows.append(f"rejected: {reason}")
    return table, rows


@pytest.mark.parametrize("encoding", sorted(WESTERN))
@pytest.mark.parametrize("kind", TEXTS)
def test_cells_of_text_files_come_back_as_they_were_written(tmp_path, kind, encoding):
    ending, written = TEXTS[kind]
    file = tmp_path / f"t{ending}"
    file.write_bytes(written(ROWS).encode(encoding))
    table, rows = read(file)
    assert rows == ROWS
    if kind == "objects by key":
        assert [table.cells(raw)["key"] for raw in table.rows()] == [f"k{i}" for i in range(len(ROWS))]


def test_cells_of_parquet_and_saved_data_sets_come_back_as_they_were_written(tmp_path):
    from datasets import ClassLabel, Dataset

    from sft.common.arrow_table import saved_tables

    rows = Dataset.from_list(
        [
            {
                "text": "001",
                "number": 1,
                "float": 1.0,
                "flag": True,
                "list": ["1.50", None],
                "label": 1,
                "image": b"x",
            },
            {"text": None, "number": None, "float": None, "flag": None, "list": None, "label": -1, "image": b"x"},
        ]
    ).cast_column("label", ClassLabel(names=["no", "yes"]))
    rows.to_parquet(tmp_path / "t.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for table in (open_table(tmp_path / "t.parquet", fits), *saved_tables(tmp_path / "saved", "train")):
        assert [table.cells(raw) for raw in table.rows()] == [
            {"text": "001", "number": "1", "float": "1.0", "flag": "true", "list": ["1.50", ""], "label": "yes"},
            {"text": "", "number": "", "float": "", "flag": "", "list": "", "label": ""},
        ]
        assert next(table.rows({"number"})) == {"number": 1}


def test_numbers_of_32_bits_keep_their_digits(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question": pa.array([0.1, None, 2.0], pa.float32())}), tmp_path / "t.parquet")
    assert [row[0] for row in read(tmp_path / "t.parquet")[1]] == ["0.1", "", "2.0"]


def test_numbers_and_truth_values_of_json_stay_as_they_are_written(tmp_path):
    (tmp_path / "t.json").write_text('[{"question": 001.50, "A": 1}]'.replace("001.50", "1.50"))
    assert read(tmp_path / "t.json")[1] == [["1.50", "1", None, None]]
    (tmp_path / "t.jsonl").write_text('{"question": true, "A": 1e5, "B": null, "label": 123456789012345678901}')
    assert read(tmp_path / "t.jsonl")[1] == [["true", "1e5", "", "123456789012345678901"]]


def test_quotation_marks_with_backslashes_are_read_where_every_backslash_is_one(tmp_path):
    rows = [['"true"', 'a "b" c', "x\\", "y"], *ROWS[:4]]
    file = tmp_path / "t.csv"
    file.write_text(in_csv(rows, doublequote=False, escapechar="\\", quoting=csv.QUOTE_ALL), newline="")
    table, found = read(file)
    assert found == rows
    assert 'quotation marks as \\"' in table.described()
    # Doubled marks stay doubled marks, beside backslashes of any kind.
    file.write_text(in_csv([['an inch: 5\\"', "\\", 'x\\" y', "z"], *ROWS]), newline="")
    assert read(file)[1] == [['an inch: 5\\"', "\\", 'x\\" y', "z"], *ROWS]
    file.write_text(",".join(NAMES) + '\nSj\\"ogren,a,b,c\n')
    with pytest.raises(UserError, match="can be read in two ways"):
        read(file)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Łódź i żółw", "cp1250"),
        ("Žluťoučký kůň", "iso8859-2"),
        ("Pacient s bolestí břicha a zvýšenou teplotou který v minulosti prodělal operaci žlučníku", "cp1250"),
        ("Pacjentka z bólem brzucha która w przeszłości przebyła operację żołądka", "cp1250"),
        ("A beteg lázas hasi fájdalma erősödik és főleg éjszaka jelentkezik", "cp1250"),
        ("Karın ağrısı ile başvuran hastanın ateşi yükselmiştir", "cp1254"),
        ("Привет", "cp1251"),
        ("日本語の文", "shift_jis"),
        ("中文", "gbk"),
        ("é", "cp437"),
        ("Sjögren", "cp437"),
        ("ö", "mac_roman"),
    ],
)
def test_another_code_page_is_never_taken_for_windows_1252(tmp_path, text, encoding):
    file = tmp_path / "t.csv"
    file.write_bytes((",".join(NAMES) + f"\n{text},x,y,z\nplain,x,y,z\n").encode(encoding))
    assert read(file)[1] == ["rejected: row is not UTF-8 text", ["plain", "x", "y", "z"]]
    assert read(file, encoding)[1] == [[text, "x", "y", "z"], ["plain", "x", "y", "z"]]


def test_english_text_in_windows_1252_is_read_with_its_names_and_signs(tmp_path):
    row = ["Ménière’s, Sjögren’s, Guillain–Barré", "naïve Jørgensen “test”", "5 µm ± 1 °C", "Ångström, Behçet, señal"]
    (tmp_path / "t.csv").write_bytes(in_csv([row]).encode("cp1252"))
    table, found = read(tmp_path / "t.csv")
    assert found == [row]
    assert "Windows-1252" in table.described()


def test_lines_of_two_encodings_are_rejected_where_they_are_not_utf8(tmp_path):
    lines = [",".join(NAMES).encode(), "é,x,y,z".encode(), "é,x,y,z".encode("cp1252"), b""]
    (tmp_path / "t.csv").write_bytes(b"\n".join(lines))
    assert read(tmp_path / "t.csv")[1] == [["é", "x", "y", "z"], "rejected: row is not UTF-8 text"]


def test_text_of_utf8_among_text_of_windows_1252_is_never_taken_for_the_latter(tmp_path):
    rows = (
        (",".join(NAMES) + "\nx,y,z,w\n").encode() + "Ménière,y,z,w\n".encode("cp1252") + "it’s – 5,y,z,w\n".encode()
    )
    (tmp_path / "t.csv").write_bytes(rows)
    assert read(tmp_path / "t.csv")[1][1:] == ["rejected: row is not UTF-8 text", ["it’s – 5", "y", "z", "w"]]


def test_spaces_behind_the_separators_do_not_keep_the_quotation_marks(tmp_path):
    lines = ", ".join(f'"{name}"' for name in NAMES) + '\n"a, b", "c ""d""", "e", "f"\n'
    (tmp_path / "t.csv").write_text(lines)
    assert read(tmp_path / "t.csv")[1] == [["a, b", 'c "d"', "e", "f"]]


def test_rows_that_a_quotation_mark_swallowed_are_noticed_whatever_their_cells(tmp_path):
    rows = [["a long question", "x", "y", "z w"]] * 3
    lines = in_csv(rows) + '"an open one,x,y,z w\n' + in_csv(rows).partition("\n")[2] + 'six inches",x,y,z w\n'
    (tmp_path / "t.csv").write_text(lines)
    with pytest.raises(UserError, match="has a cell that contains further rows"):
        read(tmp_path / "t.csv")


def test_an_encoding_that_the_file_contradicts_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text(",".join(NAMES) + "\né,x,y,z\n", encoding="utf-8")
    with pytest.raises(UserError, match="--encoding cp1252, and it is UTF-8"):
        read(tmp_path / "t.csv", "cp1252")
    for name in ("klingon", "undefined"):
        with pytest.raises(UserError, match=f"--encoding {name}: give the name"):
            read(tmp_path / "t.csv", name)
    (tmp_path / "t.csv").write_bytes((",".join(NAMES) + "\nit’s,x,y,z\n").encode("cp1252"))
    with pytest.raises(UserError, match="bytes for which iso8859-1 has no sign: is it cp1252"):
        read(tmp_path / "t.csv", "latin-1")


REFUSED = {
    "cut in an array": (".json", '[{"question": "x"}, {"question', "is the download complete"),
    "comma missing": (".json", '[\n{"question": "x"}\n{"question": "y"}]', "line 3 is not JSON: ] expected"),
    "text behind an array": (".json", '[{"question": "x"}] x', "is not JSON"),
    "objects with commas": (".json", '{"question": "x"},\n{"question": "y"}\n', "is not JSON"),
    "other object": (".json", '{\n"version": "1",\n"data": [{"question": "x"}]}', "one JSON object that is no table"),
    "nested": (".json", "[" * 100_000, "nested too deeply"),
    "number": (".jsonl", "1\n", "line 1 is not a JSON object"),
    "cut in a quoted cell": (".csv", 'question,A,B,label\nw,x,y,z\nw,"x,y\n', "the file ends inside a quoted cell"),
    "cut in a row": (".csv", "question,A,B,label\nw,x,y,z\nw,x", "line 3: the file ends inside a row"),
    "cut in UTF-16": (".csv", "question,A,B,label\nw,x,y,z\n".encode("utf-16")[:-1], "its text is not UTF-16"),
    "not Parquet": (".parquet", "PAR1", "not a complete Parquet file"),
    "Parquet by another name": (".csv", "PAR1", "Parquet: let its name end with .parquet"),
    "workbook": (".csv", "PK\3\4", "an Excel workbook"),
    "zeros": (".csv", b"\0" * 99, "not a text file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_believed_are_refused(tmp_path, case):
    ending, content, words = REFUSED[case]
    file = tmp_path / f"t{ending}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read(file)
    assert words in str(error.value)
    assert str(file) in str(error.value)


def test_rows_that_cannot_be_believed_are_rejected(tmp_path):
    pages = [{"row": {"question": "x"}, "truncated_cells": ["question"]}, {"row": 1}, {"row": {"question": "y"}}]
    (tmp_path / "t.json").write_text(json.dumps({"features": [], "rows": pages, "num_rows_total": 9}))
    cut, wrong, right = read(tmp_path / "t.json")[1]
    assert cut == "rejected: the Hub's viewer has cut a cell"
    assert wrong == "rejected: row is not a JSON object"
    assert right[0] == "y"
    (tmp_path / "t.json").write_text('[{"question": "x", "question": "y"}, null, {"question": "z"}]')
    twice, null, right = read(tmp_path / "t.json")[1]
    assert (twice, null) == ("rejected: a key stands twice", "rejected: row is not a JSON object")
    assert right[0] == "z"


def test_a_row_may_end_before_columns_without_a_name(tmp_path):
    """As Excel writes it where the cells are empty."""
    (tmp_path / "t.csv").write_text(",".join(NAMES) + ",,\nw,x,y,z,,\nw,x,y,z\nw,x,y\n,,,,,\n")
    assert read(tmp_path / "t.csv")[1] == [["w", "x", "y", "z"]] * 2 + ["rejected: row has too few cells"]


def test_changed_bytes_end_in_a_refusal_a_rejected_row_or_texts(tmp_path):
    """A thousand files, each with one to three bytes changed: none ends in a traceback."""
    plain = [[f"Q{i}?", f"µ {i}", f'"{i}", b', "A"] for i in range(8)]
    ends = {"refused": 0, "rejected": 0, "read": 0}
    for number in range(1000):
        rng = random.Random(number)  # noqa: S311
        kind = rng.choice([*TEXTS, "parquet"])
        file = tmp_path / f"t{'.parquet' if kind == 'parquet' else TEXTS[kind][0]}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(objects(plain)), file)
            content = bytearray(file.read_bytes())
        else:
            content = bytearray(TEXTS[kind][1](plain).encode(rng.choice(["utf-8", "utf-16", "cp1252"])))
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(content))
            content[place : place + rng.randint(0, 1)] = rng.choice(
                [b"\0", b"\xff", b'"', b",", b"\n", b"\\", b"{", b""]
            )
        file.write_bytes(content)
        try:
            _, rows = read(file)
        except UserError as error:
            assert str(file) in str(error), (kind, number)
            ends["refused"] += 1
            continue
        assert all(cell is None or isinstance(cell, str) for row in rows for cell in row), (kind, number)
        ends["rejected" if any(isinstance(row, str) for row in rows) else "read"] += 1
    assert min(ends.values()) > 50, ends


def test_every_ending_is_a_kind():
    assert set(ENDINGS) == {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"}
