"""Each format's reader: from a row as it is published to the one internal record."""

import csv
import json
import re
from collections import Counter

import pytest

from data_prep.formats import FORMATS, V1_HEADER, V2_HEADER, detect, fault_of_cop, split_named
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
        *(("medmcqa", {"cop": number}, "cop is not one of") for number in ("0", "12", "", "-1", "2.5")),
        ("medmcqa", {"opb": " "}, "option is empty"),
        ("medqa", {"answer_idx": "C"}, "name different options"),
        ("medqa", {"answer": "violet"}, "equals no option"),
        ("medqa", {"options": MEDQA["options"] | {"E": "pink"}}, "options are not A, B, C, D, but an object of 5"),
        ("medqa", {"options": "{'A': 'red'}"}, "options are not A, B, C, D, but text"),
        ("medqa", {"options": [{"key": "A", "value": "red"}]}, "options are not A, B, C, D, but a list"),
        ("medqa", {"options": MEDQA["options"] | {"C": []}}, "an option is not text"),
        ("pmc_vqa_v2", {"Answer": "green"}, "label is not one of"),
    ],
)
def test_rows_that_contradict_themselves_are_rejected(name, change, reason):
    with pytest.raises(RejectedRow, match=reason):
        FORMATS[name].read(SAMPLES[name] | change, PLACE, "train")


@pytest.mark.parametrize("cop", ["b", "B", "2", " 2.0 "])
def test_medmcqa_numbers_may_be_written_as_decimals_or_letters(cop):
    assert FORMATS["medmcqa"].read(MEDMCQA | {"cop": cop}, PLACE, "train").gold == 1


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ({"0": 2, "1": 3, "2": 1}, r"counts from 0 \(2 of 6 are 0, none is 4\)"),
        ({"0.0": 2, "1.0": 300, "": 7}, "counts from 0"),
        ({"0": 1, "3": 5, "-1": 90}, "counts from 0"),
        ({"0": 1, "4": 2, "1": 90}, "0 in 1 rows and 4 in 2, so some rows count from 0 and some from 1"),
        ({"1": 99, "2": 99, "3": 99}, "never 0 and never 4 in 297 rows, so it may count from 0 or from 1"),
        ({"1": 50, "2": 60, "b": 3}, "never 0 and never 4"),
        ({"-1": 5, "": 4}, "no row has an answer in cop"),
        ({"1": 99, "2": 99, "3": 99, "4": 1}, None),
        ({"1.0": 99, "4.0": 1, "-1": 3}, None),
        ({"1": 5, "2": 5, "3": 5}, None),  # too few rows to be odd
        ({"a": 99, "b": 99, "c": 99}, None),
        ({}, None),
    ],
)
def test_a_column_of_medmcqa_answers_is_judged_as_a_whole(cells, fault):
    found = fault_of_cop(Counter(cells))
    assert re.search(fault, found) if fault else found == ""


def with_options(row, letters, form):
    """`row` with its four options marked by these letters in a form such as "{}) ", and its answer text too."""
    texts = ("red", "green", "blue", "black")
    marked = {
        f"Choice {at}": form.format(letter) + text for at, letter, text in zip("ABCD", letters, texts, strict=True)
    }
    return row | marked | ({} if row is V2 else {"Answer": marked["Choice B"]})


LETTER_FORMS = ("{}: ", "{}) ", "({}) ", "[{}] ", "{}. ", "{}.", "{}\uff1a", "\uff08{}\uff09", "{} - ", "Option {}: ")


@pytest.mark.parametrize("form", LETTER_FORMS)
@pytest.mark.parametrize("name", ["pmc_vqa_v1", "pmc_vqa_v2"])
@pytest.mark.parametrize("in_case", [str.upper, str.lower])
def test_a_printed_letter_of_another_form_is_read_as_one(name, form, in_case):
    row = SAMPLES[name]
    question = read_or_reason(name, with_options(row, in_case("ABCD"), form))
    assert (question.choices, question.gold) == (("red", "green", "blue", "black"), 1)
    # In another order than the columns, the text decides in version 1; in version 2 nothing is guessed.
    shifted = read_or_reason(name, with_options(row | {"Answer_label": "C"}, in_case("ACBD"), form))
    other = read_or_reason(name, with_options(row, in_case("BACD"), form))
    if name == "pmc_vqa_v1":
        assert (shifted.gold, shifted.choices[1], other.gold) == (1, "green", 1)
    else:
        assert other == "label and printed letter name different options"


@pytest.mark.parametrize(
    "options",
    [
        ("A. fumigatus", "Candida", "Mucor", "Rhizopus"),
        ("A. fumigatus", "C. albicans", "C. glabrata", "B. fragilis"),
        ("A-V block", "B-cells", "C-fibres", "D-dimers"),
        ("(A)", "(B)", "(C)", "(D)"),
    ],
)
def test_options_that_only_begin_like_a_letter_keep_their_text(options):
    row = V2 | {f"Choice {letter}": text for letter, text in zip("ABCD", options, strict=True)}
    assert read_or_reason("pmc_vqa_v2", row).choices == options


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
