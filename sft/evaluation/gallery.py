"""Questions with their figures, to look at: what a model that sees answers with them and without."""

import base64
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft.common.command import atomic_write
from sft.common.figures import Figures
from sft.common.prompts import LETTERS
from sft.inference.likelihood import softmax

EACH = 4  # questions answered rightly, and as many answered wrongly
PIXELS = 224  # of the longer side of a figure, small enough for a page that holds its figures


class Example(NamedTuple):
    """A question, its first figure made small, the probability of its answer, and the answer by condition."""

    question: dict
    picture: Any
    probability: float
    answers: dict[str, int]

    def option(self, index: int) -> str:
        return f"{LETTERS[index]}. {self.question['choices'][index]}"

    @property
    def jpeg(self) -> str:
        """The figure as the address of an image in a page."""
        file = io.BytesIO()
        self.picture.save(file, "JPEG", quality=85)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def examples_of(
    questions: Sequence[dict], columns: dict[str, list], conditions: Sequence[str], figures: Figures
) -> list[Example]:
    """The most confident answers by option likelihood to questions with figures: first right ones, then wrong ones."""
    answers = {condition: columns[f"option_likelihood_{condition}_answer"] for condition in conditions[1:]}
    answers = {conditions[0]: columns["option_likelihood_answer"], **answers}
    certain = [max(softmax(scores)) for scores in columns["log_likelihoods"]]
    with_figures = [index for index, question in enumerate(questions) if question.get("images")]
    order = sorted(with_figures, key=lambda index: -certain[index])  # equals stay in the order of the questions
    right = [index for index in order if columns["option_likelihood_right"][index]]
    wrong = [index for index in order if not columns["option_likelihood_right"][index]]
    examples = []
    for index in [*right[:EACH], *wrong[:EACH]]:
        (picture,) = figures.read(questions[index]["images"][:1])
        picture.thumbnail((PIXELS, PIXELS))
        given = {condition: of[index] for condition, of in answers.items()}
        examples.append(Example(questions[index], picture, certain[index], given))
    return examples


def write_picture(examples: Sequence[Example], file: Path) -> None:
    """Draw the examples into one picture, atomically; the same examples give the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = -(-len(examples) // EACH)
    with rc_context({"font.family": "sans-serif"}):
        figure = Figure(figsize=(3.2 * EACH, 4.3 * rows), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)  # inches between panels
        grid = list(figure.subplots(rows, EACH, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        for axes, example in zip(grid, examples, strict=False):
            axes.imshow(example.picture)
            axes.set_title(_wrapped(example.question["question"]), fontsize=9, loc="left")
            gold = example.question["gold"]
            lines = [f"right: {example.option(gold)}"]
            lines += [f"{condition}: {example.option(answer)}" for condition, answer in example.answers.items()]
            colour = "#1a7a3a" if next(iter(example.answers.values())) == gold else "#b3261e"
            text = "\n".join(map(_wrapped, lines))
            axes.text(0, -0.03, text, transform=axes.transAxes, va="top", fontsize=8, color=colour)
        with atomic_write(file) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _wrapped(text: str) -> str:
    """At most three lines of a panel's width, in which matplotlib reads no formulas."""
    return textwrap.fill(text, 40, max_lines=3, placeholder=" …").replace("$", r"\$")
