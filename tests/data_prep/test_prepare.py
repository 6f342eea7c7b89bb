"""Preparation as a user meets it: from CSV files to a folder that `load_dataset` opens, or to one line of refusal."""

import csv
import json
from pathlib import Path

import pytest

from data_prep.prepare import hold_out_dev
from data_prep.questions import V1_HEADER, Question

ROW = ["PMC1_F1.jpg", "Which colour?", "green", "A: red", "B: green", "C: blue", "D: black", "B"]


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
    assert report["rejected"] == len(rejected) == 4
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


def test_dev_takes_whole_articles_up_to_its_size():
    questions = [
        Question(f"train-{i}", "train.csv", i, "", f"PMC{i // 3}" if i < 90 else "", "Q?", ("a", "b"), 0)
        for i in range(100)
    ]
    train, dev = hold_out_dev(questions, dev_size=8, seed=0)
    assert len(train) + len(dev) == 100
    assert 6 <= len(dev) <= 8
    assert not {q.article for q in dev} & {q.article for q in train} - {""}
    assert len(hold_out_dev(questions, dev_size=2000, seed=0)[1]) <= 10
    assert hold_out_dev(questions, dev_size=0, seed=0)[1] == []


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


def test_same_input_gives_the_same_bytes(prepared, prepare):
    again = prepare()
    for file in sorted(prepared.rglob("*.*")):
        assert (again / file.relative_to(prepared)).read_bytes() == file.read_bytes(), file


def test_a_folder_prepared_anew_is_not_read_from_an_old_cache(command, sample, tmp_path):
    from datasets import load_dataset

    answers = []
    for answer_format in ("letter", "text"):
        command(
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


def test_exact_duplicates_are_counted_and_kept_once(command, tmp_path):
    file = write_csv(tmp_path / "train.csv", [ROW, ["PMC2_F1.jpg", *ROW[1:]], ROW])
    command("data_prep/prepare.py", "--dataset_path", file, "--output_dir", tmp_path / "P")
    report = json.loads((tmp_path / "P/report.json").read_text())
    assert (report["read"], report["kept"], report["duplicates"]) == (3, 2, 1)


def test_real_rows_are_kept(command, shared_rows, tmp_path):
    done = command(
        *("data_prep/prepare.py", "--dataset_path", shared_rows / "v1_rows.csv", "--output_dir", tmp_path / "P")
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "P/report.json").read_text())
    assert report["read"] == 250
    assert report["kept"] >= 245


def bad_inputs() -> dict[str, tuple]:
    """name → (function that writes the input and returns the path to prepare, words that the refusal must hold)."""
    return {
        "missing folder": (lambda tmp: tmp / "nowhere", "nowhere does not exist"),
        "folder without CSV": (lambda tmp: tmp, "holds no .csv file"),
        "wrong header": (lambda tmp: write_csv(tmp / "train.csv", [ROW], ("a", "b")), "version 1 header"),
        "empty file": (lambda tmp: [(tmp / "train.csv").touch(), tmp][1], "an empty file"),
        "no rows": (lambda tmp: write_csv(tmp / "train.csv", []), "no rows"),
        "no row left": (lambda tmp: write_csv(tmp / "train.csv", [[*ROW[:-1], "?"]]), "no row is left"),
        "binary": (lambda tmp: [(tmp / "train.csv").write_bytes(b"\xff\xfe\x00"), tmp][1], "not UTF-8"),
        "too many rejected": (
            lambda tmp: write_csv(tmp / "train.csv", [ROW, [*ROW[:-1], "?"]]),
            "label is not one of A, B, C, D (1)",
        ),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(refused, tmp_path, case):
    write, words = bad_inputs()[case]
    source = tmp_path / "in"
    source.mkdir()
    line = refused("data_prep/prepare.py", "--dataset_path", write(source), "--output_dir", tmp_path / "out/P")
    assert words in line
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept_unless_told_otherwise(refused, prepared, sample):
    before = (prepared / "report.json").read_bytes()
    line = refused("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", prepared)
    assert "--overwrite" in line
    assert (prepared / "report.json").read_bytes() == before
