"""The files that an evaluation leaves, and two evaluations of the same questions, compared in pairs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sft.common.command import UserError, atomic_write, write_json
from sft.evaluation.metrics import paired_difference

# Raised with every change to results.json or predictions.parquet that a reader has to know of.
SCHEMA_VERSION = 1
RESULTS, PREDICTIONS = "results.json", "predictions.parquet"


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
