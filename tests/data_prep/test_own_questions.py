"""Questions of one's own, from any table to a prepared folder, by --columns or a format file."""

import csv
import json

import pytest

from sft.common.command import read_json

TEXTS = ("red", "green", "blue", "black", "white", "grey", "pink", "brown", "violet", "orange")
PREPARE = "data_prep/prepare.py"


def questions(count, options=5):
    """Rows of a user's own: stem, options, the letter of the right one, an id and the paper that it is from."""
    rows = []
    for number in range(count):
        rows.append(
            {
                **{
                    "Stem": f"Which is {TEXTS[number % options]}, of case {number}?",
                    "Label": "ABCDEFGHIJ"[number % options],
                },
                **{f"Option {letter}": text for letter, text in zip("ABCDEFGHIJ", TEXTS[:options], strict=False)},
                **{
                    "Number": f"q{number}",
                    "Paper": f"P{number // 4}",
                    "Why": f"Because of {number}.",
                    "Fold": "train",
                },
            }
        )
    return rows


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


COLUMNS = "question=stem, options=option_a,option_b,option_c,option_d,option_e, answer=label"


def splits_of(folder):
    from datasets import load_dataset

    return load_dataset(str(folder))


def test_columns_of_ones_own_are_mapped_and_shown_before_anything_is_written(succeeds, tmp_path):
    write(tmp_path / "in/mine.csv", questions(60))
    words = (PREPARE, "--dataset_path", tmp_path / "in", "--output_dir", tmp_path / "P")
    columns = f"{COLUMNS}, id=number, article=paper, rationale=why"
    printed = succeeds(*words, "--columns", columns, "--dev_size", 6).stdout
    understood = printed[: printed.index("Read 60 rows")].splitlines()
    assert understood[0] == "mine.csv: own questions, CSV, commas, UTF-8, train"
    assert "question = Stem" in understood[1] or "question = stem" in understood[1]
    assert "answer = label (letter)" in understood[1]
    assert understood[2:4] == [
        "  row 1: Which is red, of case 0?",
        "      *A red | B green | C blue | D black | E white",
    ]
    assert sum(line.startswith("  row") for line in understood) == 3
    train, dev = (splits_of(tmp_path / "P")[split] for split in ("train", "dev"))
    row = train[0]
    assert row["id"].startswith("mine-q")
    assert row["choices"][row["gold"]] in row["question"]
    assert row["completion"][0]["reasoning_content"].startswith("Because of")
    assert "E. white" in row["prompt"][0]["content"]
    assert not set(train["article"]) & set(dev["article"])  # questions of a paper stay together
    assert read_json(tmp_path / "P/report.json")["rationales"] == 60


def test_a_format_file_does_the_same_as_columns_and_can_be_named_by_others(succeeds, tmp_path):
    write(tmp_path / "in/mine.csv", questions(40))
    options = "[Option A, Option B, Option C, Option D, Option E]"
    (tmp_path / "clinic.yaml").write_text(
        f"title: Questions of a clinic\nlicence: CC0\nquestion: Stem\noptions: {options}\nanswer: Label\n"
    )
    words = (PREPARE, "--dataset_path", tmp_path / "in", "--output_dir")
    succeeds(*words, tmp_path / "P", "--columns", COLUMNS)
    succeeds(*words, tmp_path / "Q", "--format", tmp_path / "clinic.yaml")
    assert [file.name for file in (tmp_path / "P").glob("*/*.parquet")] == [
        file.name for file in (tmp_path / "Q").glob("*/*.parquet")
    ]
    report = read_json(tmp_path / "Q/report.json")
    assert report["options"]["format"] == "clinic.yaml"
    source = report["sources"]["mine.csv"]
    assert source["title"] == "Questions of a clinic"
    assert source["columns"].startswith("question = Stem; options = Option A, Option B")
    card = (tmp_path / "Q/README.md").read_text()
    assert "Questions of a clinic" in card
    assert "CC0" in card


def test_a_split_column_divides_the_rows_and_must_not_contradict_the_name_of_the_file(succeeds, refused, tmp_path):
    rows = questions(60)
    for number, row in enumerate(rows):
        row["Fold"] = ("train", "validation", "test")[number % 3]
    words = (PREPARE, "--columns", f"{COLUMNS}, split=fold", "--output_dir", tmp_path / "P", "--dataset_path")
    printed = succeeds(*words, write(tmp_path / "in/mine.csv", rows)).stdout
    assert "mine.csv: own questions, CSV, commas, UTF-8, split by fold" in printed
    assert read_json(tmp_path / "P/report.json")["splits"] == {"train": 20, "dev": 20, "test": 20}
    line = refused(*words[:-2], tmp_path / "Q", "--dataset_path", write(tmp_path / "in2/train.csv", rows))
    assert "the file's name and the split column name different splits (40)" in line
    assert "rename the file" in line


def test_an_id_that_stands_twice_is_refused(refused, tmp_path):
    rows = questions(20)
    rows[7]["Number"] = rows[3]["Number"]
    words = (PREPARE, "--columns", f"{COLUMNS}, id=number", "--output_dir", tmp_path / "P", "--dataset_path")
    assert "the id mine-q3 stands in several rows (1 such ids)" in refused(*words, write(tmp_path / "mine.csv", rows))
    assert not (tmp_path / "P").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--columns", "question=stem, options=o, answer=label"], "it lacks o: rename or add what is missing"),
        (["--columns", "question=stem, answer=label"], "its last lines are not options with the letters A, B, C"),
        (["--columns", COLUMNS + ", answer_is=number from 0"], "label is not one of"),
        (["--columns", COLUMNS.replace("answer=label", "answer=paper")], "label is not one of A, B, C, D, E"),
        (["--columns", COLUMNS.replace(", answer=label", "")], "To do: name the column of the answers (answer=label)"),
        (["--format", "nowhere.yaml"], "--format nowhere.yaml cannot be read"),
        ([], "say which column holds what: --columns"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(refused, tmp_path, words, reason):
    write(tmp_path / "in/mine.csv", questions(20))
    if "number from 0" in str(words):
        rows = [row | {"Label": "7"} for row in questions(20)]
        write(tmp_path / "in/mine.csv", rows)
        reason = "label is not one of 0, 1, 2, 3, 4"
    line = refused(PREPARE, "--dataset_path", tmp_path / "in", "--output_dir", tmp_path / "P", *words)
    assert reason in line
    assert not (tmp_path / "P").exists()


def test_every_row_of_medmcqas_dev_split_can_be_kept_for_evaluation(succeeds, shared_rows, tmp_path):
    """4,183 rows, as lm-evaluation-harness asks; 21 of them have the same option twice."""
    words = (PREPARE, "--dataset_path", shared_rows.parent / "medmcqa", "--output_dir", tmp_path / "P")
    printed = succeeds(*words, "--keep_for_evaluation").stdout
    report = read_json(tmp_path / "P/report.json")
    assert (report["read"], report["splits"]) == (4183, {"dev": 4183})
    assert report["kept_for_evaluation"] == 21
    assert "21" in printed


def test_a_split_whose_answers_are_kept_back_is_left_out_in_words(succeeds, refused, tmp_path):
    row = {"question": "Which?", "opa": "1 mg", "opb": "2 mg", "opc": "3 mg", "opd": "4 mg"}
    for name, cops in (("train", [1, 2, 3, 4] * 10), ("test", [-1] * 20)):
        lines = [json.dumps(row | {"question": f"Which {name} {i}?", "cop": cop}) for i, cop in enumerate(cops)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    words = (PREPARE, "--output_dir", tmp_path / "out/P", "--dataset_path")
    printed = succeeds(*words, tmp_path).stdout
    assert "Left out: test.jsonl: no row has an answer in cop, which MedMCQA publishes without answers" in printed
    assert set(read_json(tmp_path / "out/P/report.json")["sources"]) == {"train.jsonl"}
    words = (PREPARE, "--output_dir", tmp_path / "out/Q", "--dataset_path")
    assert "no row has an answer in cop: leave this file or split out" in refused(*words, tmp_path / "test.jsonl")


def test_a_small_file_is_counted_as_the_others_of_its_format(succeeds, refused, tmp_path):
    row = {"subject": "anatomy", "choices": ["w", "x", "y", "z"]}
    for name, answers in (("test", [0, 1, 2, 3] * 5), ("dev", [1, 2, 3, 1, 2])):
        lines = [json.dumps(row | {"question": f"Which {name} {i}?", "answer": a}) for i, a in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    words = (PREPARE, "--output_dir", tmp_path / "out/P", "--dataset_path")
    assert "dev.jsonl: answer is 0 in 0 of 5 rows" in refused(*words, tmp_path / "dev.jsonl")
    succeeds(*words, tmp_path)
    assert splits_of(tmp_path / "out/P")["dev"]["gold"] == [1, 2, 3, 1, 2]


def test_a_key_that_is_not_needed_may_be_missing_in_a_line(succeeds, tmp_path):
    lines = [{"q": f"Which {i}?", "o": TEXTS[:3], "a": "ABC"[i % 3]} | {"why": "So."} for i in range(40)]
    for line in lines[1::2]:
        del line["why"]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (PREPARE, "--dataset_path", tmp_path / "mine.jsonl", "--output_dir", tmp_path / "P")
    succeeds(*words, "--columns", "question=q, options=o, answer=a, rationale=why")
    report = read_json(tmp_path / "P/report.json")
    assert (report["kept"], report["rejected"], report["rationales"]) == (40, 0, 20)


def test_a_file_names_its_split_before_its_folder_does(succeeds, tmp_path):
    for name, count in (("train", 30), ("dev", 10)):
        write(tmp_path / f"bank/medical_test/{name}.csv", questions(count))
    words = (PREPARE, "--dataset_path", tmp_path / "bank", "--output_dir", tmp_path / "P", "--columns", COLUMNS)
    succeeds(*words)
    assert read_json(tmp_path / "P/report.json")["splits"] == {"train": 30, "dev": 10}


def test_questions_of_two_to_ten_options_stand_in_one_set(succeeds, tmp_path):
    lines = []
    for number in range(90):
        options = TEXTS[: 2 + number % 9]
        lines.append(json.dumps({"q": f"Case {number}?", "o": options, "a": options[number % len(options)]}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    words = (PREPARE, "--dataset_path", tmp_path / "mine.jsonl", "--output_dir", tmp_path / "P", "--dev_size", 0)
    succeeds(*words, "--columns", "question=q, options=o, answer=a", "--shuffle_choices", 2)
    rows = splits_of(tmp_path / "P")["train"]
    assert len(rows) == 180
    assert {len(row["choices"]) for row in rows} == set(range(2, 11))
    for row in rows:
        number = int(row["question"][5:-1])
        assert sorted(row["choices"]) == sorted(TEXTS[: 2 + number % 9])
        assert row["choices"][row["gold"]] == TEXTS[number % len(row["choices"])]
        assert row["completion"][0]["content"] == f"{'ABCDEFGHIJ'[row['gold']]}. {row['choices'][row['gold']]}"
