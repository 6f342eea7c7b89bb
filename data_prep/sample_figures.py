"""The embedded sample with figures: questions about drawn figures, in PMC-VQA's files, whose text alone tells nothing.

The four options of a question are of one kind, each is right as often as the others, and the question does not name
what the figure shows: who does not see the figure answers one question in four.
"""

import csv
import io
import random
import zipfile
from pathlib import Path

from data_prep.sample_rows import FIRST_ARTICLE, V1_HEADER
from sft.common.drawn_figures import VALUES, Facts, draw, random_facts
from sft.common.prompts import LETTERS

ROWS = {"train": 528, "test": 96}
# The first two phrasings of each property are training questions, the third is a test question.
PHRASINGS = {
    "colour": (
        "What colour are the cells in the figure?",
        "Which colour does the stain give the cells?",
        "How are the cells stained?",
    ),
    "shape": (
        "What shape do the cells in the figure have?",
        "Which form do the stained cells show?",
        "How are the cells shaped?",
    ),
    "number": (
        "How many cells does the figure show?",
        "What is the number of stained cells?",
        "How many stained cells are there?",
    ),
    "place": (
        "Where in the figure do the cells lie?",
        "In which part of the figure are the stained cells?",
        "Which quarter of the figure holds the cells?",
    ),
}
# What any program that writes figures into a ZIP must fix, so that the same figures give the same bytes.
FIXED_DATE = (1980, 1, 1, 0, 0, 0)


def question_row(facts: Facts, kind: str, phrasing: str, figure: str, rng: random.Random) -> dict[str, str]:
    """One CSV row of version 1."""
    answer = getattr(facts, kind)
    options = [answer, *rng.sample([value for value in VALUES[kind] if value != answer], 3)]
    rng.shuffle(options)
    cells = [f" {letter}: {text} " for letter, text in zip(LETTERS, options, strict=False)]
    return dict(zip(V1_HEADER, (figure, phrasing, answer, *cells, LETTERS[options.index(answer)]), strict=True))


def write_figure_sample(folder: Path, seed: int = 0) -> dict[str, int]:
    """Write train.csv, test.csv and images.zip into `folder`; returns the number of rows of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)  # noqa: S311 (no secret depends on it)
    article = FIRST_ARTICLE
    with zipfile.ZipFile(folder / "images.zip", "w") as figures:
        for split, count in ROWS.items():
            rows = []
            for number in range(count):
                article += 1
                name = f"PMC{article}_F1.jpg"
                facts = random_facts(rng)
                kind = list(VALUES)[number % len(VALUES)]
                phrasings = PHRASINGS[kind]
                phrasing = rng.choice(phrasings[:2]) if split == "train" else phrasings[2]
                rows.append(question_row(facts, kind, phrasing, name, rng))
                jpeg = io.BytesIO()
                draw(facts, rng).save(jpeg, "JPEG", quality=95)
                figures.writestr(zipfile.ZipInfo(f"images/{name}", FIXED_DATE), jpeg.getvalue())
            rng.shuffle(rows)
            with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, V1_HEADER)
                writer.writeheader()
                writer.writerows(rows)
    return dict(ROWS)
