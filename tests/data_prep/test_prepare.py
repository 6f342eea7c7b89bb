"""Preparation as a user meets it: from CSV files to a folder that `load_dataset` opens, or to one line of refusal."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.formats import V1_HEADER, V2_HEADER

ROW = ["PMC1_F1.jpg", "Which colour?", "green", "A: red", "B: green", "C: blue", "D: black", "B"]


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def write_csv(file: Path, rows: list[list[str]], header: tuple[str, ...] = V1_HEADER) -> Path:
    with open(file, "w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([header, *rows])
    return file


def test_every_row_is_accounted_for(prepared, sample):
    report = json.loads((prepared / "report.json").read_text())
    with open(prepared / "rejected.csv", encoding="utf-8", newline="") as file:
        rejected = list(csv.DictReader(file))
    rows = 0
    for name in ("train.csv", "test.csv"):
        with open(sample / name, encoding="utf-8", newline="") as file:
            rows += sum(1 for _ in csv.DictReader(file))
    assert report["read"] == rows == report["kept"] + report["rejected"] + report["duplicates"]
    assert report["kept"] == sum(report["splits"].values())
    assert report["rejected"] == len(rejected) == 3
    for row in rejected:  # the row number leads back to the row in its file
        with open(sample / row["file"], encoding="utf-8", newline="") as file:
            assert list(csv.reader(file))[int(row["row"])] == json.loads(row["cells"])


def test_load_dataset_opens_the_folder_with_its_own_split_names(prepared):
    from datasets import load_dataset

    dataset = load_dataset(str(prepared))
    assert list(dataset) == ["train", "dev", "test"]
    row = dataset["train"][0]
    assert [message["role"] for message in row["prompt"] + row["completion"]] == ["user", "assistant"]
    assert row["question"] in row["prompt"][0]["content"]
    assert row["choices"][row["gold"]] in row["completion"][0]["content"]
    assert row["completion"][0]["reasoning_content"] == ""


def test_dev_and_train_share_no_article(prepared):
    from datasets import load_dataset

    dataset = load_dataset(str(prepared))
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
    examples = json.loads((prepare("--answer_format", answer_format) / "examples.json").read_text())
    for row in examples["train"]:
        expected = answer.format(letter="ABCD"[row["gold"]], text=row["choices"][row["gold"]])
        assert row["completion"][0]["content"] == expected
        assert row["prompt"][0]["content"].endswith(instruction)
        assert ".jpg" not in row["prompt"][0]["content"]


@pytest.mark.parametrize("num_proc", [1, 3])
def test_same_input_gives_the_same_bytes_for_any_number_of_processes(prepared, prepare, num_proc):
    again = prepare("--num_proc", num_proc)
    for file in sorted(prepared.rglob("*.*")):
        assert (again / file.relative_to(prepared)).read_bytes() == file.read_bytes(), file


def test_a_folder_prepared_anew_is_not_read_from_an_old_cache(here, sample, tmp_path):
    from datasets import load_dataset

    answers = []
    for answer_format in ("letter", "text"):
        here(
            *("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", tmp_path / "P"),
            *("--answer_format", answer_format, "--overwrite"),
        )
        answers.append(load_dataset(str(tmp_path / "P"))["train"][0]["completion"][0]["content"])
    assert answers[0] in set("ABCD")
    assert answers[1] not in set("ABCD")


def test_max_samples_draws_from_every_split(prepare):
    splits = json.loads((prepare("--max_samples", 50) / "report.json").read_text())["splits"]
    assert splits["train"] + splits["dev"] == 50
    assert splits["test"] == 50


def test_exact_duplicates_are_counted_and_kept_once(here, tmp_path):
    file = write_csv(tmp_path / "train.csv", [ROW, ["PMC2_F1.jpg", *ROW[1:]], ROW])
    here("data_prep/prepare.py", "--dataset_path", file, "--output_dir", tmp_path / "P")
    report = json.loads((tmp_path / "P/report.json").read_text())
    assert (report["read"], report["kept"], report["duplicates"]) == (3, 2, 1)


def test_real_rows_are_kept(here, shared_rows, tmp_path):
    done = here(
        *("data_prep/prepare.py", "--dataset_path", shared_rows / "v1_rows.csv", "--output_dir", tmp_path / "P")
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "P/report.json").read_text())
    assert report["read"] == 250
    assert report["kept"] >= 245


@pytest.fixture(scope="module")
def real(here, shared_rows, tmp_path_factory):
    """All real PMC-VQA rows, both versions, prepared together."""
    folder = tmp_path_factory.mktemp("real") / "P"
    done = here("data_prep/prepare.py", "--dataset_path", shared_rows, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_both_versions_are_prepared_together(real):
    report = read_json(real / "report.json")
    assert {name: source["format"] for name, source in report["sources"].items()} == {
        "v1_quirks.csv": "pmc_vqa_v1",
        "v1_rows.csv": "pmc_vqa_v1",
        "v2_rows.csv": "pmc_vqa_v2",
    }
    assert report["read"] == 275 == report["kept"] + report["rejected"] + report["duplicates"]
    # By hand: one label is a stray quote; every other row names an option that all its sources agree on.
    assert report["rejected_by_reason"] == {"label is not one of A, B, C, D": 1}
    assert report["splits"]["test"] == 20  # the split column of version 2 says so


def test_the_caption_stays_out_of_the_prompt(real):
    from datasets import load_dataset

    for row in load_dataset(str(real))["test"]:
        assert row["caption"]
        assert row["caption"] not in row["prompt"][0]["content"]
        assert row["figure"] not in row["prompt"][0]["content"]


def test_test_clean_is_a_split_of_its_own(here, tmp_path):
    for name in ("train", "test", "test_clean"):
        write_csv(tmp_path / f"{name}.csv", [[f"PMC{i}_F1.jpg", f"{name} {i}?", *ROW[2:]] for i in range(20)])
    here("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    assert read_json(tmp_path / "P/report.json")["splits"] == {"train": 18, "dev": 2, "test": 20, "test_clean": 20}


def leaky(folder: Path) -> Path:
    """40 training rows, of which row 1 shares an article, row 2 a figure and its article, row 3 its text with test."""
    train = [[f"PMC{i}_F1.jpg", f"Question {i}?", *ROW[2:]] for i in range(1, 41)]
    write_csv(folder / "train.csv", train)
    test = [
        ["PMC1_F9.jpg", "Another?", *ROW[2:]],
        ["PMC2_F1.jpg", "Yet another?", *ROW[2:]],
        ["PMC99_F1.jpg", "QUESTION 3 ?", "green", "A: green", "B: red", "C: blue", "D: black", "A"],
    ]
    write_csv(folder / "test.csv", test)
    return folder


def shared_with_test(report: dict) -> dict[str, tuple]:
    table = [entry for entry in report["overlap"] if entry["splits"] == ["train", "test"]]
    return {entry["by"]: (entry["shared"], *entry["rows"]) for entry in table}


def test_overlap_is_reported_and_dropped_on_request(here, tmp_path):
    leaky(tmp_path)
    words = ("data_prep/prepare.py", "--dataset_path", tmp_path, "--dev_size", "0", "--output_dir")
    here(*words, tmp_path / "kept")
    report = read_json(tmp_path / "kept/report.json")
    assert report["splits"] == {"train": 40, "test": 3}
    assert shared_with_test(report) == {
        "article": (2, 2, 2), "figure": (1, 1, 1), "question and options": (1, 1, 1),
    }  # fmt: skip
    done = here(*words, tmp_path / "dropped", "--drop_overlap")
    assert "3 shared with another split" in done.stdout
    report = read_json(tmp_path / "dropped/report.json")
    assert report["splits"] == {"train": 37, "test": 3}
    assert report["left_out"] == {"shared with another split": 3}
    assert {shared for shared, *_ in shared_with_test(report).values()} == {0}
    assert report["read"] == report["kept"] == 43


def test_k_option_orders_a_training_row_and_none_elsewhere(prepare):
    from datasets import load_dataset

    plain, shuffled = load_dataset(str(prepare())), load_dataset(str(prepare("--shuffle_choices", 4)))
    assert len(shuffled["train"]) == 4 * len(plain["train"])  # the sample has no "all of the above"
    assert shuffled["dev"]["id"] == plain["dev"]["id"]
    copies = [row for row in shuffled["train"] if row["id"].startswith(plain["train"][0]["id"] + "#")]
    assert sorted(row["gold"] for row in copies) == [0, 1, 2, 3]
    for row in copies:
        assert row["choices"][row["gold"]] == plain["train"][0]["choices"][plain["train"][0]["gold"]]
        assert row["completion"][0]["content"] == f"{'ABCD'[row['gold']]}. {row['choices'][row['gold']]}"
        assert "\n".join(f"{'ABCD'[i]}. {c}" for i, c in enumerate(row["choices"])) in row["prompt"][0]["content"]


def test_no_choices_asks_the_bare_question(prepare):
    from datasets import load_dataset

    row = load_dataset(str(prepare("--no_choices")))["train"][0]
    assert row["prompt"][0]["content"] == row["question"]
    assert row["completion"][0]["content"] == row["choices"][row["gold"]]
    assert row["answer_format"] == "open"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rationales_are_joined_by_row_id(prepare, tmp_path, ending):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import load_dataset

    rows = [{"id": f"train-{i}", "reasoning": f" Because of {i}. "} for i in range(1, 101)]
    file = tmp_path / f"why.{ending}"
    if ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    folder = prepare("--add_reasoning", file)
    splits = load_dataset(str(folder))
    questions = [*splits["train"], *splits["dev"]]
    given = {row["id"]: row["completion"][0]["reasoning_content"] for row in questions}
    assert given["train-7"] == "Because of 7."
    assert given["train-200"] == ""  # no rationale is invented
    assert read_json(folder / "report.json")["rationales"] == 100
    report = read_json(prepare("--add_reasoning", file, "--require_reasoning") / "report.json")
    assert report["splits"]["train"] + report["splits"]["dev"] == 100
    assert report["splits"]["test"] == 72
    assert report["left_out"]["no reasoning"] == report["kept"] - 72 - 100


def test_a_column_of_the_source_can_be_the_rationale(here, shared_rows, tmp_path):
    from datasets import load_dataset

    words = ("--dataset_path", shared_rows.parent / "medmcqa", "--output_dir", tmp_path / "P")
    done = here("data_prep/prepare.py", *words, "--add_reasoning", "exp")
    assert done.returncode == 0, done.stderr
    rows = load_dataset(str(tmp_path / "P"))["dev"]
    reasons = [row["completion"][0]["reasoning_content"] for row in rows]
    assert 2100 < sum(map(bool, reasons)) < 2206  # 2,206 rows have one, some of them are rejected
    assert "oncotic pressure" in reasons[1]


def test_rows_that_speak_of_letters_or_places_keep_their_order(here, tmp_path):
    rows = [[f"PMC{i}_F1.jpg", f"Q{i}?", *ROW[2:]] for i in range(20)]
    rows[3][6] = "D: All of the above"
    write_csv(tmp_path / "train.csv", rows)
    words = ("--dataset_path", tmp_path, "--output_dir", tmp_path / "P", "--shuffle_choices", 2, "--dev_size", 0)
    here("data_prep/prepare.py", *words)
    report = read_json(tmp_path / "P/report.json")
    assert report["splits"] == {"train": 19 * 2 + 1}
    assert report["not_shuffled"] == 1


def test_a_saved_data_set_is_read_like_its_files(here, sample, prepared, tmp_path):
    from datasets import Dataset, DatasetDict, load_dataset

    splits = {}
    for name in ("train", "test"):
        with open(sample / f"{name}.csv", encoding="utf-8", newline="") as file:
            splits[name] = Dataset.from_list(list(csv.DictReader(file)))
    DatasetDict(splits).save_to_disk(tmp_path / "hf_dataset")
    done = here("data_prep/prepare.py", "--dataset_path", tmp_path / "hf_dataset", "--output_dir", tmp_path / "P")
    assert done.returncode == 0, done.stderr
    again, first = load_dataset(str(tmp_path / "P")), load_dataset(str(prepared))
    for split in first:
        assert again[split].remove_columns("source").to_list() == first[split].remove_columns("source").to_list()


def test_a_folder_may_hold_several_formats(here, tmp_path):
    write_csv(tmp_path / "train.csv", [[f"PMC{i}_F1.jpg", f"Q{i}?", *ROW[2:]] for i in range(20)])
    options = {"A": "red", "B": "green", "C": "blue", "D": "black"}
    row = {"question": "Which?", "answer": "green", "answer_idx": "B", "options": options}
    (tmp_path / "phrases_test.jsonl").write_text(json.dumps(row))
    done = here("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    assert done.returncode == 0, done.stderr
    report = read_json(tmp_path / "P/report.json")
    assert report["splits"] == {"train": 18, "dev": 2, "test": 1}
    assert {source["format"] for source in report["sources"].values()} == {"pmc_vqa_v1", "medqa"}
    assert "CC BY-SA" in (tmp_path / "P/README.md").read_text()
    assert "MIT" in (tmp_path / "P/README.md").read_text()


def test_format_picks_files_and_says_what_it_leaves(here, shared_rows, tmp_path):
    words = ("--dataset_path", shared_rows, "--output_dir", tmp_path / "P", "--format", "pmc_vqa_v2")
    done = here("data_prep/prepare.py", *words)
    assert done.returncode == 0, done.stderr
    assert "Left out by --format: v1_rows.csv, PMC-VQA version 1" in done.stdout
    assert read_json(tmp_path / "P/report.json")["read"] == 20


def test_a_figure_is_recognised_in_both_versions(here, tmp_path):
    v2 = ["1", "PMC7_F2_4321.jpg", "A leaf.", "Which leaf?", *ROW[3:], "train"]
    write_csv(tmp_path / "train_2.csv", [v2], V2_HEADER)
    write_csv(tmp_path / "test_clean.csv", [["PMC7_F2.jpg", *ROW[1:]]])
    here("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    table = read_json(tmp_path / "P/report.json")["overlap"]
    assert [(entry["by"], entry["shared"]) for entry in table] == [
        ("article", 1), ("figure", 1), ("question and options", 0),
    ]  # fmt: skip


def test_every_source_says_where_its_rows_went(here, tmp_path):
    write_csv(tmp_path / "train.csv", [[f"PMC{i}_F1.jpg", f"Q{i}?", *ROW[2:]] for i in range(150)])
    write_csv(tmp_path / "test (1).csv", [ROW, [*ROW[:-1], "?"]])
    done = here("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    assert "train.csv, PMC-VQA version 1: 150 rows, sound: train 150\n" in done.stdout
    assert "test (1).csv, PMC-VQA version 1: 2 rows, sound: test 1\n" in done.stdout
    source = read_json(tmp_path / "P/report.json")["sources"]["test (1).csv"]
    assert (source["rows"], source["splits"]["test"]) == (2, 1)


def test_rows_that_contradict_each_other_are_counted(here, tmp_path):
    other = [*ROW[:2], "red", *ROW[3:-1], "A"]
    write_csv(tmp_path / "test.csv", [ROW, other, ROW])
    done = here("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    report = read_json(tmp_path / "P/report.json")
    assert (report["kept"], report["duplicates"], report["contradictory"]) == (2, 1, 1)
    assert "1 that another row with the same question answers otherwise" in done.stdout


def test_a_split_that_options_empty_is_refused(refused, tmp_path):
    write_csv(tmp_path / "train.csv", [["PMC1_F1.jpg", f"Q{i}?", *ROW[2:]] for i in range(30)])
    write_csv(tmp_path / "test.csv", [["PMC1_F2.jpg", *ROW[1:]]])
    words = ("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P", "--drop_overlap")
    assert "no question of train is left, of 30: 30 shared with another split" in refused(*words)


def test_a_missing_dev_split_is_told(here, tmp_path):
    write_csv(tmp_path / "train.csv", [["PMC1_F1.jpg", f"Q{i}?", *ROW[2:]] for i in range(30)])
    done = here("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    assert "no dev split: train is too small, all of one article, or --dev_size is 0" in done.stdout


# Bad input: what is wrong with a whole file stops everything, what is wrong with a row rejects that row.


def spoil(folder: Path, **files: bytes | str) -> Path:
    for name, content in files.items():
        file = folder / name.replace("_csv", ".csv").replace("_jsonl", ".jsonl")
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


HEADER = ",".join(V1_HEADER) + "\n"
LINE = ",".join(ROW) + "\n"
MEDMCQA_LINE = '{"question": "Which?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 2, "exp": null}'
QUOTED_END = 'end",B: green,C: blue,D: black,B\n'
BAD_FILES = {
    "missing folder": (lambda tmp: tmp / "nowhere", "nowhere does not exist"),
    "folder without files": (lambda tmp: tmp, "holds no .csv or .jsonl file"),
    "header of neither version": (
        lambda tmp: write_csv(tmp / "train.csv", [ROW], ("a", "b")),
        "found a,b; it has no column of any known format",
    ),
    "empty file": (lambda tmp: spoil(tmp, train_csv=""), "an empty file"),
    "no rows": (lambda tmp: write_csv(tmp / "train.csv", []), "no rows"),
    "no row left": (lambda tmp: write_csv(tmp / "train.csv", [[*ROW[:-1], "?"]]), "no row is left"),
    "binary file": (lambda tmp: spoil(tmp, train_csv=b"PK\x03\x04\x00\x00\xff\xfe" * 999), "not a text file"),
    "UTF-16": (lambda tmp: spoil(tmp, train_csv=(HEADER + LINE).encode("utf-16")), "not a text file"),
    "cut inside a row": (lambda tmp: spoil(tmp, train_csv=HEADER + LINE * 9 + LINE[:40]), "line 11: the file ends in"),
    "cut behind a comma": (
        lambda tmp: spoil(tmp, train_csv=HEADER + LINE * 9 + LINE[:-2]),
        "line 11: the file ends inside a row",
    ),
    "a quote that swallows rows": (
        lambda tmp: spoil(tmp, train_csv=HEADER + LINE * 9 + 'PMC1,Why?,green,"A: red\n' + LINE * 9 + QUOTED_END),
        "line 11 to 21 holds whole rows in a cell",
    ),
    "a near header": (
        lambda tmp: write_csv(tmp / "train.csv", [ROW], (*V1_HEADER[:-1], "Anwser_label")),
        "for PMC-VQA version 1 it lacks Answer_label",
    ),
    "semicolons": (lambda tmp: spoil(tmp, train_csv=(HEADER + LINE).replace(",", ";")), "header of no known format"),
    "a header in Latin-1": (lambda tmp: spoil(tmp, train_csv=b"\xe9," + HEADER.encode()), "header is not UTF-8 text"),
    "a JSON array": (lambda tmp: spoil(tmp, dev_jsonl=f"[{MEDMCQA_LINE}]"), "write one object a line"),
    "a prepared folder": (
        lambda tmp: spoil(tmp, **{"report.json": "{}", "rejected_csv": "file,row"}),
        "is prepared already",
    ),
    "cut inside a quoted cell": (
        lambda tmp: spoil(tmp, train_csv=HEADER + LINE * 9 + 'PMC1_F1.jpg,"Which'),
        "ends inside a quoted cell: is the download complete?",
    ),
    "broken quotes": (lambda tmp: spoil(tmp, train_csv=HEADER + LINE + '"a"b,c\n' + LINE), "line 3: broken CSV"),
    "cut JSON lines": (lambda tmp: spoil(tmp, dev_jsonl=MEDMCQA_LINE + "\n" + MEDMCQA_LINE[:30]), "line 2: the file"),
    "not JSON": (lambda tmp: spoil(tmp, dev_jsonl="question: why\n"), "line 1 is not a JSON object"),
    "JSON of another kind": (lambda tmp: spoil(tmp, dev_jsonl='{"a": 1}\n'), "header of no known format: found a"),
    "two files, same ids": (
        lambda tmp: spoil(tmp, train_csv=HEADER + LINE, train_jsonl=MEDMCQA_LINE),
        "train.csv and train.jsonl would give their rows the same ids",
    ),
    "too many rejected": (
        lambda tmp: write_csv(tmp / "train.csv", [ROW, [*ROW[:-1], "?"]]),
        "label is not one of A, B, C, D (1). The first is train.csv row 2",
    ),
    "a Hub id without version": (lambda tmp: "nobody/PMC-VQA", "needs its version, --format pmc_vqa_v1 or pmc_vqa_v2"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_faulty_file_is_refused_in_one_line_and_leaves_nothing(refused, tmp_path, case):
    write, words = BAD_FILES[case]
    source = tmp_path / "in"
    source.mkdir()
    line = refused("data_prep/prepare.py", "--dataset_path", write(source), "--output_dir", tmp_path / "out/P")
    assert words in line
    assert not (tmp_path / "out").exists()


BAD_ROWS = {
    "too few cells": (ROW[:-1], "row has too few cells"),
    "too many cells": ([*ROW, ""], "row has too many cells"),
    "label outside A to D": ([*ROW[:-1], "E"], "label is not one of A, B, C, D"),
    "empty option": ([*ROW[:4], " B: ", *ROW[5:]], "an option is empty"),
    "empty question": ([ROW[0], " \n ", *ROW[2:]], "question is empty"),
    "equal options": ([*ROW[:4], "B: red", *ROW[5:]], "two options are the same"),
    "answer that is no option": ([*ROW[:2], "violet", *ROW[3:]], "answer text is none of the options"),
    "NUL byte": ([ROW[0], "Which\0 colour?", *ROW[2:]], "row holds a NUL byte"),
    "broken UTF-8": ([ROW[0], "Which \udcff colour?", *ROW[2:]], "row is not UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_faulty_row_is_rejected_and_the_others_are_kept(here, tmp_path, case):
    cells, reason = BAD_ROWS[case]
    rows = [[f"PMC{i}_F1.jpg", *ROW[1:]] for i in range(200)]
    rows[6:6] = [cells]
    with open(tmp_path / "train.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([V1_HEADER, *rows])
    done = here("data_prep/prepare.py", "--dataset_path", tmp_path / "train.csv", "--output_dir", tmp_path / "P")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "P/rejected.csv", encoding="utf-8", newline="") as file:
        (rejected,) = csv.DictReader(file)
    assert (rejected["file"], rejected["row"], rejected["reason"]) == ("train.csv", "7", reason)
    if case not in ("NUL byte", "broken UTF-8"):
        assert json.loads(rejected["cells"]) == cells
    report = read_json(tmp_path / "P/report.json")
    assert (report["read"], report["kept"], report["rejected"]) == (201, 200, 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line is not JSON"),
        ("[1]", "line lacks a column of its format"),
        ('{"question": "Which?"}', "line lacks a column of its format"),
        (MEDMCQA_LINE.replace("Which", "Wh\\u0000ich"), "row holds a NUL byte"),
        (MEDMCQA_LINE.replace("Which", "Wh\\ud800ich"), "row is not UTF-8 text"),
        (MEDMCQA_LINE.replace('"cop": 2', '"cop": null'), "cop is not one of 1, 2, 3, 4"),
    ],
)
def test_a_faulty_line_of_json_is_rejected(here, tmp_path, line, reason):
    lines = [MEDMCQA_LINE.replace("Which", f"Which {i}") for i in range(200)]
    spoil(tmp_path, dev_jsonl="\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    done = here("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "P/rejected.csv", encoding="utf-8", newline="") as file:
        (rejected,) = csv.DictReader(file)
    assert (rejected["row"], rejected["reason"], rejected["cells"]) == ("4", reason, line)


BAD_OPTIONS = {
    "rationales that match nothing": (["--add_reasoning", "why.jsonl"], "no question has a rationale there"),
    "no such rationales": (["--add_reasoning", "nowhere.jsonl"], "cannot be read"),
    "no such column": (["--add_reasoning", "exp"], "no source has such a column"),
    "rationales that are none": (
        ["--add_reasoning", "none.jsonl"],
        "line 2 is not a JSON object with id and reasoning",
    ),
    "an id twice": (["--add_reasoning", "twice.jsonl"], "row 2: the id train-1 stands twice"),
    "Parquet that is none": (["--add_reasoning", "why.parquet"], "not a Parquet file with the columns"),
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
    "orders beyond 24": (["--shuffle_choices", "25"], "four options have 24 orders"),
    "no rows": (["--max_samples", "0"], "give a positive number"),
    "another format": (["--format", "medqa"], "holds no MedQA-USMLE, four options, but test.csv (PMC-VQA version 1)"),
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
    (tmp_path / "why.jsonl").write_text('{"id": "x", "reasoning": "so"}\n')
    (tmp_path / "none.jsonl").write_text('{"id": "x", "reasoning": "so"}\n{"id": "y"}\n')
    (tmp_path / "dev.jsonl").write_text('{"id": "dev-1", "reasoning": "so"}\n\n')
    (tmp_path / "twice.jsonl").write_text('{"id": "train-1", "reasoning": "so"}\n' * 2)
    (tmp_path / "why.parquet").write_text("no")
    places = {"TOKENIZER": bare, "STOCK": stock}
    files = {file.name: file for file in tmp_path.iterdir() if file.is_file()}
    options = [places.get(word, files.get(word, word)) for word in options]
    line = refused("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", tmp_path / "out/P", *options)
    assert words in line
    assert not (tmp_path / "out").exists()


# Whole or not at all


def test_an_existing_folder_is_kept_unless_told_otherwise(refused, prepared, sample):
    before = (prepared / "report.json").read_bytes()
    line = refused("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", prepared)
    assert "--overwrite" in line
    assert (prepared / "report.json").read_bytes() == before


def test_overwriting_takes_no_folder_that_is_not_ours(refused, sample, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    line = refused("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", tmp_path, "--overwrite")
    assert "holds thesis.txt" in line
    assert (tmp_path / "thesis.txt").exists()


def test_overwriting_never_takes_the_sources(refused, sample, tmp_path):
    import shutil

    shutil.copytree(sample, tmp_path / "P/raw")
    line = refused("data_prep/prepare.py", "--dataset_path", tmp_path / "P/raw", "--output_dir", tmp_path / "P",
                   "--overwrite")  # fmt: skip
    assert "holds raw" in line
    assert (tmp_path / "P/raw/train.csv").exists()


def test_overwriting_a_link_replaces_what_it_points_to(here, sample, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "P").symlink_to(tmp_path / "disk")
    done = here("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", tmp_path / "P", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "P").is_symlink()
    assert (tmp_path / "disk/report.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P", "disk"]


def test_an_overwrite_that_fails_keeps_the_old_folder(refused, here, tmp_path):
    file = write_csv(tmp_path / "train.csv", [[f"PMC{i}_F1.jpg", *ROW[1:]] for i in range(20)])
    words = ("data_prep/prepare.py", "--dataset_path", file, "--output_dir", tmp_path / "P")
    here(*words)
    before = (tmp_path / "P/report.json").read_bytes()
    write_csv(file, [[*ROW[:-1], "?"]])
    refused(*words, "--overwrite")
    assert (tmp_path / "P/report.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P", "train.csv"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_preparation_leaves_nothing(sample, tmp_path, sent):
    """The signal comes when the first rows have been read and written, however fast or slow the machine."""
    interrupted = "import os, pathlib, runpy, sys, tqdm; _, out, sent, *sys.argv = sys.argv; "
    interrupted += "begun = lambda: print('BEGUN', *pathlib.Path(out).parent.glob('.P.*.tmp/questions.arrow')); "
    interrupted += "tqdm.tqdm.update = lambda *_: (begun(), os.kill(os.getpid(), int(sent))); "
    interrupted += "runpy.run_path(sys.argv[0], run_name='__main__')"
    out = tmp_path / "out/P"
    words = ["data_prep/prepare.py", "--dataset_path", str(sample), "--output_dir", str(out), "--num_proc", "2"]
    done = subprocess.run(
        [sys.executable, "-c", interrupted, str(out), str(int(sent)), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (130, 143), done.stderr
    assert "questions.arrow" in done.stdout
    assert "Traceback" not in done.stderr
    assert not out.parent.exists()


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path, sample):
    # A limit on the size of files answers a write as a full disk does.
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    limited += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = ["data_prep/prepare.py", "--dataset_path", str(sample), "--output_dir", str(tmp_path / "out/P")]
    done = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# To look at


def test_check_tries_everything_and_keeps_nothing(command, tmp_path):
    done = command("data_prep/prepare.py", "--check", TMPDIR=str(tmp_path), HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "OK"
    assert "Read 20 rows: 20 kept" in done.stdout  # ten of train.csv, ten of test.csv
    assert not list(tmp_path.iterdir())


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


def test_the_page_shows_cells_as_text(here, tmp_path):
    rows = [[f"PMC{i}_F1.jpg", "<b>Which</b> & why?", *ROW[2:]] for i in range(20)]
    write_csv(tmp_path / "train.csv", rows)
    here("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P")
    page = (tmp_path / "P/report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Which&lt;/b&gt; &amp; why?" in page
    assert "<b>Which" not in page


def test_floors_of_the_report_are_those_of_evaluation(prepared):
    from datasets import load_dataset

    from sft.evaluation.metrics import floors

    report = read_json(prepared / "report.json")
    for split, rows in load_dataset(str(prepared)).items():
        assert report["measures"][split]["floors"] == pytest.approx(floors(rows.to_list()))


def test_examples_show_the_raw_row_and_what_is_trained(prepare, sample, smollm2_tokenizer, embedded_model):
    options = ("--tokenizer", embedded_model, "--chat_template", "recipes/templates/smollm2.jinja")
    folder = prepare(*options)
    shown = read_json(folder / "examples.json")
    assert {split: len(rows) for split, rows in shown.items()} == {"train": 3, "dev": 3, "test": 3}
    for split in shown:
        with open(sample / f"{'test' if split == 'test' else 'train'}.csv", encoding="utf-8", newline="") as file:
            raw = list(csv.DictReader(file))
        for row in shown[split]:
            assert row["raw"] == raw[int(row["id"].split("-")[1]) - 1]
            trained = [id for id, mask in zip(row["input_ids"], row["loss_mask"], strict=True) if mask]
            assert smollm2_tokenizer.decode(trained).startswith(row["completion"][0]["content"])
            assert row["tokens"] == len(row["input_ids"])
            assert row["text"] == smollm2_tokenizer.decode(row["input_ids"])
    report = read_json(folder / "report.json")
    assert report["length_unit"] == "tokens"


def test_examples_lead_back_to_the_raw_row_whatever_the_file_is_called_and_the_order_of_the_options(here, tmp_path):
    rows = [[f"PMC{i}_F1.jpg", f"Q{i}?", *ROW[2:]] for i in range(20)]
    write_csv(tmp_path / "train #2-1.csv", rows)
    here(
        *("data_prep/prepare.py", "--dataset_path", tmp_path, "--output_dir", tmp_path / "P"),
        *("--shuffle_choices", 2, "--dev_size", 2),
    )
    shown = read_json(tmp_path / "P/examples.json")
    assert {split: len(examples) for split, examples in shown.items()} == {"train": 3, "dev": 2}
    for example in (example for examples in shown.values() for example in examples):
        assert list(example["raw"].values()) == rows[int(example["question"][1:-1])]


def test_nothing_tells_of_the_machine_it_was_made_on(prepare, sample, embedded_model, tmp_path):
    (tmp_path / "why.jsonl").write_text('{"id": "train-1", "reasoning": "so"}\n')
    template = Path("recipes/templates/smollm2.jinja").resolve()
    folders = (
        prepare("--pretokenize", embedded_model.resolve(), "--chat_template", template),
        prepare("--add_reasoning", tmp_path / "why.jsonl"),
    )
    for file in (file for folder in folders for file in folder.rglob("*.*")):
        if file.is_file():
            content = file.read_bytes()
            for place in (sample, tmp_path, Path.cwd(), Path.home()):
                assert str(place).encode() not in content, file
