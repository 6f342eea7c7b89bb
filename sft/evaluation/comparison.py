"""The files that an evaluation leaves, and evaluations of the same questions, compared in pairs."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft.common.command import UserError, atomic_write, write_json
from sft.common.table_files import open_table, rows_of
from sft.evaluation.metrics import accuracy, paired_difference

# Raised with every change to results.json or predictions.parquet that a reader has to know of.
SCHEMA_VERSION = 1
RESULTS, PREDICTIONS = "results.json", "predictions.parquet"
# What a CSV file of outcomes may say of an answer.
OUTCOMES = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0, "true": 1.0, "false": 0.0}


class Evaluation(NamedTuple):
    """results.json, and the columns of predictions.parquet, which have one value a question."""

    results: dict[str, Any]
    columns: dict[str, list]


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write both files atomically, results.json last: where it is, the evaluation is finished."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_write(folder / PREDICTIONS) as temporary:
        pq.write_table(pa.table(evaluation.columns), temporary)
    write_json(folder / RESULTS, {"schema_version": SCHEMA_VERSION, **evaluation.results})


def read_evaluation(folder: Path) -> Evaluation:
    """Read a finished evaluation; raises `UserError` if the folder is not one, or of another schema version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        columns = pq.read_table(folder / PREDICTIONS).to_pydict()
        if (version := results["schema_version"]) != SCHEMA_VERSION:
            raise UserError(f"{folder} has schema version {version}, not {SCHEMA_VERSION}: evaluate it again")
        needed = {"article", *(f"{score}_right" for score in results["scores"])}
        if not needed <= columns.keys() or results["n"] != len(set(columns["id"])):
            raise ValueError("the two files do not belong together")
        _ = results["name"], results["fingerprint"]["questions"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        advice = f"name a folder with {RESULTS} and {PREDICTIONS}, as sft/evaluate.py writes it"
        raise UserError(f"{folder} is not a finished evaluation ({type(error).__name__}): {advice}") from error
    return Evaluation(results, columns)


def common_scores(name: str, questions: str, scores: Iterable[str], baseline: Evaluation) -> list[str]:
    """The scores that both have; raises `UserError` if there are none, or `questions` (a fingerprint) differ."""
    other = baseline.results["name"]
    if questions != baseline.results["fingerprint"]["questions"]:
        which = f"{name} and {other} ({baseline.results['n']} questions)"
        advice = "use the same --dataset_path, --split, --num_samples and --seed for both"
        raise UserError(f"{which} do not answer the same questions: {advice}")
    common = [score for score in baseline.results["scores"] if score in scores]
    if not common:
        raise UserError(f"{name} and {other} have no score in common: evaluate both with the same --method")
    return common


def paired_comparison(this: Evaluation, baseline: Evaluation) -> dict[str, Any]:
    """``{"baseline": name, score: paired difference, ...}``; raises `UserError` if the two cannot be compared."""
    results, other = this.results, baseline.results
    common = common_scores(results["name"], results["fingerprint"]["questions"], results["scores"], baseline)
    # The fingerprint covers the ids in their order, so the rows of the two are in the same order.
    if this.columns["id"] != baseline.columns["id"]:
        raise UserError(f"{other['name']} has other question ids than {results['name']}: evaluate it again")
    return {"baseline": other["name"]} | {
        score: paired_difference(
            this.columns[f"{score}_right"],
            baseline.columns[f"{score}_right"],
            this.columns["article"],
            answered_once=all(len(run["scores"][score].get("seeds", [0])) == 1 for run in (results, other)),
        )
        for score in common
    }


def read_outcomes(file: Path) -> Evaluation:
    """The outcomes in a CSV file with the columns id and correct, and perhaps article, as an evaluation.

    Raises `UserError` for a row without an id or with a second one, or where correct is not 1 or 0.
    """
    table = open_table(file, lambda names: {"id", "correct"} <= {name.lower() for name in names})
    header = [name.lower() for name in table.columns]
    if any(header.count(name) != 1 for name in ("id", "correct")) or header.count("article") > 1:
        raise UserError(f"{file} needs the columns id and correct, each once; found {', '.join(header) or 'nothing'}")
    by_id: dict[str, tuple[str, float]] = {}
    for where, cells in rows_of(table.called(header), str(file)):
        row = {name: cell.strip() for name, cell in cells.items()}
        right = OUTCOMES.get(row["correct"].lower())
        if not row["id"] or row["id"] in by_id or right is None:
            raise UserError(
                f"{where}id {row['id']!r}, correct {row['correct']!r}: give each id once, and 1 (right) or 0 (wrong)"
            )
        by_id[row["id"]] = row.get("article", ""), right
    if not by_id:
        raise UserError(f"{file} holds no outcome")
    ids = sorted(by_id)
    articles, rights = map(list, zip(*(by_id[id] for id in ids), strict=True))
    results = {"name": file.stem, "n": len(ids), "scores": {"correct": accuracy(rights, articles)}, "floors": {}}
    columns = {"id": ids, "article": articles, "correct_right": rights}
    return Evaluation({**results, "fingerprint": {"questions": ids}}, columns)


def read_runs(paths: Sequence[Path]) -> list[Evaluation]:
    """The evaluations in folders, or in CSV files; runs of one name are called by their paths."""
    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    if tables and len(tables) < len(paths):
        advice = "predictions.parquet holds the ids and, in the columns ..._right, the outcomes of an evaluation"
        raise UserError(
            f"{tables[0]} is a CSV file, and others are folders: compare CSV files with each other; {advice}"
        )
    runs = [read_outcomes(path) if tables else read_evaluation(path) for path in paths]
    baseline = runs[-1]
    for run in runs if tables else []:
        for one, other in (run, baseline), (baseline, run):
            if more := set(one.columns["id"]) - set(other.columns["id"]):
                raise UserError(f"{one.results['name']} has ids that {other.results['name']} lacks: {min(more)!r}")
    names = [run.results["name"] for run in runs]
    return [
        Evaluation({**run.results, "name": str(path) if names.count(name) > 1 else name}, run.columns)
        for run, path, name in zip(runs, paths, names, strict=True)
    ]


def compared(runs: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The results of each run, of all but the last with their paired comparison with the last."""
    *others, baseline = runs
    results = [{**run.results, "paired": paired_comparison(run, baseline)} for run in others]
    return [*results, {key: value for key, value in baseline.results.items() if key != "paired"}]
