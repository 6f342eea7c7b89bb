"""From right and wrong answers to numbers with intervals: what sft/evaluate.py reports (docs/evaluation.md).

`right` is always one value a question, 1.0 for a right answer and 0.0 for a wrong one, or the share of right answers
where a question was answered several times.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from sft.common.prompts import LETTERS, chance, longest_option, majority_letter

Z95 = 1.959964
# Equal-width bins of the reliability diagram.
BINS = 10


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927), which holds near 0 and 1 where the normal one fails."""
    p, z = correct / n, Z95
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    # Exact at the ends, where rounding would leave the proportion itself outside.
    return (max(0.0, low) if correct > 0 else 0.0), (min(1.0, high) if correct < n else 1.0)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value, from the questions that one run alone answered rightly, in integers."""
    n, k = only_first + only_second, min(only_first, only_second)
    term, tail = 1, 0
    for i in range(k + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return min(1.0, 2 * tail / 2**n) if n else 1.0


def clustered_standard_error(values: Sequence[float], articles: Sequence[str]) -> float | None:
    """Standard error of the mean of `values` where questions of one article are not independent (arXiv 2411.00640).

    A question whose article is unknown ("") is a cluster of its own; if all are, this is the plain standard error of
    the mean, with n in the place of n - 1. None if there is only one cluster.
    """
    mean = sum(values) / len(values)
    of_article: dict[Any, float] = defaultdict(float)
    for number, (value, article) in enumerate(zip(values, articles, strict=True)):
        of_article[article or number] += value - mean
    if len(of_article) < 2:
        return None
    return math.sqrt(sum(total**2 for total in of_article.values())) / len(values)


def calibration(confidences: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    """Expected calibration error over equal-width bins (arXiv 1706.04599), and the bins of the reliability diagram."""
    by_bin: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for confidence, value in zip(confidences, right, strict=True):
        by_bin[min(int(confidence * BINS), BINS - 1)].append((confidence, value))
    bins = []
    for number, pairs in sorted(by_bin.items()):
        mean_confidence, share = map(fmean, zip(*pairs, strict=True))
        limits = {"from": number / BINS, "to": (number + 1) / BINS}
        bins.append({**limits, "n": len(pairs), "confidence": mean_confidence, "accuracy": share})
    gaps = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    return {"ece": gaps / len(right), "bins": bins}


def accuracy(right: Sequence[float], articles: Sequence[str]) -> dict[str, Any]:
    """Accuracy with Wilson's interval and the standard error that is clustered by article."""
    correct, n = sum(right), len(right)
    interval, error = list(wilson_interval(correct, n)), clustered_standard_error(right, articles)
    return {"accuracy": correct / n, "n": n, "ci95": interval, "standard_error_clustered": error}


def letter_bias(golds: Sequence[int], right: Sequence[float]) -> dict[str, Any]:
    """The recall of each letter, the mean of these recalls and their spread (RStd: arXiv 2309.03882)."""
    by_letter: dict[str, list[float]] = defaultdict(list)
    for gold, value in zip(golds, right, strict=True):
        by_letter[LETTERS[gold]].append(value)
    recalls = {letter: fmean(values) for letter, values in sorted(by_letter.items())}
    spread = pstdev(recalls.values())
    return {"balanced_accuracy": fmean(recalls.values()), "recall_by_letter": recalls, "rstd": spread}


def score_metrics(questions: Sequence[dict], right: Sequence[float]) -> dict[str, Any]:
    """The numbers that every score has: accuracy and its errors, and letter bias.

    Where questions have different numbers of options, ``by_options`` has the accuracy and the letter bias of each
    number, and the bias of all is their mean, weighted by questions: a late letter is right only where questions have
    many options and are hard, which is no bias.
    """
    articles = [question.get("article") or "" for question in questions]
    by_options: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for question, value in zip(questions, right, strict=True):
        by_options[len(question["choices"])].append((question["gold"], value))
    bias = letter_bias([question["gold"] for question in questions], right)
    if len(by_options) > 1:
        groups = {}
        for options, pairs in sorted(by_options.items()):
            golds, values = zip(*pairs, strict=True)
            groups[str(options)] = {"n": len(pairs), "accuracy": fmean(values), **letter_bias(golds, values)}
        sizes = [group["n"] for group in groups.values()]
        for name in ("balanced_accuracy", "rstd"):
            bias[name] = fmean([group[name] for group in groups.values()], sizes)
        bias["by_options"] = groups
    return {**accuracy(right, articles), "articles": len(set(articles) - {""}), **bias}


def paired_difference(
    right: list[float], baseline: list[float], articles: list[str], answered_once: bool = True
) -> dict:
    """Two runs over the same questions, in the same order (arXiv 2411.00640).

    ``difference`` of the accuracies with its 95 % interval, clustered by article (None if all are equal); and, if each
    question was `answered_once`, the questions that one run alone answered rightly, with the McNemar p-value.
    """
    differences = [a - b for a, b in zip(right, baseline, strict=True)]
    difference = sum(differences) / len(differences)
    half = Z95 * (clustered_standard_error(differences, articles) or 0.0)
    interval = [max(-1.0, difference - half), min(1.0, difference + half)] if half else None
    result = {"n": len(differences), "difference": difference, "ci95": interval}
    if answered_once:
        won, lost = differences.count(1.0), differences.count(-1.0)
        result |= {"won": won, "lost": lost, "mcnemar_p": mcnemar_p(lost, won)}
    return result


def floors(questions: Sequence[dict]) -> dict[str, float]:
    """Accuracy without reading the question: always the commonest gold letter; always the longest option; chance."""
    golds = Counter((len(q["choices"]), q["gold"]) for q in questions)
    longest = fmean(longest_option(q["choices"]) == q["gold"] for q in questions)
    options = Counter(len(q["choices"]) for q in questions)
    return {"majority_letter": majority_letter(golds), "longest_option": longest, **chance(options)}
