"""The numbers of an evaluation as rows and sentences, which the terminal, report.html and the model card all show."""

from typing import Any, NamedTuple

# The scores of an evaluation as results.json names them, and their titles; "correct" is that of a file of outcomes.
SCORES = {"option_likelihood": "option likelihood", "generation": "generation", "correct": "correct"}
# Of each column its head, and its text from the numbers of a row, which have the names of results.json.
COLUMNS = {
    "accuracy": "{accuracy:.3f}",
    "95 % interval": "{ci95[0]:.3f} to {ci95[1]:.3f}",
    "standard error": "{standard_error_clustered:.4f}",
    "balanced": "{balanced_accuracy:.3f}",
    "RStd": "{rstd:.3f}",
    "ECE": "{calibration[ece]:.3f}",
}
PAIRED_COLUMNS = {
    "baseline": "{baseline:.3f}",
    "difference": "{difference:+.3f}",
    "95 % interval": "{ci95[0]:+.3f} to {ci95[1]:+.3f}",
    "McNemar p": "{mcnemar_p:.2g}",
    "only one right": "{won} won, {lost} lost",
}
FIGURES_COLUMNS = {
    "accuracy": "{accuracy:.3f}",
    "95 % interval": "{ci95[0]:.3f} to {ci95[1]:.3f}",
    "{first} above it": "{difference[difference]:+.3f}",
    "95 % interval of that": "{difference[ci95][0]:+.3f} to {difference[ci95][1]:+.3f}",
    "McNemar p": "{difference[mcnemar_p]:.2g}",
    "answers changed": "{answers_changed:.1%}",
}
# What is done about a field of a request that a server refuses.
REFUSED_FIELDS = {
    "seed": "left out, so that sampled answers cannot be repeated",
    "max_tokens": "sent as max_completion_tokens",
    "temperature": "left out; 1 is its default",
    "top_p": "left out; 1 is its default",
}


class Row(NamedTuple):
    """A label, and numbers as results.json has them; `score` is None for a floor."""

    label: str
    numbers: dict[str, Any]
    score: str | None


def scores_of(results: dict[str, Any]) -> list[Row]:
    return [Row(SCORES[score], numbers, score) for score, numbers in results["scores"].items()]


def rows_of(results: dict[str, Any]) -> list[Row]:
    """Every score, its average over the permutations of the options, and the floors."""
    rows = []
    for row in scores_of(results):
        rows.append(row)
        if permutations := row.numbers.get("permutations"):
            orders = f"{'up to ' * ('by_options' in row.numbers)}{permutations['orders']}"
            rows.append(Row(f"average of {orders} permutations", permutations, row.score))
    for name, value in results["floors"].items():
        rows.append(Row(f"floor: {name.replace('_', ' ')}", {"accuracy": value}, None))
    return rows


def table_of(rows: list[Row], columns: dict[str, str] = COLUMNS, label: str = "score") -> list[list[str]]:
    """The head of a table and its lines; a number that a row lacks is a dash."""

    def text(form: str, numbers: dict[str, Any]) -> str:
        try:
            return form.format_map(numbers)
        except (KeyError, TypeError):  # TypeError: the number is None
            return "–"

    return [[label, *columns], *([row.label, *(text(form, row.numbers) for form in columns.values())] for row in rows)]


def score_table(results: dict[str, Any]) -> list[list[str]]:
    return table_of(rows_of(results))


def paired_table(results: dict[str, Any]) -> list[list[str]]:
    """The paired comparison of every score that the baseline has too."""
    rows = [
        Row(title, {**paired, "baseline": numbers["accuracy"] - paired["difference"]}, score)
        for title, numbers, score in scores_of(results)
        if (paired := results["paired"].get(score))
    ]
    return table_of(rows, PAIRED_COLUMNS)


def figures_rows(results: dict[str, Any]) -> list[Row]:
    """The scores of a model that sees under each condition of its figures; none of other models."""
    return [
        Row(f"{title}, {numbers['figures']}", numbers, score)
        for title, of_score, score in scores_of(results)
        for numbers in of_score.get("by_figures", ())
    ]


def figures_table(results: dict[str, Any]) -> list[list[str]] | None:
    """The table of `figures_rows`, or None."""
    if not (rows := figures_rows(results)):
        return None
    first = rows[0].numbers["figures"]
    columns = {head.replace("{first}", first): form for head, form in FIGURES_COLUMNS.items()}
    return table_of(rows, columns, "figures")


def notes_of(results: dict[str, Any]) -> list[str]:
    """What the table has no column for, in sentences."""
    notes = []
    for title, numbers, _ in scores_of(results):
        title = title.capitalize()
        recalls = ", ".join(f"{letter} {recall:.2f}" for letter, recall in numbers["recall_by_letter"].items())
        notes.append(f"{title}: recall by letter {recalls}.")
        if groups := numbers.get("by_options"):
            parts = ", ".join(
                f"{count}: {group['accuracy']:.3f} (n = {group['n']:,})" for count, group in groups.items()
            )
            notes.append(
                f"{title}: accuracy by number of options {parts}; balanced and RStd are means of these groups."
            )
        permutations = numbers.get("permutations", {})
        if permuted := permutations.get("questions_in_several_orders"):
            share = permutations["same_option_in_all_orders"]
            notes.append(f"{title}: the same option in all permutations for {share:.1%} of {permuted:,} questions.")
        if seeds := numbers.get("seeds"):
            sampling = ", ".join(f"{key} {value}" for key, value in numbers["sampling"].items())
            names = ", ".join(str(seed["seed"]) for seed in seeds)
            shares = ", ".join(f"{outcome} {share:.1%}" for outcome, share in numbers["outcomes"].items())
            length = f"{numbers['tokens']['mean']:.0f} tokens an answer"
            notes.append(f"{title} ({sampling}; seeds {names}): {shares}; {length}.")
            if len(seeds) > 1:
                accuracies = ", ".join(f"{seed['accuracy']:.3f}" for seed in seeds)
                deviation = numbers["standard_deviation_of_seeds"]
                notes.append(f"{title} by seed: {accuracies} (standard deviation {deviation:.3f}).")
        if budgets := numbers.get("by_thinking_budget"):
            parts = [f"{row['tokens'] or 'as written'}: {row['accuracy']:.3f}" for row in budgets]
            notes.append(f"{title} by thinking tokens allowed {', '.join(parts)}.")
        for row in numbers.get("by_figures", ()):
            if row["figures"] == "shuffled" and (row["difference"]["ci95"] or [0])[0] <= 0:
                notes.append(
                    f"{title}: the interval of the difference between a question's own figures and those of another "
                    "article holds 0: nothing shows that the model uses its figures."
                )
        if unknown := numbers.get("unknown_finish_reasons"):
            counts = ", ".join(f"{reason} ({numbers['finish_reasons'][reason]})" for reason in unknown)
            meaning = "such an answer counts as truncated if it has as many tokens as the limit"
            notes.append(f"{title}: the server sent finish reasons that are not known here: {counts}; {meaning}.")
        if refused := numbers.get("refused_fields"):
            substitutes = ", ".join(f"{name} ({REFUSED_FIELDS[name]})" for name in refused)
            notes.append(f"{title}: the server refuses fields of a request: {substitutes}.")
        if names := numbers.get("other_models"):
            notes.append(
                f"{title}: the server answers with another model's name than --model_path: {', '.join(names)}."
            )
        if numbers["articles"] and numbers["standard_error_clustered"] is not None:
            notes.append(f"{title}: the standard error is clustered by {numbers['articles']} articles.")
    return notes


def aligned(table: list[list[str]]) -> str:
    """A table for the terminal, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [[label.ljust(widths[0]), *map(str.rjust, cells, widths[1:])] for label, *cells in table]
    return "\n".join("  " + "  ".join(line) for line in lines)


def paired_text(results: dict[str, Any]) -> str:
    """The paired comparison for the terminal."""
    head = f"{results['name']} against {results['paired']['baseline']}: {results['n']} questions, paired; "
    return f"{head}intervals clustered by article\n{aligned(paired_table(results))}"


def results_text(results: dict[str, Any]) -> str:
    """The results for the terminal: what the page shows, without its plots."""
    head = f"{results['name']}: {results['n']} questions, split {results['split']} of {results['dataset']}"
    paired = [paired_text(results)] if "paired" in results else []
    if figures := figures_table(results):
        paired = [aligned(figures), *paired]
    notes = "\n".join(f"  {note}" for note in notes_of(results))
    return "\n\n".join([head, aligned(score_table(results)), *paired, notes])
