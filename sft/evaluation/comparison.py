"""Two finished evaluations of the same questions: read them, check that they compare, and compare them in pairs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sft.common.command import UserError

# Raised with every change to results.json or predictions.parquet that a reader has to know of.
SCHEMA_VERSION = 1
RESULTS, PREDICTIONS = "results.json", "predictions.parquet"
# The scores of an evaluation, and how they are called.
SCORES = {"option_likelihood": "option likelihood", "generation": "generation"}


class Evaluation(NamedTuple):
    """A finished evaluation: results.json, and the rows of predictions.parquet by question id."""

    results: dict[str, Any]
    rows: dict[str, dict]


def read_evaluation(folder: Path) -> Evaluation:
    """Read a finished evaluation; raises `UserError` if the folder is not one, or of another schema version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        version = results["schema_version"]
        rows = {row["id"]: row for row in pq.read_table(folder / PREDICTIONS).to_pylist()}
        if version == SCHEMA_VERSION:
            columns = {"article", *(f"{score}_right" for score in results["scores"])}
            if results["n"] != len(rows) or not all(columns <= row.keys() for row in rows.values()):
                raise ValueError("the two files do not belong together")
            _ = results["name"], results["fingerprint"]["questions"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise UserError(
            f"{folder} is not a finished evaluation ({type(error).__name__}): name a folder with {RESULTS} and "
            f"{PREDICTIONS}, as sft/evaluate.py writes it"
        ) from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{folder} was written with schema version {version}, not {SCHEMA_VERSION}: evaluate it again")
    return Evaluation(results, rows)


def check_comparable(name: str, questions: str, scores: Iterable[str], baseline: Evaluation) -> list[str]:
    """The scores that a run has in common with the baseline; `questions` is the fingerprint of its questions.

    Raises:
        UserError: the two do not answer the same questions, or have no score in common.
    """
    other = baseline.results["name"]
    if questions != baseline.results["fingerprint"]["questions"]:
        raise UserError(
            f"{name} and {other} ({len(baseline.rows)} questions) do not answer the same questions: use the same "
            "--dataset_path, --split, --num_samples and --seed for both"
        )
    common = [score for score in SCORES if score in scores and score in baseline.results["scores"]]
    if not common:
        raise UserError(f"{name} and {other} have no score in common: evaluate both with the same --method")
    return common


def compare(this: Evaluation, baseline: Evaluation) -> dict[str, Any]:
    """``{"baseline": name, score: paired comparison, ...}`` for every score that both have.

    Raises:
        UserError: as `check_comparable`, or the two hold different question ids.
    """
    from sft.evaluation.metrics import paired

    results = this.results
    common = check_comparable(results["name"], results["fingerprint"]["questions"], results["scores"], baseline)
    if this.rows.keys() != baseline.rows.keys():
        raise UserError(f"{baseline.results['name']} has other question ids than {results['name']}: evaluate it again")
    articles = [row["article"] for row in this.rows.values()]

    return {"baseline": baseline.results["name"]} | {
        score: paired(
            [row[f"{score}_right"] for row in this.rows.values()],
            [baseline.rows[id][f"{score}_right"] for id in this.rows],
            articles,
            asked_once=all(len(r["scores"][score].get("seeds", [0])) == 1 for r in (results, baseline.results)),
        )
        for score in common
    }
