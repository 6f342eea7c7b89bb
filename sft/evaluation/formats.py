"""Several runs as one table, a row each, in the formats that a terminal, a paper, a page or a program takes."""

import csv
import io
import json
import re
from collections.abc import Sequence
from string import Formatter
from typing import Any, NamedTuple

from sft.evaluation.tables import COLUMNS, PAIRED_COLUMNS, SCORES, Row, aligned, table_of

# The columns that people read; programs get every number of these, and of the other columns of the same tables.
SHOWN = ("n", "accuracy", "95 % interval")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "|": r"\textbar{}",
}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


class Part(NamedTuple):
    """Columns of a row that have their numbers in one place, and what their names begin with in CSV and JSON."""

    prefix: str
    columns: dict[str, str]
    numbers: dict[str, Any]


def parts_of(results: dict[str, Any], score: str, floors: Sequence[str]) -> list[Part]:
    """A run's numbers, its floors, and its difference from the baseline, if it is not the baseline itself."""
    # The head "95 % interval" would stand twice.
    paired = {f"its {head}" if head in COLUMNS else head: form for head, form in PAIRED_COLUMNS.items()}
    del paired["baseline"]  # which has a row of its own
    return [
        Part("", {"n": "{n}", **COLUMNS}, results["scores"][score]),
        Part("floor_", {f"floor: {name.replace('_', ' ')}": f"{{{name}:.3f}}" for name in floors}, results["floors"]),
        Part("paired_", paired, results.get("paired", {}).get(score, {})),
    ]


def rows_of_runs(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[Part]]]:
    """(name of the run, score, its parts) of every score of every run."""
    floors = [*dict.fromkeys(name for results in runs for name in results["floors"])]
    scores = [score for score in SCORES if any(score in results["scores"] for results in runs)]
    return [
        (results["name"], score, parts_of(results, score, floors))
        for score in scores
        for results in runs
        if score in results["scores"]
    ]


def table_of_runs(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The head of the table and its lines, without columns that no run has a number for."""
    rows = rows_of_runs(runs)
    lines = [["run", "score", *(head for part in rows[0][2] for head in part.columns)]]
    for name, score, parts in rows:
        cells = (table_of([Row("", part.numbers, None)], part.columns)[1][1:] for part in parts)
        lines.append([name, SCORES[score], *(cell for part in cells for cell in part)])
    columns = [
        column
        for column in zip(*lines, strict=True)
        if column[0] not in COLUMNS.keys() - SHOWN and set(column[1:]) != {"–"}
    ]
    return [list(line) for line in zip(*columns, strict=True)]


def records_of_runs(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table for programs: every number unrounded, under its name in results.json; null where a run has none."""
    records = []
    for name, score, parts in rows_of_runs(runs):
        record: dict[str, Any] = {"run": name, "score": score, "baseline": runs[-1]["name"]}
        for prefix, columns, numbers in parts:
            fields = (field for form in columns.values() for _, field, _, _ in Formatter().parse(form) if field)
            for field in fields:
                key = field.replace("[0]", "_low").replace("[1]", "_high").replace("[", "_").replace("]", "")
                try:
                    record[prefix + key] = Formatter().get_field(field, (), numbers)[0]
                except (KeyError, TypeError):
                    record[prefix + key] = None
        records.append(record)
    return records


def note_of(runs: Sequence[dict[str, Any]]) -> str:
    return (
        f"{runs[-1]['n']} questions; differences are from {runs[-1]['name']}, paired, "
        "their intervals clustered by article where articles are known"
    )


def as_text(runs: Sequence[dict[str, Any]]) -> str:
    return f"{note_of(runs)}\n{aligned(table_of_runs(runs))}"


def as_markdown(runs: Sequence[dict[str, Any]]) -> str:
    head, *lines = [[cell.replace("|", "\\|") for cell in line] for line in table_of_runs(runs)]
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in (head, rule, *lines)), "", f"{note_of(runs)}."])


def latex_cell(text: str) -> str:
    """A cell for LaTeX: special characters are escaped, and numbers have a true minus and powers of ten."""
    text = "".join(LATEX.get(character, character) for character in text)
    text = re.sub(r"([\d.]+)e([+-])0*(\d+)", lambda m: f"${m[1]}\\times 10^{{{m[2].strip('+')}{m[3]}}}$", text)
    return re.sub(r"(?:^|(?<= ))-(?=\d)", "$-$", text)


def as_latex(runs: Sequence[dict[str, Any]]) -> str:
    """A tabular that needs no package."""
    table = table_of_runs(runs)
    head, *lines = [f"{' & '.join(map(latex_cell, line))} \\\\" for line in table]
    columns = "ll" + "r" * (len(table[0]) - 2)
    begin = [f"% {note_of(runs)}", f"\\begin{{tabular}}{{{columns}}}", "\\hline", head, "\\hline"]
    return "\n".join([*begin, *lines, "\\hline", "\\end{tabular}"])


def as_csv(runs: Sequence[dict[str, Any]]) -> str:
    records, table = records_of_runs(runs), io.StringIO()
    writer = csv.DictWriter(table, [*records[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return table.getvalue().rstrip("\n")


def as_json(runs: Sequence[dict[str, Any]]) -> str:
    return json.dumps(records_of_runs(runs), ensure_ascii=False, indent=2)


FORMATS = {"text": as_text, "markdown": as_markdown, "latex": as_latex, "csv": as_csv, "json": as_json}
