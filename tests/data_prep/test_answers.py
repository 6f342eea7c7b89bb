"""How a column names the right option is judged by the complete column, and refused where it does not show."""

import random
import re

import pytest

from data_prep.answers import FROM_0, FROM_1, KEY, LETTER, MARK, NONE, TEXT, gold_of, judge
from data_prep.formats import FORMATS, parse_columns
from data_prep.options import read_options
from data_prep.questions import RejectedRow
from sft.common.command import UserError

MINE = parse_columns("question=q, options=o, answer=a")
FIVE = ["red", "green", "blue", "black", "white"]


def rows_of(answers, options=FIVE):
    return [{"q": "Which?", "o": [*options], "a": str(answer)} for answer in answers]


def judged(rows, known=MINE):
    return judge(known, lambda: iter(rows), "train.csv")


def golds(rows, known=MINE):
    reading = judged(rows, known)
    return [gold_of(cells, read_options(cells, known)[1], known, reading) for cells in rows]


@pytest.mark.parametrize(
    ("answers", "reading"),
    [
        (["A", "b", "(C)", "Option E"], LETTER),
        (["A. red", "b) green", "C: blue", "(E) white"], LETTER),
        (["red", "Green ", "blue.", "white"], TEXT),
        ([0, 1, 2, 4], FROM_0),
        (["0.0", "1.0", "2.0", "4.0"], FROM_0),
        ([1, 2, 3, 5], FROM_1),
    ],
)
def test_letters_texts_and_numbers_are_told_apart(answers, reading):
    rows = rows_of(answers)
    assert judged(rows) == reading
    assert golds(rows) == [0, 1, 2, 4]


def test_a_few_rows_of_another_kind_do_not_decide():
    assert judged(rows_of([*"ABCDE" * 10, "?", "red", ""])) == LETTER
    assert judged(rows_of([*(FIVE * 10), "A", ""])) == TEXT


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ([1, 2, 3, 4], "a is 0 in 0 of 4 rows and the number of options in 0, so it may count from 0 or from 1"),
        ([1] * 900, "a is 0 in 0 of 900 rows and the number of options in 0, so it may count from 0 or from 1"),
        ([0, 1, 5], "a is 0 in 1 of 3 rows and the number of options in 1, so some rows count from 0 and some from 1"),
    ],
)
def test_numbers_that_do_not_show_where_they_begin_are_refused(answers, fault):
    with pytest.raises(UserError, match=f"train.csv: {re.escape(fault)}") as refusal:
        judged(rows_of(answers))
    if "may count" in fault:
        assert "say it with the key answer_is: number from 0, number from 1, letter or text" in str(refusal.value)
        said = parse_columns("question=q, options=o, answer=a, answer_is=number from 0")
        assert golds(rows_of(answers), said) == answers


def test_the_last_row_of_a_long_column_can_decide():
    rows = rows_of([1, 2, 3] * 2000 + [0])
    assert judged(rows) == FROM_0
    with pytest.raises(UserError, match="in 0 of 6000 rows"):
        judged(rows[:-1])


def test_the_number_of_options_is_that_of_each_row():
    """3 is the last of three options, counted from 1; of five, it is any."""
    assert judged(rows_of([3, 2, 1], FIVE[:3]) + rows_of([1, 3])) == FROM_1
    with pytest.raises(UserError, match="may count"):
        judged(rows_of([2, 1], FIVE[:3]) + rows_of([1, 3]))


def test_the_text_beside_a_number_shows_where_it_begins():
    known = parse_columns("question=q, options=o, answer=a, answer_text=t")
    rows = [row | {"t": FIVE[int(row["a"]) - 1]} for row in rows_of([1, 2, 3, 4])]
    assert (judged(rows, known), golds(rows, known)) == (FROM_1, [0, 1, 2, 3])
    rows = [row | {"t": FIVE[int(row["a"])]} for row in rows_of([1, 2, 3, 4])]
    assert (judged(rows, known), golds(rows, known)) == (FROM_0, [1, 2, 3, 4])


@pytest.mark.parametrize("options", [["1", "2", "3", "4"], ["B", "A", "D", "C"]])
def test_answers_that_can_be_place_or_text_are_refused(options):
    with pytest.raises(UserError, match="a can be the place or the text of the right option: say it with the key"):
        judged(rows_of(options, options))
    said = parse_columns("question=q, options=o, answer=a, answer_is=text")
    assert golds(rows_of(options, options), said) == [0, 1, 2, 3]


def test_numbers_that_are_texts_of_some_options_are_judged_by_what_they_mostly_are():
    ages = [["2", "8", "16", "32"], ["2 years", "3 years", "4 years", "5 years"]]
    rows = rows_of(["8", "16"], ages[0]) + rows_of(["3 years"] * 5, ages[1])
    assert (judged(rows), golds(rows)) == (TEXT, [1, 2, 1, 1, 1, 1, 1])


def test_an_options_own_number_comes_before_a_count():
    options = [{"id": str(10 + number), "text": text} for number, text in enumerate(FIVE)]
    rows = rows_of([12, 10], options)
    assert (judged(rows), golds(rows)) == (KEY, [2, 0])
    with pytest.raises(RejectedRow, match="a is the key of no option"):
        gold_of(rows[0] | {"a": "15"}, read_options(rows[0], MINE)[1], MINE, KEY)


def test_a_letter_is_that_which_the_row_gives_the_option_and_not_its_place():
    """Of five options, the author left B out, or wrote them in another order."""
    gap = dict(zip("ACDE", FIVE, strict=False))
    rows = rows_of("C", ["red"]) + rows_of([*"ABCDE"] * 4)
    rows[0]["o"] = gap
    assert golds(rows)[0] == 1
    objects = [{"letter": letter, "text": text} for letter, text in zip("BAC", FIVE, strict=False)]
    rows[0] |= {"o": objects, "a": "B"}
    cells = read_options(rows[0], MINE)[1]
    assert cells.texts[golds(rows)[0]] == "red"
    with pytest.raises(RejectedRow, match="a number, and the options are not in the order of their letters"):
        gold_of(rows[0] | {"a": "1"}, cells, MINE, FROM_1)
    rows[0] |= {"o": ["A. red", "C. green", "D. blue"], "a": "C"}
    with pytest.raises(RejectedRow, match="label and printed letter name different options"):
        golds(rows)


def test_a_letter_of_another_alphabet_is_none():
    with pytest.raises(RejectedRow, match="label is not one of A, B, C, D"):
        golds(rows_of([*"ABCDE", "İ"]))


def test_an_empty_answer_is_none_and_not_an_option_of_signs():
    rows = rows_of(FIVE * 4) + rows_of([""], ["?", "red", "green"])
    with pytest.raises(RejectedRow, match="answer text equals no option"):
        golds(rows)


def test_letters_and_texts_that_agree_need_no_decision():
    shown = [f"{letter}. {text}" for letter, text in zip("ABCDE", FIVE, strict=True)]
    assert golds(rows_of(shown, shown)) == [0, 1, 2, 3, 4]
    known = parse_columns("question=q, options=o, answer=a, answer_text=t")
    rows = [row | {"t": text} for row, text in zip(rows_of("ABCDE"), shown, strict=True)]
    assert golds(rows, known) == [0, 1, 2, 3, 4]


def test_numbers_beyond_the_options_are_texts():
    doses = ["10", "20", "30", "40"]
    assert golds(rows_of(["20", "10", "40"] * 5, doses)) == [1, 0, 3] * 5


def test_one_and_zero_of_yes_and_no_are_refused():
    known = parse_columns("question=q, fixed_options=yes|no, answer=a")
    with pytest.raises(UserError, match="a holds numbers, and 1 may be the first or the second"):
        judged(rows_of([1, 0, 1]), known)
    assert golds(rows_of(["yes", "No"]), known) == [0, 1]


@pytest.mark.parametrize("form", ["({})", "{}.", "Option {}", "{}.0"])
def test_numbers_may_be_dressed(form):
    assert golds(rows_of([form.format(number) for number in (1, 5, 2)])) == [0, 4, 1]


def test_an_answer_may_name_the_column_of_its_option():
    known = parse_columns("question=q, options=first|second|third, answer=a")
    rows = [{"q": "Which?", "first": "x", "second": "y", "third": "z", "a": name} for name in ("second", "Third")]
    assert golds(rows, known) == [1, 2]


@pytest.mark.parametrize(("keys", "answers"), [("12345", range(5)), ("01234", range(1, 6))])
def test_numbers_that_count_otherwise_than_the_options_keys_are_judged_by_the_column(keys, answers):
    options = dict(zip(keys, FIVE, strict=True))
    rows = [row | {"o": options} for row in rows_of([*answers] * 3)]
    assert golds(rows) == [0, 1, 2, 3, 4] * 3


MARKED = {
    "a star": ["red", "* green", "blue"],
    "a star behind": ["red", "green *", "blue"],
    "words": ["red", "green (correct)", "blue"],
    "a tick": ["red", "✓ green", "blue"],
    "objects": [{"text": text, "correct": str(text == "green")} for text in FIVE[:3]],
    "behind the letter": ["A. red", "B. *green", "C. blue"],
    "before the letter": ["A. red", "*B. green", "C. blue"],
    "an object that alone has a mark": [
        {"text": text} | ({"correct": "true"} if text == "green" else {}) for text in FIVE[:3]
    ],
    "numbers": [{"text": text, "is_correct": str(int(text == "green"))} for text in FIVE[:3]],
}


@pytest.mark.parametrize("case", MARKED)
def test_the_right_option_may_be_marked(case):
    known = parse_columns("question=q, options=o")
    cells = {"q": "Which?", "o": MARKED[case]}
    options = read_options(cells, known)[1]
    assert judge(known, lambda: iter([cells]), "train.csv") == MARK
    assert (options.texts, gold_of(cells, options, known, MARK)) == (("red", "green", "blue"), 1)
    for wrong in ([*MARKED[case][::2]], [MARKED[case][1]] * 2):
        with pytest.raises(RejectedRow, match="not exactly one option is marked"):
            gold_of(cells, read_options(cells | {"o": wrong}, known)[1], known, MARK)


def test_a_mark_that_contradicts_the_answer_rejects_the_row():
    cells = rows_of(["green"], MARKED["objects"])[0]
    assert golds([cells]) == [1]
    with pytest.raises(RejectedRow, match="another option than the marked one"):
        golds([cells | {"a": "red"}])


def test_an_answer_may_be_a_list_of_one():
    assert golds([row | {"a": [row["a"]]} for row in rows_of(FIVE)]) == [0, 1, 2, 3, 4]


def of_medmcqa(cops):
    return [
        {"question": "Which?", **dict(zip(("opa", "opb", "opc", "opd"), FIVE, strict=False)), "cop": c} for c in cops
    ]


@pytest.mark.parametrize(
    ("cops", "reading"),
    [
        (["1", "2", "4"], FROM_1),
        (["1.0", "4.0", "-1"], FROM_1),
        (["0", "3", "-1"], FROM_0),
        (["a", "b", "d"], LETTER),
        (["-1", "-1", ""], NONE),
        (["0", "4"], "some rows count from 0 and some from 1"),
        (["1", "2", "3"], "may count from 0 or from 1"),
    ],
)
def test_the_answers_of_medmcqa_are_counted_as_its_copies_count_them(cops, reading):
    try:
        assert judged(of_medmcqa(cops), FORMATS["medmcqa"]) == reading
    except UserError as error:
        assert reading in str(error)


def test_letters_that_stand_in_front_and_contradict_the_answer_reject_the_row():
    rows = [
        {"q": "Which?", "o": ["A. red", "B. green"], "a": "B"},
        {"q": "Which?", "o": ["B. red", "A. green"], "a": "B"},
    ]
    assert golds(rows[:1]) == [1]
    with pytest.raises(RejectedRow, match="label and printed letter name different options"):
        golds(rows)


def test_every_answer_written_in_any_way_leads_back_to_its_option():
    """Sets of questions with two to ten options, whose answers are written in each way in turn."""
    draw = random.Random(3)  # noqa: S311
    for _ in range(200):
        written, texts, truth = draw.choice([LETTER, FROM_0, FROM_1, TEXT]), [], []
        for number in range(draw.randint(30, 60)):
            texts.append([f"{draw.choice(FIVE)} {number}.{place}" for place in range(draw.randint(2, 10))])
            truth.append(draw.randrange(len(texts[-1])))
        rows = []
        for options, gold in zip(texts, truth, strict=True):
            letter = draw.choice([str.lower, str.upper])("ABCDEFGHIJ"[gold])
            answer = {LETTER: letter, FROM_0: gold, FROM_1: gold + 1, TEXT: options[gold]}[written]
            rows += rows_of([answer], options)
        assert (judged(rows), golds(rows)) == (written, truth)
