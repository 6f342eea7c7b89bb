"""The numbers of an evaluation are those of the textbook."""

import math
from itertools import pairwise

import pytest

from sft.evaluation import metrics
from sft.evaluation.metrics import floors, mcnemar_p, wilson_interval
from sft.inference.likelihood import softmax


def test_wilson_interval_of_the_literature():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20.
    for (correct, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
    }.items():
        assert wilson_interval(correct, n) == pytest.approx(expected, abs=5e-5)
    # At the ends the proportion itself is inside, to the last bit.
    for n in range(1, 200):
        assert wilson_interval(n, n)[1] == 1.0
        assert wilson_interval(0, n)[0] == 0.0


def test_mcnemar_is_the_exact_binomial_test():
    for b in range(7):
        for c in range(7):
            n = b + c
            tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
            assert mcnemar_p(b, c) == pytest.approx(min(1.0, 2 * tail) if n else 1.0)
    assert mcnemar_p(4000, 4500) == pytest.approx(mcnemar_p(4500, 4000))
    values = [mcnemar_p(0, c) for c in range(1, 40)]
    assert all(later <= earlier for earlier, later in pairwise(values))


def test_floors_need_no_model():
    questions = [
        {"choices": ["a", "bb", "c"], "gold": 1},
        {"choices": ["a", "bb", "c"], "gold": 1},
        {"choices": ["aaa", "bb", "c"], "gold": 2},
        {"choices": ["a", "bb", "ccc"], "gold": 0},
    ]
    assert floors(questions) == {"majority_letter": 0.5, "longest_option": 0.5, "chance": pytest.approx(1 / 3)}
    # Of four options everybody knows chance; of different numbers it is the mean over the questions.
    assert "chance" not in floors([{"choices": ["a", "b", "c", "d"], "gold": 3}])
    two, ten = {"choices": ["a", "b"], "gold": 0}, {"choices": list("abcdefghij"), "gold": 9}
    assert floors([two, two, two, ten])["chance"] == pytest.approx((3 / 2 + 1 / 10) / 4)
    # Who sees how many options there are can answer A of two and J of ten.
    assert floors([two, two, two, ten])["majority_letter"] == 1


def test_the_clustered_error_is_that_of_the_articles_sums():
    # Two articles that are all right or all wrong: four questions are worth two.
    assert metrics.clustered_standard_error([1, 1, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(math.sqrt(2) / 4)
    # One question an article, or articles unknown: the plain error of a proportion.
    for articles in (["a", "b", "c", "d"], [""] * 4):
        assert metrics.clustered_standard_error([1, 1, 0, 0], articles) == pytest.approx(math.sqrt(0.25 / 4))


def test_letter_bias_shows_in_recalls_rstd_and_balanced_accuracy():
    questions = [{"question": "?", "gold": gold, "choices": ["a", "b"]} for gold in (0, 0, 0, 1)]
    always_a = metrics.score_metrics(questions, [1.0, 1.0, 1.0, 0.0])
    assert always_a["accuracy"] == 0.75
    assert always_a["recall_by_letter"] == {"A": 1.0, "B": 0.0}
    assert always_a["balanced_accuracy"] == 0.5
    assert always_a["rstd"] == 0.5


def test_different_numbers_of_options_are_no_letter_bias():
    """Every question of two options right and every one of ten wrong, whatever the letter: no letter is preferred."""
    two = [{"gold": gold, "choices": ["a", "b"]} for gold in (0, 1)] * 30
    ten = [{"gold": gold, "choices": list("abcdefghij")} for gold in range(10)]
    numbers = metrics.score_metrics(two + ten, [1.0] * 60 + [0.0] * 10)
    assert numbers["rstd"] == 0
    assert numbers["balanced_accuracy"] == pytest.approx(60 / 70)
    assert numbers["recall_by_letter"] == {"A": 30 / 31, "B": 30 / 31} | dict.fromkeys("CDEFGHIJ", 0)
    assert {options: (group["n"], group["accuracy"]) for options, group in numbers["by_options"].items()} == {
        "2": (60, 1),
        "10": (10, 0),
    }
    # Always A: among two options as much bias as among ten.
    always_a = metrics.score_metrics(two, [1.0, 0.0] * 30)
    assert metrics.score_metrics(two + ten, [1.0, 0.0] * 30 + [1.0] + [0.0] * 9)["rstd"] == pytest.approx(
        (always_a["rstd"] * 60 + 0.3 * 10) / 70
    )
    assert "by_options" not in always_a


def test_calibration_error_is_the_mean_gap_of_the_bins():
    # 0.9 sure and right half the time; 0.55 sure and always right.
    result = metrics.calibration([0.95, 0.95, 0.55, 0.55], [1.0, 0.0, 1.0, 1.0])
    assert result["ece"] == pytest.approx((2 * 0.45 + 2 * 0.45) / 4)
    assert [(b["from"], b["n"]) for b in result["bins"]] == [(0.5, 2), (0.9, 2)]
    assert metrics.calibration([1.0], [1.0])["ece"] == 0


def test_paired_difference_knows_that_the_questions_are_the_same():
    this, baseline = [1.0, 1.0, 1.0, 0.0] * 25, [1.0, 1.0, 0.0, 0.0] * 25
    result = metrics.paired_difference(this, baseline, [""] * 100)
    assert result["difference"] == 0.25
    assert (result["won"], result["lost"]) == (25, 0)
    assert result["mcnemar_p"] == mcnemar_p(0, 25)
    low, high = result["ci95"]
    assert high - low == pytest.approx(2 * 1.959964 * math.sqrt(0.25 * 0.75 / 100))
    # Questions answered several times are not coins: no McNemar test.
    assert "mcnemar_p" not in metrics.paired_difference([1.0, 1.0], [0.0, 1.0], ["", ""], answered_once=False)


def test_no_interval_is_made_up_without_data_for_one():
    assert metrics.paired_difference([1.0] * 5, [0.0] * 5, [""] * 5)["ci95"] is None
    assert metrics.paired_difference([1.0, 0.0], [0.0, 0.0], ["one", "one"])["ci95"] is None
    assert metrics.clustered_standard_error([1.0, 0.0], ["one", "one"]) is None
    assert metrics.paired_difference([0.5, 1.0], [1.0, 0.0], ["a", "b"])["ci95"][1] == 1.0


def test_softmax_of_far_apart_scores_does_not_overflow():
    assert softmax([-1000.0, -1000.0]) == [0.5, 0.5]
    assert softmax([0.0, -2000.0]) == [1.0, 0.0]
