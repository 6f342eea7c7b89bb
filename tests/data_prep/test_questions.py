"""Cleaning and reconciling single rows."""

import pytest

from data_prep.questions import (
    RejectedRow,
    check_text,
    fingerprint,
    matches_of,
    number_of,
    position_of,
    reconcile,
    reconcile_without_text,
)
from sft.common.prompts import clean_choice


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
    assert reconcile(position_of(label, 4), answer, printed, CHOICES) == gold


def test_signs_tell_options_apart():
    for one, other in (("↑ TSH", "↓ TSH"), ("≥ 5", "≤ 5"), ("−1", "+1"), ("5 µm", "5 m"), ("5' end", "5 end")):
        choices = (one, other, "x", "y")
        assert reconcile(0, one, "ABCD", choices) == 0
        with pytest.raises(RejectedRow, match="name different options"):
            reconcile(1, one, "ABCD", choices)


@pytest.mark.parametrize(
    ("label", "answer", "reason"),
    [
        *((label, "green", "label is not one of A, B, C, D$") for label in ("'", "E", "AB", "", "ab", "option")),
        *((label, "green", "label is not one of A, B, C, D, but a number") for label in ("0", "12", "1.0")),
        ("A", "green", "name different options"),
        ("A", "yellow", "equals no option"),
        ("A", "", "equals no option"),
    ],
)
def test_sources_that_disagree_are_rejected_with_the_reason(label, answer, reason):
    with pytest.raises(RejectedRow, match=reason):
        reconcile(position_of(label, 4), answer, "ABCD", CHOICES)


@pytest.mark.parametrize(
    ("label", "printed", "gold"),
    [("B", "ABCD", 1), (" B ", "ABCD", 1), ("C", (None, None, None, None), 2), ("A", "ACDD", 0)],
)
def test_a_label_alone_names_the_option_that_carries_it(label, printed, gold):
    assert reconcile_without_text(position_of(label, 4), tuple(printed)) == gold


@pytest.mark.parametrize(
    ("label", "printed", "reason"),
    [
        ("C", "ACCD", "name different options"),  # two options carry the label
        ("C", "ABDC", "name different options"),  # another option carries it
        ("C", "ABDD", "name different options"),  # the option there carries another letter, and none this one
        ("E", "ABCD", "label is not one of"),
    ],
)
def test_a_label_alone_is_never_guessed_at(label, printed, reason):
    with pytest.raises(RejectedRow, match=reason):
        reconcile_without_text(position_of(label, 4), tuple(printed))


@pytest.mark.parametrize("label", ["B", "b", " B ", "(B)", "b.", "[B]", "B:", "Option B", "choice b)", "Answer: B"])
def test_a_letter_is_read_in_any_case_and_dress(label):
    assert position_of(label, 2) == 1
    with pytest.raises(RejectedRow, match=r"label is not one of A$"):
        position_of(label, 1)


def test_letters_reach_as_far_as_the_options():
    assert position_of("J", 10) == 9
    with pytest.raises(RejectedRow, match=r"label is not one of A, B, C, D, E$"):
        position_of("F", 5)


@pytest.mark.parametrize("count", [4, 10])
def test_an_answer_is_found_behind_the_mark_of_any_option_of_its_question(count):
    choices = [f"cell type {number}" for number in range(count)]
    assert [matches_of(f"{letter}: Cell type {i}", choices) for i, letter in enumerate("ABCDEFGHIJ"[:count])] == [
        [i] for i in range(count)
    ]
    assert matches_of("K: Cell type 1", choices) == []


def test_a_number_is_one_however_a_spreadsheet_saved_it():
    assert [number_of(cell) for cell in ("2", " 2.0 ", "0", "-1", "2.5", "", "two", "1e1")] == [
        *(2, 2, 0, -1),
        *(None,) * 4,
    ]


@pytest.mark.parametrize("option", ["<think>", "a</think>b"])
def test_an_option_with_a_think_tag_is_rejected_because_the_answer_would_be_cut_there(option):
    check_text("What do <think> and </think> mean?", CHOICES)
    with pytest.raises(RejectedRow, match="an option holds a think tag"):
        check_text("What?", (*CHOICES[:3], option))


def test_a_question_is_recognised_whatever_its_case_punctuation_and_order_of_options():
    one = fingerprint("Which stain shows iron?", ["Prussian blue", "Congo red"])
    assert fingerprint("which stain shows iron", ["Congo Red.", "Prussian blue"]) == one
    assert fingerprint("Which stain shows iron?", ["Prussian blue", "Giemsa"]) != one
    assert fingerprint("T1+?", ["a"]) != fingerprint("T1-?", ["a"])
