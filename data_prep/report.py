"""What the prepared data looks like: measures of each split, examples, and what people read, from templates."""

import contextlib
import operator
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from data_prep import worker
from data_prep.questions import RejectedRow
from data_prep.rows import id_of
from data_prep.sources import Source, cells_of
from sft.common.command import write_json
from sft.common.display import render
from sft.common.prompts import LETTERS, chance, longest_option, majority_letter

TEMPLATES = Path(__file__).with_name("templates")
BARS = 40  # of the chart of lengths
EXAMPLES = 3  # rows of each split in examples.json
SAMPLED = 1_000  # rows of each split whose tokens are counted, where not all are
QUANTILES = {"shortest": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "longest": 1.0}


def characters(row: dict[str, Any]) -> int:
    """Characters of a row's messages, without the roles."""
    turns = [*row["prompt"], *row["completion"]]
    return sum(len(turn["content"]) + len(turn.get("reasoning_content", "")) for turn in turns)


class Measures(NamedTuple):
    """Sums over the rows of a split; those of two parts can be added."""

    golds: Counter  # rows by (number of options, index of the right one)
    longest_right: int  # rows whose longest option (the first of equals) is the right one
    lengths: Counter  # rows by length, in tokens or else in characters
    reasoned: int  # rows with a rationale

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> "Measures":
        return cls(
            golds=Counter((len(row["choices"]), row["gold"]) for row in rows),
            longest_right=sum(longest_option(row["choices"]) == row["gold"] for row in rows),
            lengths=Counter(len(row["input_ids"]) if "input_ids" in row else characters(row) for row in rows),
            reasoned=sum(bool(row["completion"][0]["reasoning_content"]) for row in rows),
        )

    def __add__(self, other: "Measures") -> "Measures":
        return Measures(*map(operator.add, self, other))

    @property
    def rows(self) -> int:
        return self.golds.total()

    def statistics(self) -> dict[str, Any]:
        """Letters, floors (accuracy without reading the question) and length quantiles, for report.json."""
        import numpy as np

        options, letters = Counter(), Counter()
        for (count, gold), rows in self.golds.items():
            options[count] += rows
            letters[LETTERS[gold]] += rows
        lengths = np.repeat(list(self.lengths), list(self.lengths.values()))
        quantiles = np.quantile(lengths, list(QUANTILES.values()), method="inverted_cdf").tolist()
        return {
            "rows": self.rows,
            "with_reasoning": self.reasoned,
            "letters": {letter: letters[letter] for letter in LETTERS[: max(options)]},
            "floors": {
                "majority_letter": majority_letter(self.golds),
                "longest_option": self.longest_right / self.rows,
                **chance(options),
            },
            "lengths": dict(zip(QUANTILES, quantiles, strict=True)),
        }


def examples(heads: dict[str, Any], sources: list[Source]) -> dict[str, list[dict]]:
    """The first rows of each split: messages, with a tokenizer text, ids and loss mask, and the source's raw cells.

    `heads` are the splits' first row groups, as `pyarrow` tables.
    """
    from sft.common.chat_template import explain

    shown = {split: head.slice(0, EXAMPLES).to_pylist() for split, head in heads.items()}
    places: dict[tuple[str, str], list[dict]] = {}
    for row in (row for rows in shown.values() for row in rows):
        if worker.tokenizer is not None:
            row |= explain(worker.tokenizer, row["prompt"], row["completion"])
        for id in {row["id"], re.sub(r"#\d+$", "", row["id"])}:  # as one of several orders it has a number more
            places.setdefault((row["source"], id), []).append(row)
    for source in sources:
        wanted = {id for name, id in places if name == source.name}
        for number, raw in enumerate(source.rows(), start=1):
            if not wanted:
                break
            with contextlib.suppress(RejectedRow):
                cells = cells_of(raw, source)
                id = id_of(source.format, cells, source.stem, number)
                if id in wanted:
                    wanted.remove(id)
                    for row in places[source.name, id]:
                        row["raw"] = cells
    return shown


def sampled_lengths(head: Any) -> Counter:
    """Lengths in tokens of the first `SAMPLED` rows of a split, whose parity is checked."""
    from sft.common.chat_template import tokenize

    rows = head.slice(0, SAMPLED).to_pydict()
    return Counter(map(len, tokenize(worker.tokenizer, rows["prompt"], rows["completion"])["input_ids"]))


def bar_chart(lengths: Counter, limit: int) -> dict[str, Any]:
    """Rows by length in bars `step` wide; rows beyond `limit` (the last percent, which may be far out) have no bar."""
    shortest = min(lengths)
    step = -(-(limit - shortest + 1) // BARS)
    bars = Counter()
    for length, count in lengths.items():
        if length <= limit:
            bars[(length - shortest) // step] += count
    axis = {"shortest": shortest, "step": step, "limit": limit, "longest": max(lengths)}
    return {**axis, "bars": sorted(bars.items()), "tallest": max(bars.values())}


def write_report(
    folder: Path,
    report: dict[str, Any],
    measures: dict[str, Measures],
    shown: dict[str, list[dict]],
    sources: list[Source],
) -> None:
    """Write report.json, examples.json (`shown`), the page report.html and the data set card README.md."""
    write_json(folder / "report.json", report)
    write_json(folder / "examples.json", shown)
    charts = {
        split: bar_chart(measured.lengths, limit=report["measures"][split]["lengths"]["p99"])
        for split, measured in measures.items()
    }
    first = next(iter(shown.values()))[0]
    text = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in first["prompt"] + first["completion"])
    page = render(TEMPLATES / "report.html", **report, charts=charts, example=first.get("text", text))
    (folder / "report.html").write_text(page, encoding="utf-8")
    formats = sorted({source.format for source in sources}, key=lambda known: known.name)
    card = render(TEMPLATES / "data_card.md", **report, formats=formats)
    (folder / "README.md").write_text(card, encoding="utf-8")
