"""Which column holds what: known formats, YAML files of one's own, and --columns."""

import dataclasses
import random

import pytest

from data_prep.formats import FORMATS, match, parse_columns, read_format, split_named, split_of, wanted_format
from sft.common.command import UserError
from tests.data_prep.test_rows import KNOWN_SETS


@pytest.mark.parametrize("case", KNOWN_SETS)
def test_every_known_set_is_recognised_by_its_columns(case):
    columns = [*KNOWN_SETS[case][0], "another column"]
    known, found = match(columns, FORMATS.values())
    assert known.name == case.split(",")[0].split()[0]
    assert found == tuple(columns)
    assert match([name for name in columns if name not in known.question], FORMATS.values()) is None


@pytest.mark.parametrize("spell", [str.lower, str.upper, lambda name: name.replace("_", " ").replace(" ", "__")])
def test_columns_may_differ_in_case_spaces_and_underscores(spell):
    known = FORMATS["pmc_vqa_v1"]
    assert match([spell(name) for name in known.columns], FORMATS.values()) == (known, known.columns)


def test_columns_that_are_spelt_exactly_come_before_others():
    mine = parse_columns("question=QUESTION, options=a|b, answer=Answer")
    columns = ("question", "QUESTION", "a", "b", "Answer")
    assert match(columns, [mine]) == (mine, columns)


def without_name(known):
    return dataclasses.replace(known, name="", title="")


@pytest.mark.parametrize(
    "columns",
    [
        "question=stem, options=A,B,C,D,E, answer=label, id=number, article=paper, explanation=why",
        "question = stem ; options = A | B | C | D | E ; answer = label ; id = number ; group = paper; rationale=why",
        "question=stem\noptions=A,B,C,D,E\nanswer=label\nid=number\ngroup=paper\nrationale=why\n",
    ],
)
def test_columns_on_the_command_line_and_in_a_file_are_the_same(tmp_path, columns):
    (tmp_path / "mine.yaml").write_text(
        "title: My questions\nlicence: CC0\nquestion: stem\noptions: [A, B, C, D, E]\nanswer: label\nid: number\n"
        "article: paper\nexplanation: why\n",
        encoding="utf-8-sig",
    )
    stated, kept = parse_columns(columns), read_format(tmp_path / "mine.yaml")
    assert without_name(stated) == dataclasses.replace(without_name(kept), licence="")
    assert (stated.title, kept.title, kept.licence) == ("own questions", "My questions", "CC0")
    assert stated.columns == ("stem", "A", "B", "C", "D", "E", "label", "number", "paper", "why")
    assert stated.group == "paper"


def test_columns_replace_keys_of_a_named_format():
    known = wanted_format("medmcqa", "answer=correct, rationale=exp")
    assert (known.answer, known.rationale, known.options) == ("correct", "exp", ("opa", "opb", "opc", "opd"))
    assert known.columns == ("question", "opa", "opb", "opc", "opd", "correct", "exp")  # cop is needed no longer
    assert wanted_format("detect", None) is None


REFUSED_COLUMNS = {
    "nonsense": 'write "question=stem, options=A,B,C,D, answer=label"',
    "": 'write "question=stem',
    "question=": 'write "question=stem',
    "options=A,B, answer=label": "question is not given",
    "question=stem, options=A,B": "",  # the right option is marked
    "question=stem, question=text, options=A, answer=l": "question is given twice",
    "article=a, group=b, question=q, answer=l": "group is given twice",
    "question=q, optoins=A,B, answer=l": "optoins is not a key of a format: the keys are",
    "question=q, options=A,B, answer=l,m": "answer names one column, not 2",
    "question=q, options=o, answer=l, answer_is=index": "answer_is index: give letter or number from 0 or",
    "question=q, options=o, answer=l, option_count=11": "2 to 10 options",
    "question=q, options=o, answer=l, option_count=1": "2 to 10 options",
    "question=q, options=o, answer=l, option_count=two": "option_count two: give a number",
    "question=q, options=A,B,C,D,E,F,G,H,I,J,K, answer=l": "11 options: a question has at most 10",
    "question=q, options=D,C,B,A, answer=l": "options are the columns of D, C, B, A: name them in order, from A",
    "question=q, options=Option B|Option C, answer=l": "name them in order, from A",
    "question=q, fixed_options=yes, answer=l": "2 to 10 options",
    "question=q, fixed_options=yes|no": "answer is not given",
    "question=q, options=o, fixed_options=yes|no, answer=l": "options and fixed_options are both given",
}


@pytest.mark.parametrize("text", REFUSED_COLUMNS)
def test_columns_that_make_no_format_are_refused(text):
    if not REFUSED_COLUMNS[text]:
        assert parse_columns(text).answer == ""
        return
    with pytest.raises(UserError) as refusal:
        parse_columns(text)
    assert str(refusal.value).startswith("--columns")
    assert REFUSED_COLUMNS[text] in str(refusal.value)


REFUSED_FILES = {
    "question: q\noptions: o\nquestion: r": "question stands twice, in lines 1 and 3",
    "question: [": "is not a YAML file",
    "\x00": "is not a YAML file",
    "- question": "has no keys",
    "": "has no keys",
    "question: {a: b}": "give the names of columns",
    "question: q\noptions: [[a], b]": "give the names of columns",
    "question: q\nid:": "id : give the names of columns",
    "[q]: q": "is not a YAML file",
    "1: q": "1 is not a key of a format",
}


@pytest.mark.parametrize("text", REFUSED_FILES)
def test_a_file_that_is_no_format_is_refused_by_name(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as refusal:
        read_format(file)
    assert str(refusal.value).startswith(f"--format {file}")
    assert REFUSED_FILES[text] in str(refusal.value)


def test_a_file_holds_names_as_they_are_written(tmp_path):
    """YAML would read false, 1, 1.50 and a date."""
    (tmp_path / "mine.yaml").write_text("id: No\nquestion: 2026-11-30\nfixed_options: [yes, no, 1.50]\nanswer: 1\n")
    known = read_format(tmp_path / "mine.yaml")
    assert (known.id, known.question, known.answer) == ("No", ("2026-11-30",), "1")
    assert known.fixed_options == ("yes", "no", "1.50")


def test_a_format_that_is_neither_known_nor_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--format medqa5: give pmc_vqa_v1, .*, or a YAML file"):
        wanted_format("medqa5", None)
    with pytest.raises(UserError, match=r"nowhere.yaml cannot be read: No such file"):
        wanted_format(str(tmp_path / "nowhere.yaml"), None)


def test_no_text_on_the_command_line_or_in_a_file_ends_in_anything_but_a_format_or_a_refusal(tmp_path):
    draw = random.Random(5)  # noqa: S311
    words = [
        *"=,;|[]{}:\n\t -#&*!'\"",
        "question",
        "options",
        "answer",
        "answer_is",
        "letter",
        "A,B,C",
        "id",
        "->",
        "é",
    ]
    file, outcomes = tmp_path / "drawn.yml", set()
    for _ in range(4000):
        text = "".join(draw.choices(words, k=draw.randint(1, 24)))
        if draw.random() < 0.5:
            text = "question=q, options=a|b, answer=c, " + text
        file.write_text(text.replace("=", ": ").replace(", ", "\n") if draw.random() < 0.5 else text)
        for read in (lambda: parse_columns(text), lambda: read_format(file)):  # noqa: B023
            try:
                outcomes.add(type(read()).__name__)
            except UserError as error:
                assert str(error).startswith(("--columns", f"--format {file}"))
                outcomes.add("refused")
    assert outcomes == {"Format", "refused"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            ("train", "train"),
            ("train_2", "train"),
            ("test_clean", "test_clean"),
            ("dev", "dev"),
            ("validation", "dev"),
        ),
        *((name, "test") for name in ("test_2", "phrases_no_exclude_test", "test2", "test (1)", "PMC VQA test")),
        *((name, "test") for name in ("PMCVQATest", "TestData", "testing", "eval", "holdout", "train_test")),
        *(("latest_rows", ""), ("v1_rows", ""), ("Training set", "train"), ("DEV", "dev")),
    ],
)
def test_a_name_tells_the_split(name, split):
    assert split_named(name) == split


@pytest.mark.parametrize(
    ("cell", "split"),
    [("train", "train"), ("Test", "test"), ("validation set", "dev"), ("test_clean", "test_clean"), ("TEST 2", "test")]
    + [(cell, "") for cell in ("not test", "train/test", "pre-test", "", "3", "control")],
)
def test_a_cell_of_a_split_column_names_one_split_or_none(cell, split):
    assert split_of(cell) == split
