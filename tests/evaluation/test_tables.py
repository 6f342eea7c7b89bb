"""The terminal, the page and the card show the same rows, and a new number is one line of a table's columns."""

import html
from types import SimpleNamespace

import pytest

from sft.evaluation.report import write_report
from sft.evaluation.results import results_of
from sft.evaluation.tables import COLUMNS, PAIRED_COLUMNS, paired_table, results_text, rows_of, score_table, table_of
from sft.evaluation.tasks import tasks_of

QUESTIONS = [
    {"id": str(i), "question": "Is 1 < 2 & <b>?", "choices": ["Lung", "Heart"], "gold": 0, "answer_format": "text"}
    for i in range(2)
]


@pytest.fixture
def evaluated():
    """(results, columns of predictions.parquet): one right and one wrong answer, in each of two permutations."""
    args = SimpleNamespace(method=["likelihood"], choices_only=True, permutations=2, figures=[])
    tasks = tasks_of(args, QUESTIONS, [])
    scores = {"0": [-0.1, -2.0], "1": [-2.0, -0.1]}
    answers = {(task.name, q["id"]): {"log_likelihoods": scores[q["id"]]} for task in tasks for q in task.questions}
    results, columns = results_of(QUESTIONS, tasks, answers)
    about = {"name": "a<b>", "model": "m", "dataset": "d", "split": "test", "n": 2, "answer_format": "text"}
    paired = {"difference": 0.5, "ci95": None, "won": 1, "lost": 0, "mcnemar_p": 1.0}
    return {**about, **results, "paired": {"baseline": "base", "option_likelihood": paired}}, columns


def test_scores_permutations_and_floors_are_rows(evaluated):
    head, *lines = score_table(evaluated[0])
    assert head == ["score", *COLUMNS]
    assert [(label, accuracy) for label, accuracy, *_ in lines] == [
        ("option likelihood", "0.500"),
        ("average of 2 permutations", "0.500"),
        ("floor: majority letter", "1.000"),
        ("floor: longest option", "0.000"),
        ("floor: chance", "0.500"),
        ("floor: choices only", "0.500"),
    ]


def test_a_number_that_is_missing_or_null_is_a_dash(evaluated):
    (line,) = paired_table(evaluated[0])[1:]
    assert line == ["option likelihood", "0.000", "+0.500", "–", "1", "1 won, 0 lost"]
    assert len(line) == 1 + len(PAIRED_COLUMNS)
    assert table_of(rows_of(evaluated[0]), {"n": "{n}"})[-1] == ["floor: choices only", "–"]


def test_the_terminal_and_the_page_show_every_cell_and_the_page_escapes_texts(evaluated, tmp_path):
    results, columns = evaluated
    write_report(results, columns, QUESTIONS, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = results_text(results)
    for cell in (cell for line in score_table(results) + paired_table(results) for cell in line):
        assert cell in text
        assert f">{html.escape(cell)}</t" in page
    assert "a&lt;b&gt;" in page
    assert "Is 1 &lt; 2 &amp; &lt;b&gt;?" in page  # among the errors
    assert "<b>" not in page
    assert page.count("<svg") == 3
