"""Who goes into which split, and what splits share."""

import numpy as np
import pytest

from data_prep.splits import (
    LEFT_OUT,
    first_occurrences,
    hash64,
    held_out,
    leaked,
    not_drawn,
    overlap_table,
    why_none_held_out,
)

TRAIN, DEV, TEST = 0, 1, 2


def hashes(articles=(), figures=(), texts=()):
    columns = {"article_hash": articles, "figure_hash": figures, "question_hash": texts}
    return {name: np.array([hash64(value) for value in values], np.uint64) for name, values in columns.items()}


def test_dev_takes_whole_articles_up_to_its_size():
    # 30 articles of three questions, and ten questions of unknown article, each on its own.
    groups = np.array([hash64(f"0:PMC{i // 3}" if i < 90 else f"0:train-{i}") for i in range(100)], np.uint64)
    dev = held_out(groups, dev_size=8)
    assert 6 <= dev.sum() <= 8
    assert not set(groups[dev]) & set(groups[~dev])
    assert held_out(groups, dev_size=2000).sum() <= 10  # of 100 questions
    assert not held_out(groups, dev_size=0).any()


def test_an_article_that_is_too_large_is_passed_over():
    groups = np.array([1] * 50 + [2] * 3 + list(range(3, 50)), np.uint64)
    assert held_out(groups, dev_size=5).tolist() == [False] * 50 + [True] * 5 + [False] * 45


@pytest.mark.parametrize(
    ("questions", "dev_size", "reason"),
    [
        (9, 5, "at most a tenth of train, which has 9 questions"),
        (90, 0, "--dev_size is 0"),
        (90, 5, "at most 5 quest"),
    ],
)
def test_the_reason_why_no_question_is_held_out_is_the_one_that_applies(questions, dev_size, reason):
    assert not held_out(np.ones(questions, np.uint64), dev_size).any()
    assert reason in why_none_held_out(questions, dev_size)


def test_first_occurrences_keep_one_of_each():
    assert first_occurrences(np.array([7, 3, 7, 7, 3, 1])).tolist() == [True, True, False, False, False, True]


def test_a_sample_of_each_split_is_seeded():
    split_of = np.array([TRAIN] * 100 + [LEFT_OUT] * 5 + [TEST] * 8)
    outside = not_drawn(split_of, 10, seed=1)
    assert [(~outside & (split_of == code)).sum() for code in (TRAIN, TEST)] == [10, 8]
    assert not outside[split_of == LEFT_OUT].any()  # left out already, for another reason
    assert outside.tolist() == not_drawn(split_of, 10, seed=1).tolist() != not_drawn(split_of, 10, seed=2).tolist()
    assert not not_drawn(split_of, 1000, seed=1).any()


def test_overlap_is_counted_by_article_figure_and_text():
    split_of = np.array([TRAIN, TRAIN, TRAIN, TEST, TEST, LEFT_OUT])
    table = overlap_table(
        split_of,
        hashes(
            articles=["PMC1", "PMC1", "", "PMC1", "", "PMC9"],
            figures=["f1", "f2", "", "f3", "", "f1"],
            texts=["a", "b", "c", "c", "c", "a"],
        ),
    )
    assert {entry["by"]: (entry["shared"], entry["rows"]) for entry in table} == {
        "article": (1, [2, 1]),
        "figure": (0, [0, 0]),  # unknown figures are shared with none, rows left out do not count
        "question and options": (1, [1, 2]),
    }


@pytest.mark.parametrize("column", ["articles", "figures", "texts"])
def test_training_rows_that_another_split_shares_are_leaks(column):
    split_of = np.array([TRAIN, TRAIN, TRAIN, DEV, TEST, LEFT_OUT])
    different = list("123456")
    values = {"articles": different, "figures": different, "texts": different}
    leaks = leaked(split_of, hashes(**values | {column: ["x", "y", "", "y", "", "x"]}))
    assert np.flatnonzero(leaks).tolist() == [1]
