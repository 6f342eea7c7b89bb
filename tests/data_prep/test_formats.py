"""Each format's reader: from a row as it is published to the one internal record."""

import csv
import json

import pytest

from data_prep.formats import FORMATS, V1_HEADER, V2_HEADER, detect, split_named
from data_prep.questions import RejectedRow

PLACE = ("train-7", "train.csv", 7)
V1_CELLS = ["PMC123_F1.jpg", "Which colour?", "green", "A: red", "B: green", "C: blue", "D: black", "B"]
V2_CELLS = ["5", "PMC9_F1_2.jpg", "A leaf.", "Which?", "A: red", "B: green", "C: blue", "D: black", "B", "test"]
V1 = dict(zip(V1_HEADER, V1_CELLS, strict=True))
V2 = dict(zip(V2_HEADER, V2_CELLS, strict=True))
MEDMCQA = {"question": "Which?", "opa": "red", "opb": "green", "opc": "blue", "opd": "black", "cop": "2", "exp": ""}
MEDQA = {
    "question": "Which?",
    "answer": "green",
    "answer_idx": "B",
    "options": {"A": "red", "B": "green", "C": "blue", "D": "black"},
    "meta_info": "step1",
}
SAMPLES = {"pmc_vqa_v1": V1, "pmc_vqa_v2": V2, "medmcqa": MEDMCQA, "medqa": MEDQA}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_the_same_record(name):
    question = FORMATS[name].read(SAMPLES[name], PLACE, "train")
    assert question[:4] == (*PLACE, "train")
    assert question.choices == ("red", "green", "blue", "black")
    assert question.choices[question.gold] == "green"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_detected_by_its_columns(name):
    assert detect([*SAMPLES[name], "another column"]) == name
    assert detect(list(SAMPLES[name])[1:-2]) is None


def test_article_and_caption_come_with_the_question():
    v1, v2 = FORMATS["pmc_vqa_v1"].read(V1, PLACE, ""), FORMATS["pmc_vqa_v2"].read(V2, PLACE, "")
    assert (v1.article, v1.caption) == ("PMC123", "")
    assert (v2.article, v2.caption) == ("PMC9", "A leaf.")
    assert FORMATS["pmc_vqa_v1"].read(V1 | {"Figure_path": ""}, PLACE, "").article == ""


def test_the_split_column_decides_where_the_name_does_not():
    read = FORMATS["pmc_vqa_v2"].read
    assert read(V2, PLACE, "").split == "test"
    assert read(V2, PLACE, "train").split == "train"
    with pytest.raises(RejectedRow, match="split"):
        read(V2 | {"split": "?"}, PLACE, "")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            ("train", "train"),
            ("train_2", "train"),
            ("test_clean", "test_clean"),
            ("dev", "dev"),
            ("validation", "dev"),
        ),
        *((name, "test") for name in ("test_2", "phrases_no_exclude_test", "test2", "test (1)", "PMC VQA test")),
        *(("latest_rows", ""), ("v1_rows", "")),
    ],
)
def test_a_name_tells_the_split(name, split):
    assert split_named(name) == split


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        *(("medmcqa", {"cop": number}, "cop is not one of") for number in ("0", "12", "")),
        ("medmcqa", {"opb": " "}, "option is empty"),
        ("medqa", {"answer_idx": "C"}, "name different options"),
        ("medqa", {"answer": "violet"}, "equals no option"),
        ("medqa", {"options": {"A": "red"}}, "options are not A, B, C, D"),
        ("medqa", {"options": "red"}, "options are not A, B, C, D"),
        ("pmc_vqa_v2", {"Answer": "green"}, "label is not one of"),
    ],
)
def test_rows_that_contradict_themselves_are_rejected(name, change, reason):
    with pytest.raises(RejectedRow, match=reason):
        FORMATS[name].read(SAMPLES[name] | change, PLACE, "train")


def test_medmcqa_classes_are_read_by_name_too():
    assert FORMATS["medmcqa"].read(MEDMCQA | {"cop": "b"}, PLACE, "train").gold == 1


def read_or_reason(name, row):
    """The question of a row, or the reason of its rejection."""
    try:
        return FORMATS[name].read(row, PLACE, "train")
    except RejectedRow as reason:
        return str(reason)


def test_real_odd_rows_come_out_as_a_reader_would_have_them(shared_rows):
    with open(shared_rows / "v1_quirks.csv", encoding="utf-8", newline="") as file:
        read = {row["Figure_path"]: read_or_reason("pmc_vqa_v1", row) for row in csv.DictReader(file)}
    assert read.pop("PMC1421418_F5.jpg") == "label is not one of A, B, C, D"
    assert {figure: question.choices[question.gold] for figure, question in read.items()} == {
        "PMC1064097_F1.jpg": "Focal uptake pattern",
        "PMC1976316_F1.jpg": "N/A",
        "PMC2660287_F5.jpg": "Solitary level expression of signal S",
        "PMC3844328_F3.jpg": "Non-enhanced area",
    }


def test_real_medmcqa_rows_are_kept(shared_rows):
    reasons = []
    with open(shared_rows.parent / "medmcqa/dev.jsonl", encoding="utf-8") as lines:
        for line in lines:
            row = {key: "" if value is None else str(value) for key, value in json.loads(line).items()}
            question = read_or_reason("medmcqa", row)
            if isinstance(question, str):
                reasons.append(question)
            else:
                assert question.gold == int(row["cop"]) - 1
    assert reasons == ["two options are the same"] * 21  # found by comparing the option columns alone
