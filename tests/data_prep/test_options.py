"""The options of a row, in each shape in which people have them."""

import json

import pytest

from data_prep.formats import parse_columns
from data_prep.options import read_options
from data_prep.questions import RejectedRow, check_text
from sft.common.table import as_text

TEXTS = ("red", "green", "blue")
IN_ONE_COLUMN = {
    "a list": [*TEXTS],
    "a list in JSON": json.dumps(TEXTS),
    "a list in Python": str([*TEXTS]),
    "a list with letters": ["A. red", "B. green", "C. blue"],
    "by letter": dict(zip("ABC", TEXTS, strict=True)),
    "by letter, in JSON": json.dumps(dict(zip("ABC", TEXTS, strict=True))),
    "by letter, in Python": str(dict(zip("ABC", TEXTS, strict=True))),
    "by small letter": dict(zip("abc", TEXTS, strict=True)),
    "by letter in brackets": {"(A)": "red", "(B)": "green", "(C)": "blue"},
    "by letter, in another order": {"B": "green", "C": "blue", "A": "red"},
    "by letter, with those of other rows": dict(zip("ABCDE", (*TEXTS, "", ""), strict=True)),
    "by name": {"opt1": "red", "opt2": "green", "opt3": "blue"},
    "objects": [{"letter": letter, "content": text} for letter, text in zip("ABC", TEXTS, strict=True)],
    "objects whose value is the letter": [
        {"value": letter, "label": text} for letter, text in zip("ABC", TEXTS, strict=True)
    ],
    "objects whose option is the letter": [
        {"option": letter, "answer": text} for letter, text in zip("abc", TEXTS, strict=True)
    ],
    "a list with those of other rows": [*TEXTS, "", None],
    "tuples with letters": str([(letter, text) for letter, text in zip("ABC", TEXTS, strict=True)]),
    "objects with numbers": [{"aid": str(aid), "atext": text} for aid, text in enumerate(TEXTS)],
    "objects as an object of lists": {"label": [*"ABC"], "text": [*TEXTS]},
    "lines": "A. red\nB. green\nC. blue",
    "lines with brackets": "(A) red\n\n(B) green\n(C) blue\n",
}


@pytest.mark.parametrize("case", IN_ONE_COLUMN)
def test_options_in_one_column(case):
    known = parse_columns("question=q, options=o, answer=a")
    cells = as_text({"q": "Which?", "o": IN_ONE_COLUMN[case], "a": "A"})
    assert read_options(cells, known)[1].texts == TEXTS


def test_options_in_columns_of_their_own_may_be_fewer_in_some_rows():
    known = parse_columns("question=q, options=A,B,C,D,E, answer=a")
    cells = {"q": "Which?", "A": "red", "B": " green ", "C": "blue", "D": "", "E": " "}
    assert read_options(cells, known)[1].texts == TEXTS
    gap = read_options(cells | {"D": "", "E": "white"}, known)[1].texts
    assert gap == (*TEXTS, "", "white")  # the empty one between is a fault of the row, which is rejected later


@pytest.mark.parametrize(
    "text",
    [
        "Which colour?\nA. red\nB. green\nC. blue",
        "Which colour?\n\n(A) red\n(B) green\n(C) blue\n",
        "Which colour?\na) red\nb) green\nc) blue",
        "Which\ncolour?\r\nA: red\r\nB: green\r\nC: blue",
    ],
)
def test_options_may_be_the_last_lines_of_the_question(text):
    before, options = read_options({"q": text, "a": "B"}, parse_columns("question=q, answer=a"))
    assert (before.replace("\n", " "), options.texts) == ("Which colour?", TEXTS)


def test_a_question_may_speak_of_options_before_it_lists_them():
    text = "A. fumigatus grew.\nWhich drug?\nA. one\nB. two"
    before, options = read_options({"q": text, "a": "B"}, parse_columns("question=q, answer=a"))
    assert (before, options.texts) == ("A. fumigatus grew.\nWhich drug?", ("one", "two"))


FAULTS = {
    "one option": (["red"], "the row has 1 options, not 2 to 10"),
    "eleven options": ([str(number) for number in range(11)], "the row has 11 options"),
    "no options": ([], "the row has 0 options"),
    "a text": ("red, green", "neither a list nor lines"),
    "lines and more": ("Pick one:\nA. red\nB. green", "neither a list nor lines"),
    "broken JSON": ('["red", "green"', "neither a list nor lines"),
    "a key twice in JSON": ('{"A": "red", "A": "green"}', "a key stands twice"),
    "letters and an explanation": ({"A": "red", "B": "green", "explanation": "B, because"}, "beside letters"),
    "a list in a list": ([["red"], ["green"]], "an option is not text"),
    "a list with a gap": (["red", "", "blue", None], "an option is empty"),
    "objects of two kinds": ([{"text": "red"}, {"value": "green"}], "an option is an object without a text"),
    "objects without text": ([{"colour": "red"}, {"colour": "green"}], "an option is an object without a text"),
    "marks that are neither": (
        [{"text": "red", "correct": "maybe"}, {"text": "green", "correct": "true"}],
        "an option's correct is neither true nor false",
    ),
    "letters and texts of two lengths": ({"label": ["A"], "text": ["red", "green"]}, "not equally many"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_options_that_cannot_be_read_reject_the_row(case):
    value, reason = FAULTS[case]
    cells = as_text({"q": "Which?", "o": value, "a": "A"})
    with pytest.raises(RejectedRow, match=reason):
        check_text("Which?", read_options(cells, parse_columns("question=q, options=o, answer=a"))[1].texts)
