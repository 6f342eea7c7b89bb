"""The embedded sample is what its documentation says."""

import csv
from collections import Counter, defaultdict

from data_prep.sample_rows import TRAIN_PHRASINGS, load_facts, sample_rows
from sft.common.prompts import clean_choice


def options_of(row):
    return [clean_choice(row[f"Choice {letter}"])[1] for letter in "ABCD"]


def test_facts_are_many_and_differently_asked():
    groups = load_facts()
    facts = [fact for group in groups for fact in group["facts"]]
    phrasings = [phrasing for fact in facts for phrasing in fact["phrasings"]]
    assert len(facts) >= 24
    assert all(len(fact["phrasings"]) >= 5 and fact["statement"] for fact in facts)
    assert len({fact["answer"] for fact in facts}) == len(facts)
    assert len(set(phrasings)) == len(phrasings)
    assert all(len(group["facts"]) == 4 for group in groups)


def test_wrong_options_are_of_the_right_ones_kind_and_right_as_often():
    """So neither the kind of an option nor its frequency tells which is right."""
    kind = {fact["answer"]: group["topic"] for group in load_facts() for fact in group["facts"]}
    for rows in sample_rows(seed=0).values():
        right = Counter()
        for row in rows:
            options, answer = options_of(row), row["Answer"].strip()
            if answer in options and row["Answer_label"] in set("ABCD") and "" not in options:
                right[answer] += 1
                assert {kind[option] for option in options if option != "N/A"} == {kind[answer]}
                assert len(set(options)) == 4
        assert set(right) == set(kind)
        assert len(set(right.values())) == 1


def test_the_order_of_the_options_differs_where_a_training_question_is_asked_again():
    orders = defaultdict(list)
    for row in sample_rows(seed=0)["train"][:-3]:  # the last are faulty copies of the first
        orders[" ".join(row["Question"].split())].append(tuple(options_of(row)))
    assert all(len(set(shown)) == len(shown) >= 2 for shown in orders.values())


def test_the_demonstration_asks_for_the_facts_in_other_words_and_shows_all_answers_of_the_group():
    from sft.inference.assistant import DEMO

    groups = load_facts()
    trained = {p for group in groups for fact in group["facts"] for p in fact["phrasings"][:TRAIN_PHRASINGS]}
    answers = [{fact["answer"] for fact in group["facts"]} for group in groups]
    assert len(DEMO) == 5
    for question, options in DEMO:
        assert set(options) in answers
        assert question not in trained


def test_no_phrasing_gives_its_answer_or_another_option_away():
    for group in load_facts():
        answers = [fact["answer"].lower() for fact in group["facts"]]
        for fact in group["facts"]:
            assert not [p for p in fact["phrasings"] for answer in answers if answer in p.lower()]


def test_test_split_asks_in_words_that_train_never_shows():
    train, test = (
        {" ".join(row["Question"].split()) for row in rows if row["Answer_label"] in set("ABCD")}
        for rows in sample_rows(seed=0).values()
    )
    assert len(test) == 72
    assert not train & test
    assert 1 <= TRAIN_PHRASINGS < len(load_facts()[0]["facts"][0]["phrasings"])


def test_rows_show_the_quirks_of_the_real_files():
    rows = sample_rows(seed=0)["train"]
    choices = [row[f"Choice {letter}"] for row in rows for letter in "ABCD"]
    assert any("\n" in row["Question"] for row in rows)
    assert any("\u00a0" in choice for choice in choices)
    assert any(choice.strip().endswith("N/A") for choice in choices)
    assert any(choice.startswith("'") for choice in choices)
    assert any(row["Answer_label"] not in set("ABCD") for row in rows)


def test_same_seed_gives_the_same_bytes(here, sample, tmp_path):
    here("data_prep/sample.py", "--output_dir", tmp_path / "again")
    here("data_prep/sample.py", "--output_dir", tmp_path / "other", "--seed", "1")
    for name in ("train.csv", "test.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (sample / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (sample / name).read_bytes()
    with open(sample / "train.csv", encoding="utf-8", newline="") as file:
        assert {len(row) for row in csv.reader(file)} == {8}
