"""The embedded sample is what its documentation says."""

import csv

from data_prep.questions import clean_choice
from data_prep.sample import TRAIN_PHRASINGS, load_facts, sample_rows


def test_facts_are_many_and_differently_asked():
    groups = load_facts()
    facts = [fact for group in groups for fact in group["facts"]]
    phrasings = [phrasing for fact in facts for phrasing in fact["phrasings"]]
    assert len(facts) >= 60
    assert all(len(fact["phrasings"]) >= 5 and fact["statement"] for fact in facts)
    assert len({fact["answer"] for fact in facts}) == len(facts)
    assert len(set(phrasings)) == len(phrasings)
    assert all(len(group["facts"]) == 4 for group in groups)


def test_every_wrong_option_is_right_elsewhere_and_of_another_family():
    family = {fact["answer"]: group["family"] for group in load_facts() for fact in group["facts"]}
    for rows in sample_rows(seed=0).values():
        for row in rows:
            options = [clean_choice(row[f"Choice {letter}"])[1] for letter in "ABCD"]
            answer = row["Answer"].strip()
            wrong = [option for option in options if option not in (answer, "N/A", "")]
            if answer in family:
                assert all(family[option] != family[answer] for option in wrong)


def test_no_phrasing_gives_its_answer_or_another_option_away():
    for group in load_facts():
        answers = [fact["answer"].lower() for fact in group["facts"]]
        for fact in group["facts"]:
            assert not [p for p in fact["phrasings"] for answer in answers if answer in p.lower()]


def test_test_split_asks_in_words_that_train_never_shows():
    words = {
        split: {" ".join(row["Question"].split()) for row in rows if row["Answer_label"] in set("ABCD")}
        for split, rows in sample_rows(seed=0).items()
    }
    assert len(words["test"]) >= 150
    assert not words["train"] & words["test"]
    assert 1 <= TRAIN_PHRASINGS < len(load_facts()[0]["facts"][0]["phrasings"])


def test_rows_show_the_quirks_of_the_real_files():
    rows = sample_rows(seed=0)["train"]
    choices = [row[f"Choice {letter}"] for row in rows for letter in "ABCD"]
    assert any("\n" in row["Question"] for row in rows)
    assert any("\u00a0" in choice for choice in choices)
    assert any(choice.strip().endswith("N/A") for choice in choices)
    assert any(choice.startswith("'") for choice in choices)
    assert any(row["Answer_label"] not in set("ABCD") for row in rows)


def test_same_seed_gives_the_same_bytes(command, sample, tmp_path):
    command("data_prep/sample.py", "--output_dir", tmp_path / "again")
    command("data_prep/sample.py", "--output_dir", tmp_path / "other", "--seed", "1")
    for name in ("train.csv", "test.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (sample / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (sample / name).read_bytes()


def test_files_are_read_back_by_a_plain_csv_reader(sample):
    with open(sample / "train.csv", encoding="utf-8", newline="") as file:
        assert {len(row) for row in csv.reader(file)} == {8}
