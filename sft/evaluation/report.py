"""The page to look at after an evaluation: one HTML file with its plots inside, without scripts or links."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sft.common.command import atomic_write
from sft.common.display import render
from sft.common.prompts import LETTERS
from sft.evaluation.gallery import Example
from sft.evaluation.tables import (
    Row,
    figures_rows,
    figures_table,
    notes_of,
    paired_table,
    rows_of,
    score_table,
    scores_of,
)
from sft.inference.likelihood import softmax

# Errors that are listed, the most confident first.
ERRORS = 20
COLOURS = {"option_likelihood": "#3273a8", "generation": "#c4682b"}
GREY = "#888888"


def as_svg(plot: Callable[[Any, Any], None], data: Any, height: float) -> str:
    """What `plot(axes, data)` draws, `height` inches high; the same numbers give the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "pmcvqa", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, height), layout="constrained")
        axes = figure.subplots()
        plot(axes, data)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper right", ncols=3, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return svg.getvalue()[svg.getvalue().index("<svg") :]  # matplotlib has escaped the texts in it


def plot_accuracy(axes: Any, results: dict[str, Any]) -> None:
    """Every score with its 95 % interval, and the floors that it has to stand above."""
    plot_rows(axes, results, rows_of(results))


def plot_figures(axes: Any, results: dict[str, Any]) -> None:
    """Every score under each condition of the figures, with 95 % intervals."""
    plot_rows(axes, results, figures_rows(results))


def plot_rows(axes: Any, results: dict[str, Any], rows: Sequence[Row]) -> None:
    """A bar for the accuracy of each row."""
    for place, (_, numbers, score) in enumerate(rows):
        value = numbers["accuracy"]
        low, high = numbers.get("ci95", (value, value))
        axes.barh(place, value, color=COLOURS.get(score, GREY), alpha=0.85 if score else 0.45, height=0.7)
        if "ci95" in numbers:
            axes.errorbar(value, place, xerr=[[value - low], [high - value]], color="black", capsize=4)
        axes.annotate(f"{value:.3f}", (high + 0.01, place), va="center")
    axes.axvline(max(results["floors"].values()), color=GREY, linestyle=":", label="highest floor")
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.05), xlabel=f"accuracy (n = {results['n']}; lines: 95 % intervals)")


def plot_recall(axes: Any, results: dict[str, Any]) -> None:
    """Recall by the letter of the right option, the bars of every score side by side."""
    scores = scores_of(results)
    letters = sorted({letter for row in scores for letter in row.numbers["recall_by_letter"]})
    width = 0.8 / len(scores)
    for number, (title, numbers, score) in enumerate(scores):
        places = [place + (number - (len(scores) - 1) / 2) * width for place in range(len(letters))]
        heights = [numbers["recall_by_letter"].get(letter, 0.0) for letter in letters]
        axes.bar(places, heights, width * 0.92, color=COLOURS[score], label=title)
    axes.set_xticks(range(len(letters)), letters)
    axes.set_ylim(0, 1)


def plot_calibration(axes: Any, bins: list[dict[str, Any]]) -> None:
    """How often the model is right, by the probability of its answer."""
    most = max(each["n"] for each in bins)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    for each in bins:
        middle, width = (each["from"] + each["to"]) / 2, each["to"] - each["from"]
        alpha = 0.25 + 0.75 * each["n"] / most
        axes.bar(middle, each["accuracy"], width, color=COLOURS["option_likelihood"], alpha=alpha, edgecolor="white")
        axes.annotate(each["n"], (middle, each["accuracy"] + 0.02), ha="center")
    axes.set(xlim=(0, 1), ylim=(0, 1.08), ylabel="share answered rightly")
    axes.set_xlabel("probability of the chosen option (above each bar: questions)")


def plot_budgets(axes: Any, budgets: Sequence[dict[str, Any]]) -> None:
    """Accuracy and truncated answers, had the token budget been smaller."""
    tokens = [budget["tokens"] for budget in budgets]
    axes.plot(tokens, [b["accuracy"] for b in budgets], "o-", color=COLOURS["generation"], label="accuracy")
    axes.plot(tokens, [b["truncated"] for b in budgets], "s--", color=GREY, label="truncated answers")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [f"{value:,}" for value in tokens])
    axes.minorticks_off()
    axes.set(ylim=(-0.02, 1.02), xlabel="token budget of an answer", ylabel="share of answers")


def plot_thinking(axes: Any, budgets: Sequence[dict[str, Any]]) -> None:
    """Accuracy by thinking tokens allowed, with 95 % intervals, and the share of answers whose thinking was cut."""
    *cut, written = budgets
    tokens, accuracies = [row["tokens"] for row in cut], [row["accuracy"] for row in cut]
    lows = [row["accuracy"] - row["ci95"][0] for row in cut]
    highs = [row["ci95"][1] - row["accuracy"] for row in cut]
    axes.errorbar(
        tokens, accuracies, [lows, highs], fmt="o-", capsize=4, color=COLOURS["generation"], label="accuracy"
    )
    axes.axhline(written["accuracy"], color=COLOURS["generation"], linestyle=":", label="accuracy as written")
    axes.plot(tokens, [row["cut_off"] for row in cut], "s--", color=GREY, label="thinking cut off")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [f"{value:,}" for value in tokens])
    axes.minorticks_off()
    axes.set(ylim=(-0.02, 1.02), xlabel="thinking tokens allowed", ylabel="share of answers")


def confident_errors(columns: dict[str, list], questions: Sequence[dict]) -> list[list[str]]:
    """The wrong answers of the highest probability: the label is wrong, or the model lacks the fact."""
    answers = zip(questions, columns["option_likelihood_answer"], columns["log_likelihoods"], strict=True)
    wrong = [(max(softmax(scores)), q, chosen) for q, chosen, scores in answers if chosen != q["gold"]]
    wrong.sort(key=lambda error: -error[0])  # errors of one probability stay in the order of the questions
    rows = []
    for probability, q, chosen in wrong[:ERRORS]:
        texts = [f"{LETTERS[option]}. {q['choices'][option]}" for option in (chosen, q["gold"])]
        rows.append([q["id"], q["question"], *texts, f"{probability:.3f}"])
    return rows


def write_report(
    results: dict[str, Any],
    columns: dict[str, list],
    questions: Sequence[dict],
    examples: Sequence[Example],
    file: Path,
) -> None:
    """Write the page of the evaluation, atomically; `examples` are those of a model that sees."""
    likelihood, generation = (results["scores"].get(score) for score in ("option_likelihood", "generation"))
    budgets = (generation or {}).get("by_thinking_budget")
    numbers, conditions = score_table(results), figures_rows(results)
    page = render(
        Path(__file__).with_name("templates") / "report.html",
        results=results,
        numbers=numbers,
        notes=notes_of(results),
        paired=paired_table(results) if "paired" in results else None,
        figures=figures_table(results),
        by_figures=as_svg(plot_figures, results, 0.8 + 0.42 * len(conditions)) if conditions else None,
        examples=examples,
        accuracy=as_svg(plot_accuracy, results, 0.8 + 0.42 * (len(numbers) - 1)),
        recall=as_svg(plot_recall, results, 3.4),
        calibration=as_svg(plot_calibration, likelihood["calibration"]["bins"], 3.6) if likelihood else None,
        token_budget=as_svg(plot_budgets, generation["by_token_budget"], 3.4) if generation else None,
        thinking=as_svg(plot_thinking, budgets, 3.4) if budgets else None,
        errors=confident_errors(columns, questions) if likelihood else None,
    )
    with atomic_write(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
