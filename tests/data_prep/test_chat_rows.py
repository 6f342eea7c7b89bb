"""Option orders, and the questions that keep theirs."""

import time
from collections import Counter
from math import factorial

import pytest

from data_prep.chat_rows import MAX_ORDERS, choice_orders
from sft.common.prompts import can_be_shuffled

PLAIN = ("red", "green", "blue", "black")


@pytest.mark.parametrize("count", range(2, 11))
def test_orders_differ_and_put_the_right_option_everywhere(count):
    for gold in range(count):
        orders = list(choice_orders("train-1", gold, count, MAX_ORDERS, seed=0))
        assert len(set(orders)) == len(orders) == min(MAX_ORDERS, factorial(count))
        assert all(sorted(order) == [*range(count)] for order in orders)
        for start in range(0, len(orders) - count + 1, count):
            assert {order.index(gold) for order in orders[start : start + count]} == {*range(count)}


def test_the_orders_of_four_options_are_those_of_data_sets_that_are_published():
    assert list(choice_orders("train-17", 1, 4, 3, seed=42)) == [
        (1, 2, 3, 0),
        (2, 3, 0, 1),
        (2, 3, 1, 0),
    ]


def test_the_orders_of_ten_options_are_not_listed():
    start = time.perf_counter()
    for i in range(100):
        assert len([*choice_orders(f"train-{i}", 9, 10, MAX_ORDERS, seed=0)]) == MAX_ORDERS
    assert time.perf_counter() - start < 5  # 9! arrangements a row would take a minute


def test_one_order_is_unbiased_over_rows():
    for count in (4, 8):
        places = Counter(next(choice_orders(f"train-{i}", 2, count, 1, seed=0)).index(2) for i in range(1000 * count))
        assert all(900 < place < 1100 for place in places.values())


def test_orders_depend_on_the_row_and_the_seed_alone():
    for count in (4, 8):
        first, again = (list(choice_orders("train-1", 0, count, 4, seed=0)) for _ in range(2))
        assert first == again != list(choice_orders("train-2", 0, count, 4, seed=0))
        assert first != list(choice_orders("train-1", 0, count, 4, seed=1))


@pytest.mark.parametrize(
    "option",
    [
        *("All of the above", "None of these.", "Any of the above", "Both", "both A and C", "Both AB", "A & B"),
        *("A-C", "A to C", "Inspiration in A and expiration in B", "bd", "C", "All except D", "Only A is true"),
        *("The last two", "First option", "Option B"),
    ],
)
def test_an_option_tied_to_its_place_stays_there(option):
    assert not can_be_shuffled("Which?", (*PLAIN[:3], option.rstrip(".")))


@pytest.mark.parametrize(
    "option", ["ADC map", "vitamin D", "hepatitis B", "a small mass", "above the diaphragm", "2D"]
)
def test_an_option_that_stands_alone_is_shuffled(option):
    assert can_be_shuffled("Which?", (*PLAIN[:3], option))


@pytest.mark.parametrize("option", ["Both E and J", "Options G and H", "C-J", "only I", "BEJ", "The last nine", "J"])
def test_letters_are_those_of_the_question(option):
    ten = [f"number {i}" for i in range(9)]
    assert not can_be_shuffled("Which?", (*ten, option.replace("nine", "eight")))
    assert can_be_shuffled("Which?", (*PLAIN[:3], option))


def test_questions_about_options_and_rationales_keep_the_order():
    assert not can_be_shuffled("Which is right, option A or option C?", PLAIN)
    assert not can_be_shuffled("Which?", PLAIN, reasoning="It cannot be B.")
