"""Preparation as a user meets it: from CSV files to a folder that `load_dataset` opens, or to one line of refusal."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.formats import FORMATS
from data_prep.sample_rows import V1_HEADER
from sft.common.command import read_json

ROW = ["PMC1_F1.jpg", "Which colour?", "green", "A: red", "B: green", "C: blue", "D: black", "B"]


def questions(count: int) -> list[list[str]]:
    """Rows with as many different questions, each of an article of its own."""
    return [[f"PMC{i}_F1.jpg", f"Q{i}?", *ROW[2:]] for i in range(count)]


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write_csv(file: Path, rows: list[list[str]], header: tuple[str, ...] = V1_HEADER) -> Path:
    with open(file, "w", encoding="utf-8", errors="surrogateescape", newline="") as lines:
        csv.writer(lines).writerows([header, *rows])
    return file


def open_splits(folder: Path) -> dict:
    from datasets import load_dataset

    return load_dataset(str(folder))


@pytest.fixture(scope="module")
def report_of(here):
    """Prepare `source`, by default the folder of `output`; returns (what is printed, report.json)."""

    def run(output: Path, *options: object, source: Path | None = None) -> tuple[str, dict]:
        source = source or output.parent
        done = here("data_prep/prepare.py", "--dataset_path", source, "--output_dir", output, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout, read_json(output / "report.json")

    return run


def test_every_row_is_accounted_for(prepared, sample):
    report = read_json(prepared / "report.json")
    rejected = read_csv(prepared / "rejected.csv")
    rows = sum(len(read_csv(sample / name)) for name in ("train.csv", "test.csv"))
    assert report["read"] == rows == report["kept"] + report["rejected"] + report["duplicates"]
    assert report["kept"] == sum(report["splits"].values())
    assert report["rejected"] == len(rejected) == 3
    for row in rejected:  # the row number leads back to the row in its file
        assert list(read_csv(sample / row["file"])[int(row["row"]) - 1].values()) == json.loads(row["cells"])


def test_load_dataset_opens_the_folder_with_its_own_split_names(prepared):
    dataset = open_splits(prepared)
    assert list(dataset) == ["train", "dev", "test"]
    row = dataset["train"][0]
    assert [message["role"] for message in row["prompt"] + row["completion"]] == ["user", "assistant"]
    assert row["question"] in row["prompt"][0]["content"]
    assert row["choices"][row["gold"]] in row["completion"][0]["content"]
    assert row["completion"][0]["reasoning_content"] == ""
    assert len(dataset["dev"]) > 0
    assert not set(dataset["dev"]["article"]) & set(dataset["train"]["article"])


@pytest.mark.parametrize(
    ("answer_format", "answer", "instruction"),
    [
        ("letter_text", "{letter}. {text}", "Answer with the letter and the text of the correct option."),
        ("letter", "{letter}", "Answer with the letter of the correct option."),
        ("text", "{text}", "Answer with the text of the correct option."),
    ],
)
def test_answer_format_decides_prompt_and_answer(prepare, answer_format, answer, instruction):
    for row in read_json(prepare("--answer_format", answer_format) / "examples.json")["train"]:
        expected = answer.format(letter="ABCD"[row["gold"]], text=row["choices"][row["gold"]])
        assert row["completion"][0]["content"] == expected
        assert row["prompt"][0]["content"].endswith(instruction)
        assert ".jpg" not in row["prompt"][0]["content"]


@pytest.mark.parametrize("num_proc", [1, 3])
def test_same_input_gives_the_same_bytes_for_any_number_of_processes(prepared, prepare, num_proc):
    again = prepare("--num_proc", num_proc)
    for file in sorted(prepared.rglob("*.*")):
        assert (again / file.relative_to(prepared)).read_bytes() == file.read_bytes(), file


def test_a_folder_prepared_anew_is_not_read_from_an_old_cache(report_of, sample, tmp_path):
    answers = []
    for answer_format in ("letter", "text"):
        report_of(tmp_path / "P", "--answer_format", answer_format, "--overwrite", source=sample)
        answers.append(open_splits(tmp_path / "P")["train"][0]["completion"][0]["content"])
    assert answers[0] in set("ABCD")
    assert answers[1] not in set("ABCD")


def test_max_samples_draws_from_every_split(prepare):
    splits = read_json(prepare("--max_samples", 50) / "report.json")["splits"]
    assert splits["train"] + splits["dev"] == 50
    assert splits["test"] == 50


def test_both_versions_of_the_real_rows_are_prepared_together(report_of, shared_rows, tmp_path):
    _, report = report_of(tmp_path / "P", source=shared_rows)
    assert {name: (source["format"], source["rows"]) for name, source in report["sources"].items()} == {
        "v1_quirks.csv": ("pmc_vqa_v1", 5), "v1_rows.csv": ("pmc_vqa_v1", 250), "v2_rows.csv": ("pmc_vqa_v2", 20),
    }  # fmt: skip
    assert report["read"] == 275 == report["kept"] + report["rejected"] + report["duplicates"]
    assert report["duplicates"] == 0
    # By hand: one label is a stray quote; every other row names an option that all its sources agree on.
    assert report["rejected_by_reason"] == {"label is not one of A, B, C, D": 1}
    assert report["splits"]["test"] == 20  # the split column of version 2 says so
    for row in open_splits(tmp_path / "P")["test"]:
        assert row["caption"]
        assert row["caption"] not in row["prompt"][0]["content"]
        assert row["figure"] not in row["prompt"][0]["content"]


def test_test_clean_is_a_split_of_its_own(report_of, tmp_path):
    for name in ("train", "test", "test_clean"):
        write_csv(tmp_path / f"{name}.csv", [[f"PMC{i}_F1.jpg", f"{name} {i}?", *ROW[2:]] for i in range(20)])
    assert report_of(tmp_path / "P")[1]["splits"] == {"train": 18, "dev": 2, "test": 20, "test_clean": 20}


def shared_with_test(report: dict) -> dict[str, tuple]:
    table = [entry for entry in report["overlap"] if entry["splits"] == ["train", "test"]]
    return {entry["by"]: (entry["shared"], *entry["rows"]) for entry in table}


def test_overlap_is_reported_and_dropped_on_request(report_of, tmp_path):
    """Row 1 shares an article with test, row 2 a figure and its article, row 3 its text."""
    write_csv(tmp_path / "train.csv", [[f"PMC{i}_F1.jpg", f"Question {i}?", *ROW[2:]] for i in range(1, 41)])
    test = [["PMC1_F9.jpg", "Another?", *ROW[2:]], ["PMC2_F1.jpg", "Yet another?", *ROW[2:]]]
    third = ["PMC99_F1.jpg", "QUESTION 3 ?", "green", "A: green", "B: red", "C: blue", "D: black", "A"]
    write_csv(tmp_path / "test.csv", [*test, third])
    printed, report = report_of(tmp_path / "kept", "--dev_size", 0)
    assert report["splits"] == {"train": 40, "test": 3}
    assert "train and test share 1 by figure: 1 row of train, 1 of test" in printed
    assert shared_with_test(report) == {
        "article": (2, 2, 2), "figure": (1, 1, 1), "question and options": (1, 1, 1),
    }  # fmt: skip
    printed, report = report_of(tmp_path / "dropped", "--dev_size", 0, "--drop_overlap")
    assert "3 shared with another split" in printed
    assert report["splits"] == {"train": 37, "test": 3}
    assert report["left_out"] == {"shared with another split": 3}
    assert {shared for shared, *_ in shared_with_test(report).values()} == {0}
    assert report["read"] == report["kept"] == 43


def test_k_option_orders_a_training_row_and_none_elsewhere(prepare):
    plain, shuffled = open_splits(prepare()), open_splits(prepare("--shuffle_choices", 4))
    assert len(shuffled["train"]) == 4 * len(plain["train"])  # the sample has no "all of the above"
    assert shuffled["dev"]["id"] == plain["dev"]["id"]
    first = plain["train"][0]
    copies = [row for row in shuffled["train"] if row["id"].startswith(first["id"] + "#")]
    assert sorted(row["gold"] for row in copies) == [0, 1, 2, 3]
    for row in copies:
        assert row["choices"][row["gold"]] == first["choices"][first["gold"]]
        assert row["completion"][0]["content"] == f"{'ABCD'[row['gold']]}. {row['choices'][row['gold']]}"
        assert "\n".join(f"{'ABCD'[i]}. {c}" for i, c in enumerate(row["choices"])) in row["prompt"][0]["content"]


def test_no_choices_asks_the_bare_question(prepare):
    row = open_splits(prepare("--no_choices"))["train"][0]
    assert row["prompt"][0]["content"] == row["question"]
    assert row["completion"][0]["content"] == row["choices"][row["gold"]]
    assert row["answer_format"] == "open"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rationales_are_joined_by_row_id(prepare, tmp_path, ending):
    from datasets import Dataset

    rows = Dataset.from_list([{"id": f"train-{i}", "reasoning": f" Because of {i}. "} for i in range(1, 101)])
    file = tmp_path / f"why.{ending}"
    rows.to_json(file) if ending == "jsonl" else rows.to_parquet(file)
    folder = prepare("--add_reasoning", file)
    splits = open_splits(folder)
    rationales = {row["id"]: row["completion"][0]["reasoning_content"] for row in (*splits["train"], *splits["dev"])}
    assert rationales["train-7"] == "Because of 7."
    assert rationales["train-200"] == ""  # no rationale is invented
    assert read_json(folder / "report.json")["rationales"] == 100
    report = read_json(prepare("--add_reasoning", file, "--require_reasoning") / "report.json")
    assert report["splits"]["train"] + report["splits"]["dev"] == 100
    assert report["splits"]["test"] == 72
    assert report["left_out"]["no reasoning"] == report["kept"] - 72 - 100


def test_a_column_of_the_source_can_be_the_rationale(report_of, shared_rows, tmp_path):
    report_of(tmp_path / "P", "--add_reasoning", "exp", source=shared_rows.parent / "medmcqa")
    reasons = [row["completion"][0]["reasoning_content"] for row in open_splits(tmp_path / "P")["dev"]]
    assert 2100 < sum(map(bool, reasons)) < 2206  # 2,206 rows have one, some of them are rejected
    assert "oncotic pressure" in reasons[1]


def test_rows_that_speak_of_letters_or_places_keep_their_order(report_of, tmp_path):
    rows = questions(20)
    rows[3][6] = "D: All of the above"
    write_csv(tmp_path / "train.csv", rows)
    _, report = report_of(tmp_path / "P", "--shuffle_choices", 2, "--dev_size", 0)
    assert report["splits"] == {"train": 19 * 2 + 1}
    assert report["not_shuffled"] == 1


def test_a_saved_data_set_is_read_like_its_files(report_of, sample, prepared, tmp_path):
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_list(read_csv(sample / f"{name}.csv")) for name in ("train", "test")}
    DatasetDict(splits).save_to_disk(tmp_path / "hf_dataset")
    report_of(tmp_path / "P", source=tmp_path / "hf_dataset")
    again, first = open_splits(tmp_path / "P"), open_splits(prepared)
    for split in first:
        assert again[split].remove_columns("source").to_list() == first[split].remove_columns("source").to_list()


def test_a_folder_may_hold_several_formats(report_of, tmp_path):
    write_csv(tmp_path / "train.csv", questions(20))
    options = {"A": "red", "B": "green", "C": "blue", "D": "black"}
    row = {"question": "Which?", "answer": "green", "answer_idx": "B", "options": options}
    (tmp_path / "phrases_test.jsonl").write_text(json.dumps(row))
    _, report = report_of(tmp_path / "P")
    assert report["splits"] == {"train": 18, "dev": 2, "test": 1}
    assert {source["format"] for source in report["sources"].values()} == {"pmc_vqa_v1", "medqa"}
    assert "CC BY-SA" in (tmp_path / "P/README.md").read_text()
    assert "MIT" in (tmp_path / "P/README.md").read_text()


def test_format_picks_files_and_says_what_it_leaves(report_of, shared_rows, tmp_path):
    printed, report = report_of(tmp_path / "P", "--format", "pmc_vqa_v2", source=shared_rows)
    assert "Left out by --format: v1_rows.csv, PMC-VQA version 1" in printed
    assert report["read"] == 20


def test_a_figure_is_recognised_in_both_versions(report_of, tmp_path):
    v2 = ["1", "PMC7_F2_4321.jpg", "A leaf.", "Which leaf?", *ROW[3:], "train"]
    write_csv(tmp_path / "train_2.csv", [v2], FORMATS["pmc_vqa_v2"].columns)
    write_csv(tmp_path / "test_clean.csv", [["PMC7_F2.jpg", *ROW[1:]]])
    assert [(entry["by"], entry["shared"]) for entry in report_of(tmp_path / "P")[1]["overlap"]] == [
        ("article", 1), ("figure", 1), ("question and options", 0),
    ]  # fmt: skip


def test_every_source_says_where_its_rows_went(report_of, tmp_path):
    write_csv(tmp_path / "train.csv", questions(150))
    write_csv(tmp_path / "test (1).csv", [ROW, [*ROW[:-1], "?"]])
    printed, report = report_of(tmp_path / "P")
    assert "train.csv, PMC-VQA version 1: 150 rows, accepted: train 150\n" in printed
    assert "test (1).csv, PMC-VQA version 1: 2 rows, accepted: test 1\n" in printed
    source = report["sources"]["test (1).csv"]
    assert (source["rows"], source["splits"]["test"]) == (2, 1)


def test_exact_duplicates_are_kept_once_and_rows_that_contradict_each_other_are_counted(report_of, tmp_path):
    write_csv(tmp_path / "test.csv", [ROW, [*ROW[:2], "red", *ROW[3:-1], "A"], ["PMC2_F1.jpg", *ROW[1:]], ROW])
    printed, report = report_of(tmp_path / "P")
    assert (report["read"], report["kept"], report["duplicates"], report["contradictory"]) == (4, 3, 1, 1)
    assert "1 that another row with the same question answers otherwise" in printed


def test_training_questions_of_one_article_give_no_dev_split_and_none_are_left_if_test_shares_it(
    report_of, refused, tmp_path
):
    write_csv(tmp_path / "train.csv", [["PMC1_F1.jpg", *row[1:]] for row in questions(30)])
    printed, _ = report_of(tmp_path / "P")
    assert (
        "no dev split: it takes complete articles with at most 3 questions, and every article of train has" in printed
    )
    write_csv(tmp_path / "test.csv", [["PMC1_F2.jpg", *ROW[1:]]])
    words = ("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "Q", "--drop_overlap")
    assert "no question of train is left, of 30: 30 shared with another split" in refused(*words)


def test_a_rationale_from_two_columns_of_one_name_is_refused(refused, tmp_path):
    write_csv(tmp_path / "train.csv", [[*row, "so", "no"] for row in questions(20)], (*V1_HEADER, "why", "why"))
    line = refused("data_prep/prepare.py", "--check", "--dataset_path", tmp_path, "--add_reasoning", "why")
    assert "--add_reasoning why: two columns of one source are called so" in line


# Bad input: what is wrong with a whole file stops everything, what is wrong with a row rejects that row.


HEADER = ",".join(V1_HEADER) + "\n"
LINE = ",".join(ROW) + "\n"
NO_LABEL = LINE[:-2] + "?\n"
MEDMCQA_LINE = '{"question": "Which?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 4, "exp": null}'
SWALLOWED = HEADER + LINE * 9 + 'PMC1,Why?,green,"A: red\n' + LINE * 9 + 'end",B: green,C: blue,D: black,B\n'
# The content of a file, or of several by name, or another place; and words of the refusal.
BAD_FILES = {
    "missing folder": ("nowhere", "nowhere does not exist"),
    "folder without files": ({}, "holds no table (.csv, .tsv, .json"),
    "header of neither version": ({"train.csv": f"a,b\n{LINE}"}, "found a,b; say which column holds what: --columns"),
    "empty file": ({"train.csv": ""}, "an empty file"),
    "no rows": ({"train.csv": HEADER}, "no rows"),
    "no row left": ({"train.csv": HEADER + NO_LABEL}, "no row is left"),
    "binary file": ({"train.csv": b"PK\x03\x04\x00\x00\xff\xfe" * 999}, "a ZIP archive or an Excel workbook"),
    "cut inside a row": ({"train.csv": HEADER + LINE * 9 + LINE[:40]}, "line 11: the file ends in"),
    "cut behind a comma": ({"train.csv": HEADER + LINE * 9 + LINE[:-2]}, "line 11: the file ends inside a row"),
    "a quote that swallows rows": ({"train.csv": SWALLOWED}, "line 11 to 21 has a cell that contains further rows"),
    "a near header": ({"train.csv": HEADER.replace("_l", "k")}, "for PMC-VQA version 1 it lacks Answer_label"),
    "a header that does not decode": ({"train.csv": b"\x81," + HEADER.encode()}, "header is not UTF-8 text"),
    "a prepared folder": ({"report.json": "{}", "rejected.csv": "file,row"}, "is prepared already"),
    "cut inside a quoted cell": ({"train.csv": HEADER + '"W'}, "ends inside a quoted cell: is the download complete?"),
    "broken quotes": ({"train.csv": HEADER + LINE + '"a"b,c\n' + LINE}, "line 3: broken CSV"),
    "cut JSON lines": ({"dev.jsonl": MEDMCQA_LINE + "\n" + MEDMCQA_LINE[:30]}, "line 2: the file"),
    "not JSON": ({"dev.jsonl": "question: why\n"}, "line 1 is not a JSON object"),
    "JSON of another kind": ({"dev.jsonl": '{"a": 1}\n'}, "header of no known format: found a"),
    "two files, same ids": (
        {"train.csv": HEADER + LINE, "train.jsonl": MEDMCQA_LINE},
        "train.csv and train.jsonl would give their rows the same ids",
    ),
    "too many rejected": (
        {"train.csv": HEADER + LINE + NO_LABEL},
        "D (1). The first is train.csv row 2: label is not one of A, B, C, D. To do: write the letter of the right",
    ),
    "Windows-1250": (
        {"train.csv": (HEADER + LINE + LINE.replace("?", "Ż")).encode("cp1250")},
        "To do: save the file as UTF-8, or name its encoding, as in --encoding cp1252",
    ),
    "eleven options": (
        {
            "train.jsonl": json.dumps(
                {"question": "Q", "options": dict.fromkeys("ABCDEFGHIJK", "x"), "answer": "x", "answer_idx": "A"}
            )
        },
        "all 1 were rejected: the row has 11 options, not 2 to 10",
    ),
    "a Hub id without version": ("nobody/PMC-VQA", "it needs --revision with the 40 digits of a commit"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_faulty_file_is_refused_in_one_line_and_leaves_nothing(refused, tmp_path, case):
    source, words = BAD_FILES[case]
    if isinstance(source, dict):
        (tmp_path / "in").mkdir()
        for name, content in source.items():
            (tmp_path / "in" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        source = tmp_path / "in"
    assert words in refused("data_prep/prepare.py", "--dataset_path", source, "--output_dir", tmp_path / "out/P")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([[*row[:-1], "?"] for row in questions(2)], "label is not one of A, B, C, D (2)"),
        ([], "it has a header alone"),
    ],
)
def test_a_file_without_a_sound_row_is_refused_by_name_beside_a_large_one(refused, tmp_path, rows, reason):
    write_csv(tmp_path / "train.csv", questions(300))
    write_csv(tmp_path / "test.csv", rows)
    line = refused("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    assert f"no row of test.csv was accepted: {reason}: leave the file out or mend it" in line


BAD_ROWS = {
    "too few cells": (ROW[:-1], "row has too few cells"),
    "too many cells": ([*ROW, ""], "row has too many cells"),
    "label outside A to D": ([*ROW[:-1], "E"], "label is not one of A, B, C, D"),
    "empty option": ([*ROW[:4], " B: ", *ROW[5:]], "an option is empty"),
    "empty question": ([ROW[0], " \n ", *ROW[2:]], "question is empty"),
    "equal options": ([*ROW[:4], "B: red", *ROW[5:]], "two options are the same"),
    "answer that is no option": ([*ROW[:2], "violet", *ROW[3:]], "answer text equals no option"),
    "NUL byte": ([ROW[0], "Which\0 colour?", *ROW[2:]], "row holds a NUL byte"),
    "broken UTF-8": ([ROW[0], "Which \udcff colour?", *ROW[2:]], "row is not UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_faulty_row_is_rejected_and_the_others_are_kept(report_of, tmp_path, case):
    cells, reason = BAD_ROWS[case]
    rows = [[f"PMC{i}_F1.jpg", *ROW[1:]] for i in range(200)]
    write_csv(tmp_path / "train.csv", [*rows[:6], cells, *rows[6:]])
    _, report = report_of(tmp_path / "P")
    (rejected,) = read_csv(tmp_path / "P/rejected.csv")
    assert (rejected["file"], rejected["row"], rejected["reason"]) == ("train.csv", "7", reason)
    if case not in ("NUL byte", "broken UTF-8"):
        assert json.loads(rejected["cells"]) == cells
    assert (report["read"], report["kept"], report["rejected"]) == (201, 200, 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line is not JSON"),
        ("[1]", "row is not a JSON object"),
        ('{"question": "Which?"}', "line lacks a column of its format"),
        (MEDMCQA_LINE.replace("Which", "Wh\\u0000ich"), "row holds a NUL byte"),
        (MEDMCQA_LINE.replace("Which", "Wh\\ud800ich"), "row is not UTF-8 text"),
        (MEDMCQA_LINE.replace("Which", "Wh\udcffich"), "row is not UTF-8 text"),
        (MEDMCQA_LINE.replace('"cop": 4', '"cop": null'), "label is not one of A, B, C, D"),
        (MEDMCQA_LINE.replace('"cop": 4', '"cop": 4, "cop": 2'), "a key stands twice"),
        (MEDMCQA_LINE.replace('"opa": "1"', '"opa": ["1"]'), "a cell is a list or an object instead of text"),
        (MEDMCQA_LINE.replace('"opa": "1"', '"opa": NaN'), "an option is empty"),
        (MEDMCQA_LINE.replace('"opa": "1"', '"opa": "</think>"'), "an option holds a think tag"),
    ],
)
def test_a_faulty_line_of_json_is_rejected(report_of, tmp_path, line, reason):
    lines = [MEDMCQA_LINE.replace("Which", f"Which {i}") for i in range(200)]
    (tmp_path / "dev.jsonl").write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n", errors="surrogateescape")
    report_of(tmp_path / "P")
    (rejected,) = read_csv(tmp_path / "P/rejected.csv")
    shown = line.encode(errors="backslashreplace").decode()
    assert (rejected["row"], rejected["reason"], rejected["cells"]) == ("4", reason, shown)


BAD_OPTIONS = {
    "rationales that match nothing": (["--add_reasoning", "why.jsonl"], "no question has a rationale there"),
    "no such rationales": (["--add_reasoning", "nowhere.jsonl"], "cannot be read"),
    "no such column": (["--add_reasoning", "exp"], "no source has such a column"),
    "not rationales": (["--add_reasoning", "none.jsonl"], "line 2 is not a JSON object with id and reasoning"),
    "an id twice": (["--add_reasoning", "twice.jsonl"], "row 2: the id train-1 stands twice"),
    "a reasoning twice": (
        ["--add_reasoning", "both.jsonl"],
        "line 1 is not a JSON object with id and reasoning, each once",
    ),
    "not Parquet": (["--add_reasoning", "why.parquet"], "not a Parquet file with the columns"),
    "require what is not given": (["--require_reasoning"], "--add_reasoning"),
    "no chat template": (["--tokenizer", "TOKENIZER"], "the tokenizer has no chat template"),
    "no tokenizer": (["--tokenizer", "nowhere"], "tokenizer of nowhere cannot be loaded"),
    "a template that breaks parity": (["--pretokenize", "TOKENIZER", "--chat_template", "STOCK"], "breaks parity"),
    "max_length without tokens": (["--max_length", "9"], "name the model with --pretokenize"),
    "all too long": (
        ["--pretokenize", "TOKENIZER", "--max_length", "9", "--chat_template", "recipes/templates/deepseek_r1.jinja"],
        "longer than --max_length 9, more than",
    ),
    "two models": (["--tokenizer", "a", "--pretokenize", "b"], "name different models"),
    "a letter of no options": (["--no_choices", "--answer_format", "letter"], "--no_choices shows no options"),
    "orders beyond 120": (["--shuffle_choices", "121"], "--shuffle_choices 121: give 0 to 120"),
    "no rows": (["--max_samples", "0"], "give a positive number"),
    "another format": (["--format", "medqa"], "holds no MedQA-USMLE, but test.csv (PMC-VQA version 1)"),
    "an empty variable": (["--pretokenize", ""], "--pretokenize is empty"),
    "nothing left to train on": (
        ["--add_reasoning", "dev.jsonl", "--require_reasoning", "--dev_size", "0", "--drop_overlap"],
        "no question has a rationale there",
    ),
    "a revision of a folder": (["--revision", "0" * 40], "is here on the disk"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_wrong_option_is_refused_in_one_line_and_leaves_nothing(refused, sample, deepseek_tokenizer, tmp_path, case):
    import trl

    options, words = BAD_OPTIONS[case]
    bare = tmp_path / "bare"
    deepseek_tokenizer.save_pretrained(bare)
    for file in bare.glob("chat_template*"):
        file.unlink()
    stock = Path(trl.__file__).parent / "chat_templates/deepseek_r1_distill.jinja"
    rationale = '{"id": "%s", "reasoning": "so"}\n'
    (tmp_path / "why.jsonl").write_text(rationale % "x")
    (tmp_path / "none.jsonl").write_text(rationale % "x" + '{"id": "y"}\n')
    (tmp_path / "dev.jsonl").write_text(rationale % "dev-1" + "\n")
    (tmp_path / "twice.jsonl").write_text(rationale % "train-1" * 2)
    (tmp_path / "both.jsonl").write_text('{"id": "train-1", "reasoning": "so", "reasoning": "no"}')
    (tmp_path / "why.parquet").write_text("no")
    places = {"TOKENIZER": bare, "STOCK": stock, **{file.name: file for file in tmp_path.glob("*.*")}}
    options = [places.get(word, word) for word in options]
    command = ("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", tmp_path / "out/P")
    assert words in refused(*command, *options)
    assert not (tmp_path / "out").exists()


# All or nothing


def test_an_existing_folder_is_kept_without_overwrite(refused, prepared, sample):
    before = (prepared / "report.json").read_bytes()
    assert "--overwrite" in refused("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", prepared)
    assert (prepared / "report.json").read_bytes() == before


@pytest.mark.parametrize("name", ["thesis.txt", "raw"])
def test_overwriting_takes_no_folder_that_is_not_ours_and_never_the_sources(refused, sample, tmp_path, name):
    shutil.copytree(sample, tmp_path / "P/raw")
    source = tmp_path / "P/raw"
    if name == "thesis.txt":
        source = shutil.move(source, tmp_path)
        (tmp_path / "P" / name).write_text("three years of work")
    words = ("--dataset_path", source, "--output_dir", tmp_path / "P", "--overwrite")
    assert f"holds {name}" in refused("data_prep/prepare.py", *words)
    assert (tmp_path / "P/raw/train.csv" if name == "raw" else tmp_path / "P/thesis.txt").exists()


@pytest.mark.parametrize("name", ["train/notes.txt", "train/own.parquet"])
def test_overwriting_takes_no_folder_whose_names_only_look_like_ours(refused, sample, tmp_path, name):
    folder = tmp_path / "P"
    (folder / "train").mkdir(parents=True)
    (folder / "README.md").write_text("my own")
    (folder / "report.json").write_text("{}")
    (folder / name).write_text("three years of work")
    line = refused("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", folder, "--overwrite")
    assert (f"holds {name}" if name.endswith("txt") else "has no report.json of a prepared data set") in line
    assert (folder / name).read_text() == "three years of work"


def test_a_sample_takes_no_folder_with_other_files(refused, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    assert "holds thesis.txt" in refused("data_prep/sample.py", "--output_dir", tmp_path, "--overwrite")
    assert (tmp_path / "thesis.txt").exists()


def test_overwriting_a_link_replaces_what_it_points_to(report_of, sample, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "P").symlink_to(tmp_path / "disk")
    report_of(tmp_path / "P", "--overwrite", source=sample)
    assert (tmp_path / "P").is_symlink()
    assert (tmp_path / "disk/report.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P", "disk"]


def test_an_overwrite_that_fails_keeps_the_old_folder(refused, report_of, tmp_path):
    file = write_csv(tmp_path / "train.csv", [[f"PMC{i}_F1.jpg", *ROW[1:]] for i in range(20)])
    report_of(tmp_path / "P")
    before = (tmp_path / "P/report.json").read_bytes()
    write_csv(file, [[*ROW[:-1], "?"]])
    refused("data_prep/prepare.py", "--dataset_path", file, "--output_dir", tmp_path / "P", "--overwrite")
    assert (tmp_path / "P/report.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P", "train.csv"]


def prepare_after(statements: str, *words: object) -> subprocess.CompletedProcess:
    """Run prepare.py with these words in a process of its own, which first carries out the statements."""
    program = f"{statements}; import runpy, sys; sys.argv = sys.argv[1:]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", program, "data_prep/prepare.py", *map(str, words)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_preparation_leaves_nothing(sample, tmp_path, signal_sent):
    """The signal comes when the first rows have been read and written, however fast or slow the machine."""
    interrupt = (
        "import os, pathlib, tqdm; "
        f"begun = lambda: print('BEGUN', *pathlib.Path({str(tmp_path / 'out')!r}).glob('.P.*.tmp/questions.arrow')); "
        f"tqdm.tqdm.update = lambda *_: (begun(), os.kill(os.getpid(), {int(signal_sent)}))"
    )
    words = ("--dataset_path", sample, "--output_dir", tmp_path / "out/P", "--num_proc", 2)
    done = prepare_after(interrupt, *words)
    assert done.returncode == (130 if signal_sent == signal.SIGINT else 128 + signal_sent), done.stderr
    assert "questions.arrow" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing(tmp_path, sample):
    # A limit on the size of files answers a write as a full disk does.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    done = prepare_after(limit, "--dataset_path", sample, "--output_dir", tmp_path / "out/P")
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert not (tmp_path / "out").exists()


# To look at


def test_check_tries_everything_and_keeps_nothing(command, tmp_path):
    done = command("data_prep/prepare.py", "--check", TMPDIR=str(tmp_path), HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "OK"
    assert "Read 20 rows: 20 kept" in done.stdout  # ten of train.csv, ten of test.csv
    assert not list(tmp_path.iterdir())


def test_check_judges_the_complete_column_of_answers(refused, tmp_path):
    """The first ten rows could count from 1 as well."""
    cops = [1, 2, 3] * 10 + [0, 4]
    lines = [MEDMCQA_LINE.replace("Which", f"Which {i}").replace("4, ", f"{cop}, ") for i, cop in enumerate(cops)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    for check in (["--check"], []):
        words = ("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "out", *check)
        assert "cop is 0 in 1 of 32 rows and the number of options in 1, so some rows count from 0" in refused(*words)


def test_check_takes_rationales_of_later_rows_alone(succeeds, tmp_path):
    write_csv(tmp_path / "train.csv", questions(20))
    rationales = tmp_path / "why/why.jsonl"
    rationales.parent.mkdir()
    rationales.write_text('{"id": "train-15", "reasoning": "so"}')
    words = ("--dataset_path", tmp_path, "--add_reasoning", rationales, "--require_reasoning")
    assert succeeds("data_prep/prepare.py", "--check", *words).stdout.endswith("OK\n")


def test_check_says_what_is_wrong(refused, tmp_path):
    write_csv(tmp_path / "train.csv", [[*ROW[:-1], "?"]] * 20)
    line = refused("data_prep/prepare.py", "--check", "--dataset_path", tmp_path)
    assert "all 10 were rejected: label is not one of A, B, C, D (10)" in line


def test_the_page_needs_nothing_but_itself(prepared):
    page = (prepared / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert not re.findall(r"(src|href)=|url\(|https?://", page)
    for words in ("floor: majority letter", "train and test", "label is not one of A, B, C, D", "<svg"):
        assert words in page


def test_the_page_shows_cells_as_text(report_of, tmp_path):
    write_csv(tmp_path / "train.csv", [[row[0], "<b>Which</b> & why?", *ROW[2:]] for row in questions(20)])
    report_of(tmp_path / "P")
    page = (tmp_path / "P/report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Which&lt;/b&gt; &amp; why?" in page
    assert "<b>Which" not in page


def test_floors_of_the_report_are_those_of_evaluation(prepared):
    from sft.evaluation.metrics import floors

    report = read_json(prepared / "report.json")
    for split, rows in open_splits(prepared).items():
        assert report["measures"][split]["floors"] == pytest.approx(floors(rows.to_list()))


def test_examples_show_the_raw_row_and_what_is_trained(prepare, sample, smollm2_tokenizer, embedded_model):
    folder = prepare("--tokenizer", embedded_model, "--chat_template", "recipes/templates/smollm2.jinja")
    shown = read_json(folder / "examples.json")
    assert {split: len(rows) for split, rows in shown.items()} == {"train": 3, "dev": 3, "test": 3}
    for split in shown:
        raw = read_csv(sample / f"{'test' if split == 'test' else 'train'}.csv")
        for row in shown[split]:
            assert row["raw"] == raw[int(row["id"].split("-")[1]) - 1]
            trained = [id for id, mask in zip(row["input_ids"], row["loss_mask"], strict=True) if mask]
            assert smollm2_tokenizer.decode(trained).startswith(row["completion"][0]["content"])
            assert row["tokens"] == len(row["input_ids"])
            assert row["text"] == smollm2_tokenizer.decode(row["input_ids"])
    assert read_json(folder / "report.json")["length_unit"] == "tokens"


def test_examples_lead_back_to_the_raw_row_whatever_the_file_is_called_and_the_order_of_the_options(
    report_of, tmp_path
):
    rows = questions(20)
    write_csv(tmp_path / "train #2-1.csv", rows)
    report_of(tmp_path / "P", "--shuffle_choices", 2, "--dev_size", 2)
    shown = read_json(tmp_path / "P/examples.json")
    assert {split: len(examples) for split, examples in shown.items()} == {"train": 3, "dev": 2}
    for example in shown["train"] + shown["dev"]:
        assert list(example["raw"].values()) == rows[int(example["question"][1:-1])]


def test_nothing_tells_of_the_machine_it_was_made_on(prepare, sample, embedded_model, tmp_path):
    (tmp_path / "why.jsonl").write_text('{"id": "train-1", "reasoning": "so"}\n')
    template = Path("recipes/templates/smollm2.jinja").resolve()
    folders = (
        prepare("--pretokenize", embedded_model.resolve(), "--chat_template", template),
        prepare("--add_reasoning", tmp_path / "why.jsonl"),
    )
    for file in (file for folder in folders for file in folder.rglob("*.*")):
        for place in (sample, tmp_path, Path.cwd(), Path.home()):
            assert str(place).encode() not in file.read_bytes(), file
