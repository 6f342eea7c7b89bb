"""From answers to the numbers of results.json and the columns of predictions.parquet.

Nothing here depends on how long it took, on the number of processes or on interruptions: the same answers give the
same bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from sft.common.prompts import user_message
from sft.evaluation import metrics
from sft.evaluation.tasks import CHOICES_ONLY, LIKELIHOOD, SHIFTED
from sft.inference.likelihood import most_likely, softmax
from sft.inference.parsing import parse_answer
from sft.inference.server import CUT, FINISHED

Answers = Mapping[tuple[str, str], dict]
OUTCOMES = ("answered", "unparsed", "truncated")


def option_scores(task: Any, answers: Answers) -> list[list[float]]:
    """The log-likelihoods of each question of a pass."""
    return [answers[task.name, q["id"]]["log_likelihoods"] for q in task.questions]


def likelihood_score(tasks: Sequence[Any], answers: Answers, columns: dict[str, list]) -> dict[str, Any]:
    """The numbers of option likelihood, from the questions as they stand and their permutations; fills `columns`."""
    plain, *permuted = tasks
    questions, scores = plain.questions, option_scores(plain, answers)
    chosen = most_likely(scores)
    right = [float(answer == q["gold"]) for answer, q in zip(chosen, questions, strict=True)]
    columns |= {"log_likelihoods": scores, "option_likelihood_answer": chosen, "option_likelihood_right": right}
    numbers = metrics.score_metrics(questions, right)
    numbers["calibration"] = metrics.calibration([max(softmax(values)) for values in scores], right)
    if permuted:
        # Options by their place in the question as it stands, so that permutations can be compared.
        by_id = {q["id"]: [answer] for q, answer in zip(questions, chosen, strict=True)}
        for shift, task in enumerate(permuted, start=1):
            for q, place in zip(task.questions, most_likely(option_scores(task, answers)), strict=True):
                by_id[q["id"]].append((place + shift) % len(q["choices"]))
        columns["permutation_answers"] = [by_id[q["id"]] for q in questions]
        shares = [fmean(answer == q["gold"] for answer in by_id[q["id"]]) for q in questions]
        same = [len(set(row)) == 1 for row in by_id.values() if len(row) > 1]
        numbers["permutations"] = {
            "orders": len(tasks),
            "questions_in_several_orders": len(same),
            **metrics.accuracy(shares, columns["article"]),
            "same_option_in_all_orders": fmean(same) if same else None,
        }
    return numbers


def parsed(answers: Answers, task: str, q: dict) -> dict[str, Any]:
    """A generated answer with the option that it states."""
    answer = answers[task, q["id"]]
    index, outcome = parse_answer(answer["text"], q["choices"], answer["hit_limit"])
    return {**answer, "answer": index, "outcome": outcome, "right": float(index == q["gold"])}


def thinking_budgets(tasks: Sequence[Any], cuts: Sequence[Any], answers: Answers) -> list[dict[str, Any]]:
    """Accuracy by thinking tokens allowed: reasoning that is longer was cut off, and an answer written behind it.

    The last row is that of the answers as they were written.
    """
    questions = tasks[0].questions
    articles = [q.get("article") or "" for q in questions]
    written = {(task.name, q["id"]): parsed(answers, task.name, q)["right"] for task in tasks for q in questions}
    rows = []
    for budget in [*sorted({cut.budget for cut in cuts}), None]:
        of_budget = [cut for cut in cuts if cut.budget == budget]
        cut_off = {
            (cut.of, q["id"]): parsed(answers, cut.name, q)["right"] for cut in of_budget for q in cut.questions
        }
        rights = written | cut_off
        right = [fmean(rights[task.name, q["id"]] for task in tasks) for q in questions]
        numbers = metrics.accuracy(right, articles)
        rows.append({"tokens": budget, "cut_off": len(cut_off) / len(written), **numbers})
    return rows


def generation_score(tasks: Sequence[Any], answers: Answers, columns: dict[str, list]) -> dict[str, Any]:
    """The numbers of generation, a question's value being its mean over the passes (seeds); fills `columns`."""
    questions, sampling = tasks[0].questions, tasks[0].sampling

    rows = [[parsed(answers, task.name, q) for task in tasks] for q in questions]
    for column, key in {"answers": "answer", "outcomes": "outcome", "tokens": "tokens", "texts": "text"}.items():
        columns[f"generation_{column}"] = [[answer[key] for answer in row] for row in rows]
    columns["generation_right"] = right = [fmean(answer["right"] for answer in row) for row in rows]
    every = [answer for row in rows for answer in row]
    n, outcomes = len(every), Counter(answer["outcome"] for answer in every)
    rights = sum(answer["right"] for answer in every)
    accuracies = [fmean(answer["right"] for answer in seed) for seed in zip(*rows, strict=True)]
    limit = sampling.max_new_tokens

    def at_budget(budget: int) -> dict[str, Any]:
        # An answer that is longer than a smaller budget would have been truncated by it: no need to write it again.
        finished = [a for a in every if not a["hit_limit"] and (a["tokens"] <= budget or budget == limit)]
        accuracy = sum(answer["right"] for answer in finished) / n
        return {"tokens": budget, "accuracy": accuracy, "truncated": 1 - len(finished) / n}

    return {
        **metrics.score_metrics(questions, right),
        "sampling": {key: getattr(sampling, key) for key in ("max_new_tokens", "temperature", "top_p")},
        "seeds": [{"seed": t.sampling.seed, "accuracy": a} for t, a in zip(tasks, accuracies, strict=True)],
        "standard_deviation_of_seeds": pstdev(accuracies) if len(tasks) > 1 else None,
        "outcomes": {outcome: outcomes[outcome] / n for outcome in OUTCOMES},
        "accuracy_where_answered": rights / outcomes["answered"] if outcomes["answered"] else None,
        "tokens": {"mean": sum(a["tokens"] for a in every) / n, "longest": max(a["tokens"] for a in every)},
        "by_token_budget": [at_budget(2**power) for power in range(1, 31) if 2**power < limit] + [at_budget(limit)],
        **of_server(every),
    }


def figure_conditions(
    score: str, tasks: Sequence[Any], conditions: Sequence[str], answers: Answers, columns: dict[str, list]
) -> list[dict[str, Any]]:
    """Accuracy under each condition of the figures; fills `columns`.

    Of all but the first also how far the first is above it, in pairs (0 of a model that does not look), and the share
    of answers that are others under the first.
    """
    questions = tasks[0].questions
    articles = [q.get("article") or "" for q in questions]
    rows = []
    for condition in conditions:
        of = [task for task in tasks if task.condition == (None if condition == conditions[0] else condition)]
        chosen = [chosen_of(task, answers) for task in of]
        right = [
            fmean(a == q["gold"] for a in given) for given, q in zip(zip(*chosen, strict=True), questions, strict=True)
        ]
        row = {"figures": condition, **metrics.accuracy(right, articles)}
        if not rows:
            first, first_right = chosen, right
        else:
            once = len(of) == 1
            row["difference"] = metrics.paired_difference(first_right, right, articles, answered_once=once)
            pairs = [pair for a, b in zip(first, chosen, strict=True) for pair in zip(a, b, strict=True)]
            row["answers_changed"] = fmean(a != b for a, b in pairs)
            columns[f"{score}_{condition}_right"] = right
            columns[f"{score}_{condition}_answer"] = (
                chosen[0] if once else [list(given) for given in zip(*chosen, strict=True)]
            )
        rows.append(row)
    return rows


def chosen_of(task: Any, answers: Answers) -> list[int | None]:
    """The option that each answer of a pass takes; None of a text that states none."""
    if task.sampling:
        return [parsed(answers, task.name, q)["answer"] for q in task.questions]
    return most_likely(option_scores(task, answers))


def of_server(answers: Sequence[dict]) -> dict[str, Any]:
    """How a server ended its answers, what fields it refuses, and other models that it names; {} of others."""
    if not (reasons := Counter(a["finish_reason"] for a in answers if "finish_reason" in a)):
        return {}
    return {
        "finish_reasons": dict(sorted(reasons.items())),
        "unknown_finish_reasons": sorted(reason for reason in reasons if reason.lower() not in FINISHED + CUT),
        "refused_fields": sorted({name for answer in answers for name in answer.get("refused_fields", [])}),
        "other_models": sorted({answer["other_model"] for answer in answers if "other_model" in answer}),
    }


def results_of(
    questions: Sequence[dict], tasks: Sequence[Any], answers: Answers, conditions: Sequence[str] = ()
) -> tuple[dict, dict[str, list]]:
    """(scores and floors for results.json, columns for predictions.parquet).

    `conditions` are those of --figures, of a model that sees; the scores are those under the first.
    """
    prompts = [user_message(q["question"], q["choices"], q["answer_format"]) for q in questions]
    columns: dict[str, list] = {
        "id": [q["id"] for q in questions],
        # A hash of the user's message: the same for questions with the same prompt, whatever the model.
        "prompt_id": [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in prompts],
        "article": [q.get("article") or "" for q in questions],
        "gold": [q["gold"] for q in questions],
    }
    floors, scores = metrics.floors(questions), {}
    under_others = [task for task in tasks if task.condition]
    tasks = [task for task in tasks if not task.condition]
    if likelihood := [task for task in tasks if task.name == LIKELIHOOD or task.name.startswith(SHIFTED)]:
        scores["option_likelihood"] = likelihood_score(likelihood, answers, columns)
    for task in tasks:
        if task.name == CHOICES_ONLY:
            columns["choices_only_answer"] = chosen = most_likely(option_scores(task, answers))
            floors["choices_only"] = fmean(a == gold for a, gold in zip(chosen, columns["gold"], strict=True))
    if generation := [task for task in tasks if task.sampling and task.budget is None]:
        scores["generation"] = generation_score(generation, answers, columns)
        if cuts := [task for task in tasks if task.budget is not None]:
            scores["generation"]["by_thinking_budget"] = thinking_budgets(generation, cuts, answers)
    for score, passes in (("option_likelihood", likelihood[:1]), ("generation", generation)):
        if conditions and passes:
            names = {task.name for task in passes}
            passes = [*passes, *(task for task in under_others if task.of in names)]
            scores[score]["by_figures"] = figure_conditions(score, passes, conditions, answers, columns)
    return {"scores": scores, "floors": floors}, columns
