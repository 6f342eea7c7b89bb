"""From the cells of one row to a question, by the format of its source."""

import re
from collections.abc import Mapping
from typing import Any

from data_prep.answers import gold_of
from data_prep.formats import Format, split_of
from data_prep.options import Options, read_options, text_at
from data_prep.questions import Question, RejectedRow, check_text, comparable
from sft.common.prompts import clean_text

_ARTICLE = re.compile(r"PMC\d+")
_CUT_FIGURE = re.compile(r"^(PMC\d+_.+)_\d+(\.\w+)$")  # PMC1_F1_1234.jpg, cut out of PMC1_F1.jpg


def id_of(known: Format, cells: Mapping[str, Any], stem: str, number: int) -> str:
    """The id of a row: the name of its source without the ending, and the row's own id or else its number."""
    return f"{stem}-{clean_text(text_at(cells, known.id)) or number}" if known.id else f"{stem}-{number}"


def read_row(
    cells: Mapping[str, Any], known: Format, reading: str, place: tuple[str, str, int], split: str, may_repeat: bool
) -> Question:
    """The question of a row, whose answers are read as `reading` (data_prep/answers.py).

    `place` is the stem and the name of its source, and its number; `split` is "" where the source's name tells none. A
    row outside of train `may_repeat` an option. Raises `RejectedRow` for a row that cannot be believed.
    """
    stem, name, number = place
    figure = clean_text(text_at(cells, known.figure)) if known.figure else ""
    before, options = read_options(cells, known)
    question = _question_text(cells, known, before, options)
    stated = split_of(clean_text(text_at(cells, known.split))) if known.split else ""
    check_text(question, options.texts, may_repeat and (split or stated or "train") != "train")
    gold = gold_of(cells, options, known, reading)
    if known.split and not (split or stated):
        raise RejectedRow("neither the file's name nor the split column names the split")
    if split and stated and not known.split_is and stated != split.removesuffix("_clean"):
        raise RejectedRow("the file's name and the split column name different splits")
    article = _ARTICLE.match(figure)
    return Question(
        id=id_of(known, cells, stem, number),
        source=name,
        row=number,
        split=split or stated or "train",
        figure=figure,
        article=clean_text(text_at(cells, known.group)) if known.group else article.group() if article else "",
        question=question,
        choices=options.texts,
        gold=gold,
        caption=clean_text(text_at(cells, known.caption)) if known.caption else "",
        reasoning=[text_at(cells, known.rationale, joined=True)] if known.rationale else [],
        uncut_figure=_CUT_FIGURE.sub(r"\1\2", figure) if known.figures == "cut" else figure,
    )


def _question_text(cells: Mapping[str, Any], known: Format, before: str | None, options: Options) -> str:
    """The question without its options, in one line."""
    texts = [text_at(cells, path, joined=True) for path in known.question]
    if before is not None:  # the options stood in the last column
        texts[-1] = before
    question = clean_text(" ".join(texts))
    if known.question_repeats_options:
        asked, words, listed = question.rpartition(known.question_repeats_options)
        # Only what lists these very options goes: any other text belongs to the question.
        count = len(options.texts)
        if words and all(comparable(text, count) in comparable(listed, count) for text in options.texts):
            return asked.rstrip()
    return question
