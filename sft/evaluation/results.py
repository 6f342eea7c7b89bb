"""From answers to what an evaluation leaves: results.json and predictions.parquet.

Nothing here depends on how long it took, on the number of processes or on interruptions: the same answers give the
same bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from sft.common.command import atomic_write
from sft.common.prompts import user_message
from sft.evaluation import metrics
from sft.evaluation.tasks import CHOICES_ONLY, LIKELIHOOD, SHIFTED
from sft.inference.likelihood import most_likely, softmax
from sft.inference.parsing import parse_answer

Answers = Mapping[tuple[str, str], dict]
OUTCOMES = ("answered", "unparsed", "truncated")


def chosen_options(task: Any, answers: Answers) -> list[int]:
    """The likeliest option of each question of a pass of option likelihood."""
    return most_likely([answers[task.name, q["id"]]["log_likelihoods"] for q in task.questions])


def likelihood_score(tasks: Sequence[Any], answers: Answers, columns: dict[str, list]) -> dict[str, Any]:
    """The numbers of option likelihood, from its passes: the questions as they stand, then their permutations.

    Adds the answer to each question to the columns of predictions.parquet.
    """
    plain, *permuted = tasks
    questions = plain.questions
    scores = [answers[plain.name, q["id"]]["log_likelihoods"] for q in questions]
    chosen = chosen_options(plain, answers)
    right = [float(answer == q["gold"]) for answer, q in zip(chosen, questions, strict=True)]
    confidences = [max(softmax(values)) for values in scores]
    columns |= {"log_likelihoods": scores, "option_likelihood_answer": chosen, "option_likelihood_right": right}
    numbers = metrics.summary(questions, right) | {"calibration": metrics.calibration(confidences, right)}
    if permuted:
        # Options by their place in the question as it stands, so that permutations can be compared.
        by_id = {q["id"]: [answer] for q, answer in zip(questions, chosen, strict=True)}
        for shift, task in enumerate(permuted, start=1):
            for q, letter in zip(task.questions, chosen_options(task, answers), strict=True):
                by_id[q["id"]].append((letter + shift) % len(q["choices"]))
        chosen = [by_id[q["id"]] for q in questions]
        shares = [fmean(a == q["gold"] for a in row) for q, row in zip(questions, chosen, strict=True)]
        columns["permutation_answers"] = chosen
        same = [len(set(row)) == 1 for row in chosen if len(row) > 1]
        numbers["permutations"] = {
            "orders": len(tasks),
            "questions_in_several_orders": len(same),
            **metrics.accuracy(shares),
            "standard_error_clustered": metrics.clustered_standard_error(shares, columns["article"]),
            "same_option_in_all_orders": fmean(same) if same else None,
        }
    return numbers


def generation_score(tasks: Sequence[Any], answers: Answers, columns: dict[str, list]) -> dict[str, Any]:
    """The numbers of generation, from its passes, one a seed; a question's value is its mean over them."""
    questions = tasks[0].questions
    written = [[answers[task.name, q["id"]] for task in tasks] for q in questions]
    parsed = [
        [parse_answer(a["text"], q["choices"], a["hit_limit"]) for a in row]
        for q, row in zip(questions, written, strict=True)
    ]
    rights = [[float(p.index == q["gold"]) for p in row] for q, row in zip(questions, parsed, strict=True)]
    right = [fmean(row) for row in rights]
    columns |= {
        "generation_answers": [[p.index for p in row] for row in parsed],
        "generation_outcomes": [[p.outcome for p in row] for row in parsed],
        "generation_tokens": [[a["tokens"] for a in row] for row in written],
        "generation_texts": [[a["text"] for a in row] for row in written],
        "generation_right": right,
    }
    outcomes = Counter(p.outcome for row in parsed for p in row)
    n = outcomes.total()
    tokens = [a["tokens"] for row in written for a in row]
    limit = tasks[0].sampling.max_new_tokens
    finished = [
        (a["tokens"], value)
        for row, values in zip(written, rights, strict=True)
        for a, value in zip(row, values, strict=True)
        if not a["hit_limit"]
    ]

    def at_budget(budget: int) -> dict[str, Any]:
        # An answer that is longer than a smaller budget would have been truncated by it: no need to write it again.
        kept = [value for length, value in finished if length <= budget or budget == limit]
        return {"tokens": budget, "accuracy": sum(kept) / n, "truncated": 1 - len(kept) / n}

    each = [fmean(values) for values in zip(*rights, strict=True)]
    seeds = [{"seed": task.sampling.seed, "accuracy": value} for task, value in zip(tasks, each, strict=True)]
    return {
        **metrics.summary(questions, right),
        "sampling": {key: getattr(tasks[0].sampling, key) for key in ("max_new_tokens", "temperature", "top_p")},
        "seeds": seeds,
        "standard_deviation_of_seeds": pstdev(each) if len(each) > 1 else None,
        "outcomes": {outcome: outcomes[outcome] / n for outcome in OUTCOMES},
        "accuracy_where_answered": sum(map(sum, rights)) / outcomes["answered"] if outcomes["answered"] else None,
        "tokens": {"mean": sum(tokens) / n, "longest": max(tokens)},
        "by_token_budget": [at_budget(2**power) for power in range(1, 31) if 2**power < limit] + [at_budget(limit)],
    }


def results_of(questions: Sequence[dict], tasks: Sequence[Any], answers: Answers) -> tuple[dict, dict[str, list]]:
    """(scores and floors for results.json, columns for predictions.parquet)."""
    columns: dict[str, list] = {
        "id": [q["id"] for q in questions],
        # The same for questions with the same prompt, whatever the model: a hash of the user's message.
        "prompt_id": [
            hashlib.sha256(user_message(q["question"], q["choices"], q["answer_format"]).encode()).hexdigest()[:16]
            for q in questions
        ],
        "article": [q.get("article") or "" for q in questions],
        "gold": [q["gold"] for q in questions],
    }
    floors, scores = metrics.floors(questions), {}
    likelihood = [task for task in tasks if task.name == LIKELIHOOD or task.name.startswith(SHIFTED)]
    generation = [task for task in tasks if task.sampling]
    if likelihood:
        scores["option_likelihood"] = likelihood_score(likelihood, answers, columns)
    for task in tasks:
        if task.name == CHOICES_ONLY:
            columns["choices_only_answer"] = chosen = chosen_options(task, answers)
            floors["choices_only"] = fmean(a == gold for a, gold in zip(chosen, columns["gold"], strict=True))
    if generation:
        scores["generation"] = generation_score(generation, answers, columns)
    return {"scores": scores, "floors": floors}, columns


def write_predictions(columns: dict[str, list], file: Path) -> None:
    """Write predictions.parquet atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_write(file) as temporary:
        pq.write_table(pa.table(columns), temporary)
