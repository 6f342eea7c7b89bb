"""What the prepared data looks like: measures of each split, the data set card, and a page to look at.

The page is one file without scripts or links to other files, so that it opens anywhere and travels with the data.
"""

import html
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_prep.formats import FORMATS
from sft.common.display import STYLE, Safe, table
from sft.common.prompts import LETTERS, longest_option

BARS = 40  # of the length histogram


@dataclass
class Measures:
    """Sums over the rows of a split; those of two parts can be added."""

    letters: Counter = field(default_factory=Counter)  # rows by letter of the right option
    longest_right: int = 0  # rows whose longest option (the first of equals) is the right one
    lengths: Counter = field(default_factory=Counter)  # rows by length, in tokens or else in characters
    reasoned: int = 0  # rows with a rationale

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> "Measures":
        """The measures of prepared rows."""
        measures = cls()
        for row in rows:
            choices, (answer,) = row["choices"], row["completion"]
            measures.letters[LETTERS[row["gold"]]] += 1
            measures.longest_right += longest_option(choices) == row["gold"]
            measures.reasoned += bool(answer["reasoning_content"])
            if "input_ids" in row:
                length = len(row["input_ids"])
            else:
                length = sum(len(text) for turn in (*row["prompt"], answer) for text in list(turn.values())[1:])
            measures.lengths[length] += 1
        return measures

    def __add__(self, other: "Measures") -> "Measures":
        return Measures(
            self.letters + other.letters,
            self.longest_right + other.longest_right,
            self.lengths + other.lengths,
            self.reasoned + other.reasoned,
        )

    @property
    def rows(self) -> int:
        return self.letters.total()

    def summary(self) -> dict[str, Any]:
        """Letters, floors (accuracy without reading the question) and length quantiles, for report.json."""
        return {
            "rows": self.rows,
            "with_reasoning": self.reasoned,
            "letters": {letter: self.letters[letter] for letter in LETTERS},
            "floors": {
                "majority_letter": max(self.letters.values()) / self.rows,
                "longest_option": self.longest_right / self.rows,
            },
            "lengths": {name: quantile(self.lengths, share) for name, share in QUANTILES.items()},
        }


QUANTILES = {"shortest": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "longest": 1.0}


def quantile(lengths: Counter, share: float) -> int:
    """The smallest length that at least `share` of the rows do not exceed."""
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= share * lengths.total():
            return length
    return 0


def data_card(report: dict[str, Any]) -> str:
    """README.md of the prepared folder. Its header names the splits, so that `load_dataset` calls dev "dev".

    It also names each file, and each file is named after its content: `load_dataset` takes a local folder's cache key
    from this header alone (datasets 5.2), not from the files or the folder's place, and would otherwise serve the rows
    of any folder of the same name that it has seen before.
    """
    formats = sorted({source["format"] for source in report["sources"].values()})
    licences = sorted({FORMATS[name].licence for name in formats})
    titles = ", ".join(f"{FORMATS[name].title} (published under {FORMATS[name].licence})" for name in formats)
    files = "\n".join(f"  - split: {split}\n    path: {split}/{name}" for split, name in report["files"].items())
    counts = "\n".join(
        f"| {split} | {summary['rows']} | {summary['floors']['majority_letter']:.3f} | "
        f"{summary['floors']['longest_option']:.3f} |"
        for split, summary in report["measures"].items()
    )
    sources = "\n".join(
        f"- `{name}`: {FORMATS[source['format']].title}, SHA-256 `{source['sha256']}`"
        for name, source in report["sources"].items()
    )
    left_out = "".join(f", {count} left out ({why})" for why, count in report["left_out"].items())
    for split, count in report.get("longer_than_max_length", {}).items():
        left_out += f", {count} rows of {split} too long and {'kept' if split.startswith('test') else 'left out'}"
    options = "\n".join(f"- `{name}`: `{value}`" for name, value in report["options"].items())
    return f"""---
license: other
license_name: {"-and-".join(licence.lower().replace(" ", "-") for licence in licences)}
task_categories:
- question-answering
language:
- en
tags:
- medical
- multiple-choice
configs:
- config_name: default
  data_files:
{files}
---
# Medical multiple-choice questions, prepared for supervised fine-tuning

Made from files in the format of {titles}. Rows are chat messages
with the question, its options and the right one beside them; a text-only model does not see the figures. Not for
clinical use.

| split | rows | floor: majority letter | floor: longest option |
|---|---|---|---|
{counts}

{report["read"]} rows read, {report["kept"]} kept, {report["rejected"]} rejected, {report["duplicates"]} exact
duplicates{left_out}. Answer format `{report["answer_format"]}`, prompt version {report["prompt_version"]}, seed
{report["seed"]}. The rejected rows are in `rejected.csv`, everything counted in `report.json` and, to look at, in
`report.html`.

## Options

{options}

## Sources

{sources}
"""


def share_bar(share: float) -> Safe:
    """A share as a bar and a percentage."""
    return Safe(f'<span class="bar" style="width:{share * 5:.2f}em"></span> {share:.1%}')


def histogram(lengths: Counter, unit: str) -> str:
    """Rows by length as SVG bars; the last percent, which may be far out, is told in words."""
    low, most = min(lengths), quantile(lengths, 0.99)
    width = -(-(most - low + 1) // BARS)
    bars = Counter()
    for length, count in lengths.items():
        if length <= most:
            bars[(length - low) // width] += count
    tallest, last = max(bars.values()), max(bars)
    right = 66 + 14 * (last + 1)
    drawn = []
    for bar, count in sorted(bars.items()):
        start, height = low + bar * width, 100 * count / tallest
        drawn.append(
            f'<rect x="{60 + 14 * bar}" y="{110 - height:.1f}" width="13" height="{height:.1f}">'
            f"<title>{start} to {start + width - 1} {unit}: {count:,} rows</title></rect>"
        )
    drawn += [f'<text x="{60 + 14 * bar}" y="124">{low + bar * width}</text>' for bar in range(0, last + 1, 5)]
    beyond = f"; those above {most:,} (at most 1 %) are not drawn" if most < max(lengths) else ""
    return (
        f'<svg viewBox="0 0 {max(right, 420)} 142" width="{max(right, 420)}" role="img" aria-label="rows by {unit}">'
        f'<text x="56" y="16" text-anchor="end">{tallest:,}</text><text x="56" y="110" text-anchor="end">0</text>'
        f'<line x1="60" x2="{right}" y1="110" y2="110"/>{"".join(drawn)}'
        f'<text x="60" y="139">{unit} a row{beyond}</text></svg>'
    )


def report_page(report: dict[str, Any], measures: dict[str, Measures], example: str) -> str:
    """The report as one HTML page. `example` is the text of one row, shown as it is."""
    counts = table(
        ["rows read", "kept", "rejected", "exact duplicates", *(f"left out: {why}" for why in report["left_out"])],
        [[report[key] for key in ("read", "kept", "rejected", "duplicates")] + list(report["left_out"].values())],
        texts=0,
    )
    unit = report["length_unit"]
    splits = table(
        ["split", "rows", *LETTERS, "floor: majority letter", "floor: longest option"],
        [
            [split, m.rows, *(share_bar(m.letters[letter] / m.rows) for letter in LETTERS)]
            + [f"{floor:.3f}" for floor in report["measures"][split]["floors"].values()]
            for split, m in measures.items()
        ],
    )
    lengths = "".join(f"<h3>{split}</h3>{histogram(m.lengths, unit)}" for split, m in measures.items())
    quantiles = table(
        ["split", *QUANTILES],
        [[split, *summary["lengths"].values()] for split, summary in report["measures"].items()],
    )
    overlap = table(
        ["splits", "by", "shared", "rows of the first", "rows of the second"],
        [[" and ".join(entry["splits"]), entry["by"], entry["shared"], *entry["rows"]] for entry in report["overlap"]],
        texts=2,
    )
    rejected = table(["reason", "rows"], [[reason, count] for reason, count in report["rejected_by_reason"].items()])
    sources = table(
        ["source", "format", "SHA-256", "rows", *(f"sound: {split}" for split in measures)],
        [
            [name, FORMATS[s["format"]].title, s["sha256"][:16] + "…", s["rows"], *(s["splits"][m] for m in measures)]
            for name, s in report["sources"].items()
        ],
        texts=3,
    )
    options = table(["option", "value"], [[name, str(value)] for name, value in report["options"].items()], texts=2)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Prepared data</title><style>{STYLE}</style></head><body>
<h1>Prepared data</h1>
<p>Answer format <b>{report["answer_format"]}</b>, prompt version {report["prompt_version"]}, seed {report["seed"]}.
read = kept + rejected + exact duplicates.</p>
{counts}
<h2>Splits: where the right option stands</h2>
{splits}
<p class="note">A floor is the accuracy of an answer that does not read the question: always the commonest letter, or
always the longest option. A model has learnt something only above both.</p>
<h2>Lengths</h2>
<p class="note">{html.escape(report["length_note"])}</p>
{lengths}
{quantiles}
<h2>What splits share</h2>
{overlap if report["overlap"] else "<p>There is one split only.</p>"}
<p class="note">Different articles, figures and questions (with their options, in any order) that stand in both splits,
and the rows of either that they touch. Rows whose article or figure is unknown are not counted by it.</p>
<h2>Rejected rows</h2>
{rejected if report["rejected_by_reason"] else "<p>None.</p>"}
<p class="note">Each with its reason and raw cells in rejected.csv.</p>
<h2>One row</h2>
<pre>{html.escape(example)}</pre>
<h2>Sources</h2>
{sources}
<h2>Options</h2>
{options}
</body></html>
"""
