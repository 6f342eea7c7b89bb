"""Several runs as one table, from folders and from files of outcomes, in every format."""

import csv
import io
import json

import pytest

from sft.evaluation.comparison import Evaluation, compared, write_evaluation
from sft.evaluation.formats import FORMATS, latex_cell
from sft.evaluation.metrics import paired_difference, score_metrics

GOLDS = [0, 1, 0, 1, 0, 1]
RIGHT = {"tuned_1": [1, 1, 1, 1, 0, 1], "other|2": [0, 1, 0, 0, 0, 1], "base": [1, 0, 0, 1, 1, 0]}


def evaluation(name, right, **scores):
    questions = [{"choices": [*"abcd"], "gold": gold, "article": f"PMC{i // 2}"} for i, gold in enumerate(GOLDS)]
    scores = {"option_likelihood": right, **scores}
    columns = {"id": [*"abcdef"], "article": [q["article"] for q in questions]}
    columns |= {f"{score}_right": [float(value) for value in values] for score, values in scores.items()}
    numbers = {score: score_metrics(questions, columns[f"{score}_right"]) for score in scores}
    floors = {"majority_letter": 0.5, "longest_option": 0.25} | ({"choices_only": 0.4} if name == "base" else {})
    about = {"name": name, "n": len(right), "split": "test", "fingerprint": {"questions": "x"}}
    return Evaluation({**about, "scores": numbers, "floors": floors}, columns)


@pytest.fixture
def folders(tmp_path):
    """Folders of three runs over the same six questions, the baseline last."""
    for name, right in RIGHT.items():
        (tmp_path / name).mkdir()
        write_evaluation(evaluation(name, right), tmp_path / name)
    return [tmp_path / name for name in RIGHT]


@pytest.fixture
def files(tmp_path):
    """The same outcomes as CSV files, whose rows have orders of their own."""
    for shift, (name, right) in enumerate(RIGHT.items()):
        rows = [f"{id},{value},PMC{i // 2}\n" for i, (id, value) in enumerate(zip("abcdef", right, strict=True))]
        (tmp_path / f"{name}.csv").write_text("id,correct,article\n" + "".join(rows[shift:] + rows[:shift]))
    return [tmp_path / f"{name}.csv" for name in RIGHT]


def compare(here, *words):
    done = here("sft/compare.py", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_run_is_a_row_with_floors_and_its_difference_from_the_last(here, folders):
    head, *lines = [line.split("  ") for line in compare(here, *folders).splitlines()[1:]]
    head, *lines = [[cell.strip() for cell in line if cell.strip()] for line in (head, *lines)]
    assert head[:4] == ["run", "score", "n", "accuracy"]
    assert [line[0] for line in lines] == [*RIGHT]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    assert [row["accuracy"] for row in rows] == ["0.833", "0.333", "0.500"]
    assert [row["difference"] for row in rows] == ["+0.333", "-0.167", "–"]
    assert [row["only one right"] for row in rows] == ["3 won, 1 lost", "2 won, 3 lost", "–"]
    assert [row["floor: choices only"] for row in rows] == ["–", "–", "0.400"]


def test_csv_and_json_hold_every_number_in_full(here, folders):
    records = json.loads(compare(here, *folders, "--format", "json"))
    table = list(csv.DictReader(io.StringIO(compare(here, *folders, "--format", "csv"))))
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in records] == table
    expected = paired_difference(RIGHT["tuned_1"], RIGHT["base"], [f"PMC{i // 2}" for i in range(6)])
    first, last = records[0], records[-1]
    assert first["accuracy"] == 5 / 6
    assert [first["paired_ci95_low"], first["paired_ci95_high"]] == expected["ci95"]
    assert first["paired_mcnemar_p"] == expected["mcnemar_p"]
    assert (first["floor_majority_letter"], first["floor_choices_only"]) == (0.5, None)
    assert {"standard_error_clustered", "balanced_accuracy", "rstd", "calibration_ece"} < first.keys()
    assert last["paired_difference"] is None
    assert {row["baseline"] for row in records} == {"base"}


def test_markdown_and_latex_escape_names(here, folders):
    markdown = compare(here, *folders, "--format", "markdown").splitlines()
    assert markdown[3].startswith("| other\\|2 | option likelihood | 6 | 0.333 |")
    assert {line.replace("\\|", "").count("|") for line in markdown[:5]} == {markdown[0].count("|")}
    latex = compare(here, *folders, "--format", "latex").splitlines()
    assert "tuned\\_1 & option likelihood & 6 & 0.833" in latex[5]
    assert "& $-$0.167 &" in latex[6]
    assert len({line.count("&") for line in latex if "&" in line}) == 1
    assert latex_cell("95 % a_b 8.7e-10 -0.2 to -0.1 –") == (r"95 \% a\_b $8.7\times 10^{-10}$ $-$0.2 to $-$0.1 --")


def test_files_of_outcomes_compare_as_their_evaluations_do(here, folders, files):
    records = [json.loads(compare(here, *runs, "--format", "json")) for runs in (folders, files)]
    for key in ("run", "n", "accuracy", "ci95_low", "standard_error_clustered", "paired_won", "paired_mcnemar_p"):
        assert [row[key] for row in records[0]] == [row[key] for row in records[1]], key
    for one, other in zip(*records, strict=True):
        assert one["paired_ci95_low"] == pytest.approx(other["paired_ci95_low"])
    assert "floor" not in compare(here, *files)


def test_two_scores_are_two_rows_and_runs_of_one_name_are_called_by_their_paths(here, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_evaluation(evaluation("run", RIGHT["base"], generation=RIGHT["tuned_1"]), tmp_path / folder)
    rows = json.loads(compare(here, tmp_path / "a", tmp_path / "b", "--format", "json"))
    assert [row["score"] for row in rows] == ["option_likelihood"] * 2 + ["generation"] * 2
    assert [row["run"] for row in rows] == [str(tmp_path / "a"), str(tmp_path / "b")] * 2


def test_a_score_that_the_baseline_lacks_has_no_difference():
    runs = compared([evaluation("a", RIGHT["tuned_1"], generation=RIGHT["base"]), evaluation("b", RIGHT["base"])])
    for form in FORMATS.values():
        assert form(runs)
    rows = json.loads(FORMATS["json"](runs))
    assert [row["paired_difference"] is None for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,correct\na,1\nb,yes\n", "row 2: id 'b', correct 'yes': give each id once, and 1 (right) or 0 (wrong)"),
        ("id,correct\na,1\na,1\n", "row 2: id 'a'"),
        ("id,correct\n,1\n", "row 1: id ''"),
        ("id,correct\na\n", "row 1: row has too few cells"),
        ("id,correct,correct\na,1,1\n", "needs the columns id and correct, each once"),
        ("id;correct\na;1\n", "base has ids that theirs lacks: 'b'"),  # semicolons are read
        ("id,right\na,1\n", "found id, right"),
        ("id,correct\n", "holds no outcome"),
        ("id,correct\nz,1\n", "theirs has ids that base lacks: 'z'"),
        ("id,correct\na,1\n", "base has ids that theirs lacks: 'b'"),
    ],
)
def test_a_file_of_outcomes_that_cannot_be_compared_is_refused(refused, files, tmp_path, text, message):
    (tmp_path / "theirs.csv").write_text(text)
    assert message in refused("sft/compare.py", tmp_path / "theirs.csv", files[-1])


def test_a_file_is_not_compared_with_a_folder(refused, files, folders):
    assert "compare CSV files with each other" in refused("sft/compare.py", files[0], folders[-1])
