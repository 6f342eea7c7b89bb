"""How each source is understood, with its first three rows, printed before anything is written."""

import textwrap
from collections.abc import Iterable
from itertools import islice

from data_prep.formats import Format
from data_prep.questions import Question, RejectedRow
from data_prep.rows import read_row
from data_prep.sources import Source, cells_of
from sft.common.prompts import LETTERS

ROWS = 3
WIDTH = 100  # characters of a line


def mapping_of(known: Format, answers: str) -> str:
    """Which column holds what: ``question = stem; options = A, B, C; answer = label (letter)``."""
    parts = {
        "question": ", ".join(known.question),
        "options": ", ".join(known.options or known.fixed_options) or "the last lines of the question",
        "answer": f"{known.answer} ({answers})" if known.answer else "the option that is marked",
        "answer_text": known.answer_text,
        **{key: getattr(known, key) for key in ("id", "group", "split", "rationale", "caption", "figure")},
    }
    return "; ".join(f"{key} = {value}" for key, value in parts.items() if value)


def lines_of(question: Question) -> list[str]:
    """A row in two lines: the question, and all of its options, cut short, with a star at the right one."""
    share = max(10, WIDTH // len(question.choices) - 5)
    texts = [text if len(text) <= share else f"{text[: share - 2]}.." for text in question.choices]
    stars = ["*" if index == question.gold else "" for index in range(len(texts))]
    options = [f"{star}{letter} {text}" for star, letter, text in zip(stars, LETTERS, texts, strict=False)]
    asked = textwrap.shorten(f"row {question.row}: {question.question}", WIDTH, placeholder=" ...")
    return [asked, f"    {' | '.join(options)}"]


def print_understood(sources: Iterable[Source]) -> None:
    """Print format, kind of file, split and way to read the answers of each source, and its first three rows."""
    for source in sources:
        known = source.format
        split = source.split or (f"split by {known.split}" if known.split else "train")
        print(f"{source.name}: {known.title}, {source.described()}, {split}")
        print(f"  {mapping_of(known, source.answers)}")
        for number, raw in enumerate(islice(source.rows(), ROWS), start=1):
            place = (source.stem, source.name, number)
            try:
                lines = lines_of(read_row(cells_of(raw, source), known, source.answers, place, source.split, True))
            except RejectedRow as reason:
                lines = [f"row {number} is rejected: {reason}"]
            print("\n".join(f"  {line}" for line in lines))
