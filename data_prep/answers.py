"""Which option a row names as the right one: how a column of answers is to be read, and what it says of a row.

Letters, numbers from 0, numbers from 1 and texts can look alike in one row; a column shows which they are.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from data_prep.formats import FORMATS, INTO, POSITION, READINGS, Format
from data_prep.options import Options, read_options, text_at
from data_prep.questions import (
    RejectedRow,
    matches_of,
    number_of,
    position_of,
    reconcile,
    reconcile_without_text,
)
from sft.common.command import UserError
from sft.common.prompts import clean_choice, clean_text, typed_choice

LETTER, FROM_0, FROM_1, TEXT = READINGS
KEY, MARK, NONE = "key", "mark", "none"  # the option's own number or name; a mark at the option; no answer at all
HEAD = 1_000  # rows that show whether answers are letters, numbers or texts
MOST = 0.9  # of these rows must agree


class Undecided(UserError):
    """A column of numbers does not show whether they count from 0 or from 1."""


def how_to_say(known: Format) -> str:
    """What to do where a column of answers can be read in two ways."""
    command = f' (--format {known.name} --columns "answer_is={FROM_0}")' if known.name in FORMATS else ""
    return f"say it with the key answer_is: {FROM_0}, {FROM_1}, {LETTER} or {TEXT}{command}"


def gold_of(cells: Mapping[str, Any], options: Options, known: Format, reading: str) -> int:
    """Index of the right option of a row. Raises `RejectedRow` if the row names none, or contradicts itself."""
    if reading == MARK:
        if sum(options.marked) != 1:
            raise RejectedRow("not exactly one option is marked as the right one")
        return options.marked.index(True)
    gold = _answered_option(cells, options, known, reading)
    if any(options.marked) and not options.marked[gold]:
        raise RejectedRow("the answer is another option than the marked one")
    return gold


def _answered_option(cells: Mapping[str, Any], options: Options, known: Format, reading: str) -> int:
    label = text_at(cells, known.answer, joined=True)
    if known.no_answer and label.strip() == known.no_answer:
        raise RejectedRow("the row has no answer")
    if reading == TEXT:
        matches = matches_of(_cleaned(label, options, known), options.texts)
        if len(matches) != 1:
            raise RejectedRow("answer text equals several options" if matches else "answer text equals no option")
        return matches[0]
    position, stated = _position(label, options, known, reading)
    if known.answer_text and known.answer_text.split(INTO)[0] in cells:
        stated = text_at(cells, known.answer_text, joined=True)
    elif not stated:
        return reconcile_without_text(position, options.printed)
    return reconcile(position, _cleaned(stated, options, known), options.printed, options.texts)


def _position(label: str, options: Options, known: Format, reading: str) -> tuple[int, str]:
    """(index of the option that a letter, number or key names, the text that stands behind the letter or "")."""
    count = len(options.texts)
    if reading in (KEY, LETTER) and options.keys and (key := clean_text(label).upper()) in options.keys:
        return options.keys.index(key), ""
    if reading == KEY:
        raise RejectedRow(f"{known.answer} is the key of no option")
    if reading in (FROM_0, FROM_1) and (number := number_of(label)) is not None:
        if not options.in_order:
            raise RejectedRow("a number, and the options are not in the order of their letters")
        first = int(reading == FROM_1)
        if not first <= number < first + count:
            raise RejectedRow(f"{known.answer} is not one of {', '.join(map(str, range(first, first + count)))}")
        return number - first, ""
    letter, text = typed_choice(label, count) if len(label) > 2 else ("", "")
    return (position_of(letter, count), text) if letter and text else (position_of(label, count), "")


def _cleaned(answer: str, options: Options, known: Format) -> str:
    """The text of an answer, cleaned as the options were."""
    text = clean_choice(answer, len(options.texts))[1] if known.letters else clean_text(answer)
    if text in options.texts:  # nearly always
        return text
    text, typed = options.clean(answer)[1], typed_choice(answer, len(options.texts))[1]
    return typed if typed in options.texts and text not in options.texts else text


def judge(known: Format, rows: Callable[[], Iterable[Mapping[str, Any]]], where: str) -> str:
    """How the answers of a source are read: one of READINGS, KEY, MARK or NONE. `rows` yields the cells of its rows.

    Letters and texts show in the first rows. Numbers count from 0 if 0 occurs and the number of options never, from 1
    if it is the other way round, in the column from its first row to its last. Raises `UserError`, which begins with
    `where`, if both readings fit, and `Undecided` if neither does.
    """
    if known.answer_is in READINGS or not known.answer:
        return known.answer_is or MARK
    head = list(islice(_answered(known, rows()), HEAD))
    if not head:
        # Rows without options that can be read: the first pass rejects them, with the reason.
        labels = Counter(_label(cells, known) for cells in rows())
        return NONE if labels and set(labels) <= {"", known.no_answer} else LETTER
    rest = [(label, options) for label, options in head if clean_text(label).upper() not in options.keys]
    if len(rest) <= (1 - MOST) * len(head):
        return KEY
    texts = [_index(label, options, known, TEXT) for label, options in rest if known.answer_is != POSITION]
    letters = [_index(label, options, known, LETTER) for label, options in rest]
    numbers = [number_of(label) in range(len(options.texts) + 1) for label, options in rest]
    places = max(len(rest) - letters.count(None), sum(numbers))
    if len(texts) - texts.count(None) >= MOST * len(rest) and places >= MOST * len(rest):
        if letters == texts:  # "B. green", of options with their letters
            return LETTER
        what = f"{where}: {known.answer} can be the place or the text of the right option"
        raise UserError(f"{what}: {how_to_say(known)}")
    if sum(numbers) <= len(rest) / 2:
        return LETTER if len(rest) - letters.count(None) >= len(texts) - texts.count(None) else TEXT
    if known.fixed_options:
        what = f"{where}: {known.answer} holds numbers, and 1 may be the first or the second of {known.fixed_options}"
        raise UserError(f"{what}: {how_to_say(known)}")
    if known.answer_text:
        agree = {reading: _agreeing(known, reading, islice(rows(), HEAD)) for reading in (FROM_0, FROM_1)}
        best = max(agree, key=agree.__getitem__)
        if agree[best] > len(head) / 2:
            return best
    return _counted(known, rows(), where)


def _label(cells: Mapping[str, Any], known: Format) -> str:
    """The cell of the answer, "" if it is not text."""
    try:
        return text_at(cells, known.answer, joined=True).strip()
    except RejectedRow:
        return ""


def _answered(known: Format, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Options]]:
    """(answer, options) of the rows that have both."""
    for cells in rows:
        label = _label(cells, known)
        if label in ("", known.no_answer):
            continue
        try:
            yield label, read_options(cells, known)[1]
        except RejectedRow:
            continue


def _index(label: str, options: Options, known: Format, reading: str) -> int | None:
    """Index of the option that the answer names as its text or by a letter, or None."""
    if reading == TEXT:
        matches = matches_of(_cleaned(label, options, known), options.texts)
        return matches[0] if len(matches) == 1 else None
    try:
        return _position(label, options, known, reading)[0]
    except RejectedRow:
        return None


def _agreeing(known: Format, reading: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """How many rows have one right option by number and by text."""
    count = 0
    for cells in rows:
        try:
            gold_of(cells, read_options(cells, known)[1], known, reading)
            count += 1
        except RejectedRow:
            continue
    return count


def _counted(known: Format, rows: Iterable[Mapping[str, Any]], where: str) -> str:
    """FROM_0 or FROM_1, by the complete column."""
    if known.option_count:  # their texts need not be read
        answers = Counter(_label(cells, known) for cells in rows)
        pairs = Counter({(label, known.option_count): count for label, count in answers.items()})
    else:
        pairs = Counter((label, len(options.texts)) for label, options in _answered(known, rows))
    total = sum(count for (label, _), count in pairs.items() if (number_of(label) or 0) >= 0)
    zeros = sum(count for (label, _), count in pairs.items() if number_of(label) == 0)
    lasts = sum(count for (label, options), count in pairs.items() if number_of(label) == options)
    what = f"{where}: {known.answer} is 0 in {zeros} of {total} rows and the number of options in {lasts}"
    if zeros and lasts:
        raise UserError(f"{what}, so some rows count from 0 and some from 1: write letters instead")
    if not zeros and not lasts:
        raise Undecided(f"{what}, so it may count from 0 or from 1: {how_to_say(known)}")
    return FROM_0 if zeros else FROM_1
