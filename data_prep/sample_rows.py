"""The embedded sample: 24 checkable statements written for this project (sample_facts.yaml), eight phrasings each.

Five phrasings are training questions and three are test questions, in rows with the quirks and faults of PMC-VQA.
"""

import csv
import itertools
import random
from pathlib import Path

import yaml

from data_prep.formats import FORMATS
from sft.common.prompts import LETTERS

FACTS_FILE = Path(__file__).with_name("sample_facts.yaml")
TRAIN_PHRASINGS = 5
V1_HEADER = FORMATS["pmc_vqa_v1"].columns
# Rows that repeat a question with its options permuted, so that the model learns the words and not the letter.
ORDERS = {"train": 6, "test": 1}
# Article numbers that PubMed Central has not reached, so that no sample row can be taken for a real one.
FIRST_ARTICLE = 90_000_000


def load_facts() -> list[dict]:
    """Groups of ``{topic, facts: [{answer, statement, phrasings}]}``, four facts a group."""
    return yaml.safe_load(FACTS_FILE.read_text(encoding="utf-8"))


def written_choice(letter: str, text: str, rng: random.Random) -> str:
    """A choice cell as PMC-VQA writes it: the letter printed in front, in one of the ways seen in real rows."""
    style = rng.choice([" {}: {} ", "{}: {}", " {}:{} ", "{}:{}", " {}:\u00a0{} "])
    return style.format(letter, text)


def question_row(question: str, answer: str, options: list[str], figure: str, rng: random.Random) -> dict[str, str]:
    """One sound CSV row, options in the given order, with a quirk that preparation must mend in about one of four."""
    gold = options.index(answer)
    quirk = rng.choice(["newline", "quotes", "n/a", "shifted letters"]) if rng.random() < 0.25 else None
    if quirk == "newline":
        question = question.replace(" ", "\n", 1)
    if quirk == "n/a":
        options[gold - 1] = "N/A"
    cells = [written_choice(letter, text, rng) for letter, text in zip(LETTERS, options, strict=False)]
    label = LETTERS[gold]
    if quirk == "quotes":
        cells[0], cells[-1] = "'" + cells[0].lstrip(), cells[-1].rstrip() + " ' "
    if quirk == "shifted letters" and 0 < gold < 3:
        # The letters printed skip one (A, C, C, D), and the label follows the print: only the text tells the option.
        label = LETTERS[gold + 1]
        cells[gold] = written_choice(label, options[gold], rng)
    return dict(zip(V1_HEADER, (figure, f" {question} ", f"{answer} ", *cells, label), strict=True))


def sample_rows(seed: int) -> dict[str, list[dict[str, str]]]:
    """Rows of both files, in file order.

    The options of a question are the answers of its group: each is of the right one's kind and right as often, so that
    none can be preferred without reading the question.
    """
    rng = random.Random(seed)  # noqa: S311 (no secret depends on it)
    splits = {"train": [], "test": []}
    for number, group in enumerate(load_facts()):
        orders = list(itertools.permutations(fact["answer"] for fact in group["facts"]))
        for phrasing in range(len(group["facts"][0]["phrasings"])):
            split = "train" if phrasing < TRAIN_PHRASINGS else "test"
            # One article per group and phrasing: holding out whole articles then holds out phrasings, not facts.
            article = FIRST_ARTICLE + 100 * number + phrasing
            pairs = [(fact, list(order)) for fact in group["facts"] for order in rng.sample(orders, ORDERS[split])]
            for figure, (fact, order) in enumerate(pairs, start=1):
                name = f"PMC{article}_F{figure}.jpg"
                splits[split].append(question_row(fact["phrasings"][phrasing], fact["answer"], order, name, rng))
    for rows in splits.values():
        rng.shuffle(rows)
    # Faults that no rule can mend; preparation must reject each.
    faults = ({"Answer_label": "'"}, {"Answer": "Not among the options"}, {"Choice B": " B: "})
    splits["train"] += [splits["train"][0] | fault for fault in faults]
    return splits


def write_sample(folder: Path, seed: int = 0) -> dict[str, int]:
    """Write train.csv and test.csv into `folder`; returns the number of rows of each split."""
    splits = sample_rows(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, V1_HEADER)
            writer.writeheader()
            writer.writerows(rows)
    return {split: len(rows) for split, rows in splits.items()}
