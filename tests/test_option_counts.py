"""Questions of two, three, five and ten options in one data set: prepared, trained on, evaluated and asked."""

import json
from collections import Counter
from math import factorial

import pytest

from sft.common.data import load_split
from sft.common.prompts import LETTERS

COUNTS = (2, 3, 5, 10)
WORDS = ["lung", "heart", "liver", "spleen", "kidney", "brain", "colon", "femur", "retina", "pancreas"]


@pytest.fixture(scope="module")
def mixed(succeeds, tmp_path_factory):
    """Such a data set in at most four orders a training row."""
    folder = tmp_path_factory.mktemp("lists")
    for split, size in (("train", 80), ("test", 24)):
        counts = [COUNTS[i % 4] for i in range(size)]
        rows = [
            {"stem": f"Where is finding {split} {i}?", "options": WORDS[:count], "right": i // 4 % count}
            for i, count in enumerate(counts)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    succeeds(
        *("data_prep/prepare.py", "--dataset_path", folder, "--output_dir", folder / "prepared", "--num_proc", 1),
        *("--shuffle_choices", 4, "--dev_size", 8, "--columns", "question=stem, options=options, answer=right"),
    )
    return folder / "prepared"


def test_rows_have_their_own_letters_and_orders_and_the_report_has_all(mixed):
    rows = load_split(str(mixed), "train").to_list()
    for row in rows:
        lines = row["prompt"][0]["content"].split("\n")[1:-1]
        assert lines == [f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=False)]
        assert row["completion"][0]["content"] == lines[row["gold"]]
    orders = Counter(row["id"].partition("#")[0] for row in rows)
    sizes = {row["id"].partition("#")[0]: len(row["choices"]) for row in rows}
    assert all(times == min(4, factorial(sizes[id])) for id, times in orders.items())
    report = json.loads((mixed / "report.json").read_text())
    for split in ("train", "dev", "test"):
        rows = load_split(str(mixed), split).to_list()
        letters = Counter(LETTERS[row["gold"]] for row in rows)
        assert {letter: n for letter, n in report["measures"][split]["letters"].items() if n} == letters
        chance = sum(1 / len(row["choices"]) for row in rows) / len(rows)
        assert report["measures"][split]["floors"]["chance"] == pytest.approx(chance)
        assert f" {chance:.3f} |" in (mixed / "README.md").read_text()
        assert f"<td>{chance:.3f}</td>" in (mixed / "report.html").read_text()
    assert "<th>J</th>" in (mixed / "report.html").read_text()


def test_a_model_is_trained_and_evaluated_on_them(mixed, succeeds, toy_options, tmp_path):
    import pyarrow.parquet as pq

    options = toy_options("pmcvqa", data=mixed)
    succeeds("sft/run.py", *options, "--output_dir", tmp_path / "out", "--max_steps", 2)
    model = ("--model_path", tmp_path / "out/final_model", "--dataset_path", mixed, "--output_dir", tmp_path)
    written = ("--method", "likelihood", "generation", "--max_new_tokens", 4)
    printed = succeeds("sft/evaluate.py", *model, *written, "--permutations", 10, "--name", "eval").stdout
    results = json.loads((tmp_path / "eval/results.json").read_text())
    rows = pq.read_table(tmp_path / "eval/predictions.parquet").to_pylist()
    questions = load_split(str(mixed), "test").to_list()
    for row, question in zip(rows, questions, strict=True):
        count = len(question["choices"])
        assert len(row["log_likelihoods"]) == len(row["permutation_answers"]) == count
        assert set(row["permutation_answers"]) <= {*range(count)}
    score = results["scores"]["option_likelihood"]
    shares = [sum(a == row["gold"] for a in row["permutation_answers"]) / len(row["log_likelihoods"]) for row in rows]
    assert score["permutations"]["accuracy"] == pytest.approx(sum(shares) / len(rows))
    assert {int(options): group["n"] for options, group in score["by_options"].items()} == dict.fromkeys(COUNTS, 6)
    assert results["floors"]["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 5 + 1 / 10) / 4)
    assert "floor: chance" in printed
    assert "average of up to 10 permutations" in printed
    assert "by number of options" in (tmp_path / "eval/report.html").read_text()
    table = succeeds("sft/compare.py", tmp_path / "eval", tmp_path / "eval", "--format", "latex").stdout
    assert "floor: chance" in table
