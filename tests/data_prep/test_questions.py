"""Cleaning and reconciling single rows."""

import csv

import pytest

from data_prep.questions import RejectedRow, clean_choice, read_v1_row, reconcile


@pytest.mark.parametrize(
    ("cell", "letter", "text"),
    [
        (" A:Diffuse uptake pattern ", "A", "Diffuse uptake pattern"),
        (" A: Green ", "A", "Green"),
        ("B:\u00a0MRI", "B", "MRI"),
        (" A: N/A ", "A", "N/A"),
        ("None", None, "None"),
        ("C: 12", "C", "12"),
        (" 'A:One patient ", "A", "One patient"),
        (" D:Four patients ' ", "D", "Four patients"),
        ("D: the 5' end", "D", "the 5' end"),
        ('B: the "double bubble" sign', "B", 'the "double bubble" sign'),
        ("A: first line\nsecond line", "A", "first line second line"),
        ("A: T: thyroid gland, A: common carotid artery", "A", "T: thyroid gland, A: common carotid artery"),
        ("T: thyroid gland", None, "T: thyroid gland"),
        (" B: ", "B", ""),
    ],
)
def test_choice_loses_its_printed_letter_and_nothing_else(cell, letter, text):
    assert clean_choice(cell) == (letter, text)


CHOICES = ("red", "green", "blue", "A: violet")


@pytest.mark.parametrize(
    ("label", "answer", "printed", "gold"),
    [
        ("B", "green", "ABCD", 1),
        (" B ", " Green. ", "ABCD", 1),
        ("D", "violet", "ABCD", 3),  # the answer lost an inner mark
        ("C", "green", "ACCD", 1),  # columns shifted: text and printed letter agree against the position
        ("A", "red", "ACDD", 0),  # other letters are misprinted, the gold one is not
    ],
)
def test_sources_that_agree_name_the_gold_option(label, answer, printed, gold):
    assert reconcile(label, answer, printed, CHOICES) == gold


@pytest.mark.parametrize(
    ("label", "answer", "reason"),
    [
        ("'", "green", "label is not one of"),
        ("E", "green", "label is not one of"),
        ("AB", "green", "label is not one of"),
        ("", "green", "label is not one of"),
        ("A", "green", "name different options"),
        ("A", "yellow", "none of the options"),
        ("A", "", "none of the options"),
    ],
)
def test_sources_that_disagree_are_rejected_with_the_reason(label, answer, reason):
    with pytest.raises(RejectedRow, match=reason):
        reconcile(label, answer, "ABCD", CHOICES)


ROW = ["PMC123_F1.jpg", "Which colour?", "green", "A: red", "B: green", "C: blue", "D: black", "B"]


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [(1, " \n ", "question is empty"), (3, "A:", "option is empty"), (3, "A: green", "two options are the same")],
)
def test_faulty_cells_are_rejected_with_the_reason(column, cell, reason):
    with pytest.raises(RejectedRow, match=reason):
        read_v1_row([*ROW[:column], cell, *ROW[column + 1 :]], "train.csv", 1)


@pytest.mark.parametrize("cells", [ROW[:-1], [*ROW, ""], []])
def test_rows_with_another_number_of_cells_are_rejected(cells):
    with pytest.raises(RejectedRow, match="8 cells"):
        read_v1_row(cells, "train.csv", 1)


def test_a_question_knows_where_it_came_from():
    question = read_v1_row(ROW, "train.csv", 7)
    assert (question.id, question.source, question.row, question.article) == ("train-7", "train.csv", 7, "PMC123")
    assert read_v1_row(["", *ROW[1:]], "train.csv", 7).article == ""


def test_real_odd_rows_come_out_as_a_reader_would_have_them(shared_rows):
    with open(shared_rows / "v1_quirks.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    read = {}
    for row in rows:
        try:
            question = read_v1_row(row, "v1_quirks.csv", 1)
            read[row[0]] = question.choices[question.gold]
        except RejectedRow as reason:
            read[row[0]] = str(reason)
    assert read == {
        "PMC1064097_F1.jpg": "Focal uptake pattern",
        "PMC1421418_F5.jpg": "label is not one of A, B, C, D",
        "PMC1976316_F1.jpg": "N/A",
        "PMC2660287_F5.jpg": "Solitary level expression of signal S",
        "PMC3844328_F3.jpg": "Non-enhanced area",
    }
