"""From answers to what an evaluation leaves: results.json and predictions.parquet.

Nothing here depends on how long it took, on the number of processes or on interruptions: the same answers give the
same bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.common.prompts import user_message
from sft.evaluation import metrics
from sft.evaluation.tasks import CHOICES_ONLY, LIKELIHOOD, SHIFTED
from sft.inference.likelihood import most_likely, softmax
from sft.inference.parsing import parse_answer

Answers = Mapping[tuple[str, str], dict]
OUTCOMES = ("answered", "unparsed", "truncated")


def likelihood_score(tasks: Sequence[Any], answers: Answers, columns: dict[str, list]) -> dict[str, Any]:
    """The numbers of option likelihood. `tasks` are its passes, the questions as they stand first.

    Adds what there is to tell of each question to the columns of predictions.parquet.
    """
    plain, *others = tasks
    questions = plain.questions
    scores = [answers[plain.name, q["id"]]["log_likelihoods"] for q in questions]
    chosen = most_likely(scores)
    right = [float(answer == q["gold"]) for answer, q in zip(chosen, questions, strict=True)]
    probabilities = [softmax(values) for values in scores]
    confidences = [max(values) for values in probabilities]
    columns |= {"log_likelihoods": scores, "option_likelihood_answer": chosen, "option_likelihood_right": right}
    found = metrics.summary(questions, right)
    found["calibration"] = metrics.calibration(confidences, right)

    shifted = [task for task in others if task.name.startswith(SHIFTED)]
    if shifted:
        # Options by their place in the question as it stands, so that orders can be compared.
        orders = {q["id"]: [answer] for q, answer in zip(questions, chosen, strict=True)}
        for shift, task in enumerate(shifted, start=1):
            moved = most_likely([answers[task.name, q["id"]]["log_likelihoods"] for q in task.questions])
            for q, answer in zip(task.questions, moved, strict=True):
                orders[q["id"]].append((answer + shift) % len(q["choices"]))
        shares = [sum(a == q["gold"] for a in orders[q["id"]]) / len(orders[q["id"]]) for q in questions]
        columns["permutation_answers"] = [orders[q["id"]] for q in questions]
        found["permutations"] = {
            "orders": len(shifted) + 1,
            "questions_in_several_orders": len(shifted[0].questions),
            **metrics.accuracy(shares),
            "standard_error_clustered": metrics.clustered_standard_error(shares, columns["article"]),
            "same_option_in_all_orders": sum(len(set(orders[q["id"]])) == 1 for q in questions) / len(questions),
        }
    return found


def choices_only(task: Any, answers: Answers, columns: dict[str, list]) -> dict[str, Any]:
    """The floor of the same model with the question removed."""
    chosen = most_likely([answers[task.name, q["id"]]["log_likelihoods"] for q in task.questions])
    columns["choices_only_answer"] = chosen
    return metrics.accuracy([float(a == q["gold"]) for a, q in zip(chosen, task.questions, strict=True)])


def generation_score(tasks: Sequence[Any], answers: Answers, columns: dict[str, list]) -> dict[str, Any]:
    """The numbers of generation. `tasks` are its passes, one a seed; a question's value is its mean over them."""
    questions = tasks[0].questions
    written = [[answers[task.name, q["id"]] for task in tasks] for q in questions]
    parsed = [
        [parse_answer(a["text"], q["choices"], a["hit_limit"]) for a in row]
        for q, row in zip(questions, written, strict=True)
    ]
    rights = [[float(p.index == q["gold"]) for p in row] for q, row in zip(questions, parsed, strict=True)]
    right = [sum(row) / len(row) for row in rights]
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
    # Cut at a smaller budget, an answer that is longer would have been truncated: no need to write it again.
    finished = [
        (a["tokens"], value)
        for row, values in zip(written, rights, strict=True)
        for a, value in zip(row, values, strict=True)
        if not a["hit_limit"]
    ]
    limit = tasks[0].sampling.max_new_tokens
    budgets = [*(2**power for power in range(1, 31) if 2**power < limit), limit]
    each = [sum(row[number] for row in rights) / len(questions) for number in range(len(tasks))]
    seeds = [{"seed": task.sampling.seed, "accuracy": value} for task, value in zip(tasks, each, strict=True)]
    return {
        **metrics.summary(questions, right),
        "sampling": {key: getattr(tasks[0].sampling, key) for key in ("max_new_tokens", "temperature", "top_p")},
        "seeds": seeds,
        "standard_deviation_of_seeds": metrics.standard_deviation(each) if len(each) > 1 else None,
        "outcomes": {outcome: outcomes[outcome] / n for outcome in OUTCOMES},
        "accuracy_where_answered": sum(map(sum, rights)) / outcomes["answered"] if outcomes["answered"] else None,
        "tokens": {"mean": sum(tokens) / n, "longest": max(tokens)},
        "by_token_budget": [
            {
                "tokens": budget,
                "accuracy": sum(value for length, value in finished if length <= budget or budget == limit) / n,
                "truncated": 1 - sum(length <= budget or budget == limit for length, _ in finished) / n,
            }
            for budget in budgets
        ],
    }


def results_of(questions: Sequence[dict], tasks: Sequence[Any], answers: Answers) -> tuple[dict, dict[str, list]]:
    """(scores and floors for results.json, columns for predictions.parquet)."""
    columns: dict[str, list] = {
        "id": [q["id"] for q in questions],
        # Tells questions with the same prompt, whatever the model: a hash of the user's message.
        "prompt_id": [
            hashlib.sha256(user_message(q["question"], q["choices"], q["answer_format"]).encode()).hexdigest()[:16]
            for q in questions
        ],
        "article": [q.get("article") or "" for q in questions],
        "gold": [q["gold"] for q in questions],
    }
    floors: dict[str, Any] = metrics.floors(questions)
    scores = {}
    of_likelihood = [task for task in tasks if task.name == LIKELIHOOD or task.name.startswith(SHIFTED)]
    generated = [task for task in tasks if task.sampling]
    if of_likelihood:
        scores["option_likelihood"] = likelihood_score(of_likelihood, answers, columns)
    for task in tasks:
        if task.name == CHOICES_ONLY:
            floors["choices_only"] = choices_only(task, answers, columns)["accuracy"]
    if generated:
        scores["generation"] = generation_score(generated, answers, columns)
    return {"scores": scores, "floors": floors}, columns


def write_predictions(columns: dict[str, list], file: Path) -> None:
    """Write predictions.parquet whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = file.with_name(f".{file.name}.tmp")
    pq.write_table(pa.table(columns), temporary)
    temporary.rename(file)
