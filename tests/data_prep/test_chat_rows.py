"""Option orders, and the questions that keep theirs."""

from collections import Counter

import pytest

from data_prep.chat_rows import MAX_ORDERS, choice_orders
from sft.common.prompts import can_be_shuffled

PLAIN = ("red", "green", "blue", "black")


def test_orders_differ_and_put_the_right_option_everywhere():
    for gold in range(4):
        orders = list(choice_orders("train-1", gold, MAX_ORDERS, seed=0))
        assert len(set(orders)) == MAX_ORDERS
        assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
        for start in range(0, MAX_ORDERS, 4):
            assert {order.index(gold) for order in orders[start : start + 4]} == {0, 1, 2, 3}


def test_one_order_is_unbiased_over_rows():
    places = Counter(next(choice_orders(f"train-{i}", 2, 1, seed=0)).index(2) for i in range(4000))
    assert all(900 < count < 1100 for count in places.values())


def test_orders_depend_on_the_row_and_the_seed_alone():
    first = list(choice_orders("train-1", 0, 4, seed=0))
    assert first == list(choice_orders("train-1", 0, 4, seed=0))
    assert first != list(choice_orders("train-2", 0, 4, seed=0)) != list(choice_orders("train-2", 0, 4, seed=1))


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


def test_questions_about_options_and_rationales_keep_the_order():
    assert not can_be_shuffled("Which is right, option A or option C?", PLAIN)
    assert not can_be_shuffled("Which?", PLAIN, reasoning="It cannot be B.")
