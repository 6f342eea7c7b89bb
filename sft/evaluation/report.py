"""The page to look at after an evaluation: one HTML file with its plots inside, without scripts or links.

Every plot answers one question of a reader; docs/evaluation.md explains the numbers behind it.
"""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.common.command import atomic_write
from sft.common.display import STYLE, table
from sft.common.prompts import LETTERS
from sft.evaluation.comparison import SCORES, interval
from sft.inference.likelihood import softmax

# Errors that are listed, the most confident first.
ERRORS = 20
COLOURS = {"option_likelihood": "#3273a8", "generation": "#c4682b"}
GREY = "#888888"
PAIRED = ("won", "lost", "mcnemar_p")
NOTES = {
    "accuracy": "A floor is the accuracy without reading the question. A model has learnt something only where its "
    "interval lies above every floor.",
    "paired": "Both runs answered the same questions: the interval is that of the paired difference, clustered by "
    "article; won and lost are the questions that one of the two alone answered rightly.",
    "letters": "Of the questions whose right option stands at a letter, the share answered rightly. Unequal bars are "
    "letter bias.",
    "orders": "Options in cyclic orders, except where an option speaks of its place.",
    "calibration": "Bars below the line: surer than right. The fainter a bar, the fewer questions.",
    "outcomes": "Unparsed (no single option stated) and truncated (the token limit reached) count as wrong.",
    "budget": "An answer that is longer than a budget would have been truncated by it.",
    "errors": "Wrong by option likelihood, the highest probability first: blind spots of the model, or wrong labels.",
}


def drawn(height: float, draw: Any) -> str:
    """An SVG picture of what `draw(axes)` draws; the same numbers give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "pmcvqa", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper right", ncols=3, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        picture = io.StringIO()
        figure.savefig(picture, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        plt.close(figure)
    return picture.getvalue()[picture.getvalue().index("<svg") :]


def accuracy_plot(results: dict[str, Any]) -> str:
    """Every score with its 95 % interval, and the floors that it has to stand above."""
    bars = []
    for score, title in SCORES.items():
        if score in results["scores"]:
            found = results["scores"][score]
            bars.append((title, found["accuracy"], found["ci95"], COLOURS[score]))
            if "permutations" in found:
                turned = found["permutations"]
                name = f"average of {turned['orders']} orders"
                bars.append((name, turned["accuracy"], turned["ci95"], COLOURS[score]))
    bars += [(f"floor: {name.replace('_', ' ')}", value, None, GREY) for name, value in results["floors"].items()]

    def draw(axes: Any) -> None:
        for place, (_, value, ci95, colour) in enumerate(bars):
            axes.barh(place, value, color=colour, alpha=0.85 if ci95 else 0.45, height=0.7)
            if ci95:
                axes.errorbar(value, place, xerr=[[value - ci95[0]], [ci95[1] - value]], color="black", capsize=4)
            axes.annotate(f"{value:.3f}", (max(value, ci95[1] if ci95 else 0) + 0.01, place), va="center")
        axes.axvline(max(results["floors"].values()), color=GREY, linestyle=":", label="highest floor")
        axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05)
        axes.set_xlabel(f"accuracy (n = {results['n']}; bars: 95 % ci95)")

    return drawn(0.8 + 0.42 * len(bars), draw)


def letter_plot(results: dict[str, Any]) -> str:
    """Recall by the letter of the right option, the bars of every score side by side."""
    letters = sorted({letter for found in results["scores"].values() for letter in found["recall_by_letter"]})

    def draw(axes: Any) -> None:
        scores = [score for score in SCORES if score in results["scores"]]
        width = 0.8 / len(scores)
        for number, score in enumerate(scores):
            recall = results["scores"][score]["recall_by_letter"]
            places = [place + (number - (len(scores) - 1) / 2) * width for place in range(len(letters))]
            heights = [recall.get(letter, 0.0) for letter in letters]
            axes.bar(places, heights, width * 0.92, color=COLOURS[score], label=SCORES[score])
        axes.set_xticks(range(len(letters)), letters)
        axes.set_ylim(0, 1)

    return drawn(3.4, draw)


def reliability_plot(calibration: dict[str, Any]) -> str:
    """How often the model is right where it is so sure."""

    def draw(axes: Any) -> None:
        most = max(found["n"] for found in calibration["bins"])
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="as sure as right")
        for found in calibration["bins"]:
            axes.bar(
                found["from"],
                found["accuracy"],
                found["to"] - found["from"],
                align="edge",
                color=COLOURS["option_likelihood"],
                alpha=0.25 + 0.75 * found["n"] / most,
                edgecolor="white",
            )
            axes.annotate(found["n"], ((found["from"] + found["to"]) / 2, found["accuracy"] + 0.02), ha="center")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.08)
        axes.set_xlabel("probability of the chosen option (above each bar: questions)")
        axes.set_ylabel("share answered rightly")

    return drawn(3.6, draw)


def budget_plot(budgets: Sequence[dict[str, Any]]) -> str:
    """Accuracy and truncated answers, had the token budget been smaller."""

    def draw(axes: Any) -> None:
        tokens = [found["tokens"] for found in budgets]
        axes.plot(tokens, [b["accuracy"] for b in budgets], "o-", color=COLOURS["generation"], label="accuracy")
        axes.plot(tokens, [b["truncated"] for b in budgets], "s--", color=GREY, label="truncated answers")
        axes.set_xscale("log", base=2)
        axes.set_xticks(tokens, [f"{value:,}" for value in tokens])
        axes.minorticks_off()
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("token budget of an answer")
        axes.set_ylabel("share of answers")

    return drawn(3.4, draw)


def confident_errors(columns: dict[str, list], questions: Sequence[dict]) -> str:
    """The wrong answers that the model was surest of: where labels and blind spots are found."""
    wrong = []
    for number, question in enumerate(questions):
        if not columns["option_likelihood_right"][number]:
            probabilities = softmax(columns["log_likelihoods"][number])
            chosen = columns["option_likelihood_answer"][number]
            wrong.append((-probabilities[chosen], number, question, chosen))
    rows = [
        [
            question["id"],
            question["question"],
            f"{LETTERS[chosen]}. {question['choices'][chosen]}",
            f"{LETTERS[question['gold']]}. {question['choices'][question['gold']]}",
            f"{-confidence:.3f}",
        ]
        for confidence, _, question, chosen in sorted(wrong, key=lambda row: row[:2])[:ERRORS]
    ]
    return table(["id", "question", "answered", "right", "probability"], rows, texts=4) if rows else "<p>None.</p>"


def error_in_words(found: float | None) -> str:
    """A standard error, if there is one."""
    return "–" if found is None else f"{found:.4f}"


def numbers(results: dict[str, Any]) -> str:
    """The table at the top of the page."""
    rows = []
    for score, title in SCORES.items():
        if score in results["scores"]:
            found = results["scores"][score]
            low, high = found["ci95"]
            rows.append(
                [
                    title,
                    f"{found['accuracy']:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    error_in_words(found["standard_error_clustered"]),
                    f"{found['balanced_accuracy']:.3f}",
                    f"{found['rstd']:.3f}",
                    f"{found['calibration']['ece']:.3f}" if "calibration" in found else "–",
                ]
            )
            if "permutations" in found:
                turned = found["permutations"]
                low, high = turned["ci95"]
                name, error = (
                    f"average of {turned['orders']} orders",
                    error_in_words(turned["standard_error_clustered"]),
                )
                rows.append([name, f"{turned['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", error, "–", "–", "–"])
    rows += [
        [f"floor: {name.replace('_', ' ')}", f"{value:.3f}", *"–" * 5] for name, value in results["floors"].items()
    ]
    head = ["score", "accuracy", "95 % interval", "standard error, clustered", "balanced", "RStd", "ECE"]
    return table(head, rows)


def write_report(results: dict[str, Any], columns: dict[str, list], questions: Sequence[dict], file: Path) -> None:
    """Write the page of the evaluation, whole or not at all."""
    scores = results["scores"]
    sections = [("Accuracy against the floors", accuracy_plot(results), NOTES["accuracy"])]
    if "paired" in results:
        rows = [
            [title, f"{found['difference']:+.3f}", interval(found["ci95"])]
            + [f"{found[key]:.2g}" if isinstance(found.get(key), float) else found.get(key, "–") for key in PAIRED]
            for score, title in SCORES.items()
            if (found := results["paired"].get(score))
        ]
        head = ["score", "difference", "95 % interval", "won", "lost", "McNemar p"]
        sections.append((f"Against {results['paired']['baseline']}", table(head, rows), NOTES["paired"]))
    sections.append(("Recall by letter", letter_plot(results), NOTES["letters"]))
    if "permutations" in scores.get("option_likelihood", {}):
        turned = scores["option_likelihood"]["permutations"]
        said = f"<p>{turned['same_option_in_all_orders']:.1%} of the questions get the same option in all orders.</p>"
        sections.append(("Orders of the options", said, NOTES["orders"]))
    if "option_likelihood" in scores:
        found = scores["option_likelihood"]["calibration"]
        sections.append(("Calibration", reliability_plot(found), NOTES["calibration"]))
    if "generation" in scores:
        found = scores["generation"]
        outcomes = [[name, f"{share:.1%}"] for name, share in found["outcomes"].items()]
        seeds = [[f"seed {seed['seed']}", f"{seed['accuracy']:.3f}"] for seed in found["seeds"]]
        how = found["sampling"]
        said = (
            f"<p>Temperature {how['temperature']:g}, top-p {how['top_p']:g}, at most {how['max_new_tokens']:,} "
            f"tokens; {found['tokens']['mean']:.0f} tokens an answer.</p>"
        )
        written = said + table(["outcome", "answers"], outcomes) + table(["pass", "accuracy"], seeds)
        sections.append(("Written answers", written, NOTES["outcomes"]))
        sections.append(("Token budget", budget_plot(found["by_token_budget"]), NOTES["budget"]))
    if "option_likelihood" in scores:
        sections.append((f"The {ERRORS} most confident errors", confident_errors(columns, questions), NOTES["errors"]))
    body = "".join(
        f"<h2>{html.escape(title)}</h2>\n{content}\n<p class=note>{note}</p>\n" for title, content, note in sections
    )
    name = html.escape(results["name"])
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name}: evaluation</title><style>{STYLE}
.plot,body>svg{{background:#fff;color:#000;height:auto}}body>svg text{{fill:#000}}
</style></head><body>
<h1>{name}</h1>
<p>Model {html.escape(results["model"])}, {results["n"]:,} questions of split {html.escape(results["split"])} of
{html.escape(results["dataset"])}, answer format {html.escape(results["answer_format"])}.</p>
{numbers(results)}
<p class=note>Balanced: mean recall of the letters. RStd: spread of these recalls. ECE: expected calibration error.
A text-only model does not see the figures; nothing here is for clinical use.</p>
{body}</body></html>
"""
    with atomic_write(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
