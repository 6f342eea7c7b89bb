"""From the cells of a row to a question: every known set, and the rules for letters, texts and splits."""

import csv
import json

import pytest

from data_prep.answers import judge
from data_prep.formats import FORMATS
from data_prep.questions import RejectedRow
from data_prep.rows import read_row
from sft.common.table import as_text

V1 = {
    **{"Figure_path": "PMC123_F1.jpg", "Question": "Which colour?", "Answer": "green"},
    **{"Choice A": "A: red", "Choice B": "B: green", "Choice C": "C: blue", "Choice D": "D: black"},
    "Answer_label": "B",
}
V2 = {
    **{"index": "5", "Figure_path": "PMC9_F1_2.jpg", "Caption": "A leaf.", "Question": "Which colour?"},
    **{"Choice A": "A: red", "Choice B": "B: green", "Choice C": "C: blue", "Choice D": "D: black"},
    **{"Answer": "B", "split": "test"},
}
MEDMCQA = {
    **{"id": "0-1", "question": "Which colour?", "opa": "red", "opb": "green", "opc": "blue", "opd": "black"},
    **{"cop": 2, "choice_type": "single", "exp": None, "subject_name": "Eye", "topic_name": None},
}
FIVE = ("red", "green", "blue", "black", "white")
TEN = (*FIVE, "grey", "pink", "brown", "violet", "orange")
MEDQA = {"question": "Which colour?", "answer": "green", "answer_idx": "B", "meta_info": "step1"}
# A row of each set, in the shape in which its publisher has it, with the texts of its options and the right one.
KNOWN_SETS = {
    "pmc_vqa_v1": (V1, FIVE[:4], 1),
    "pmc_vqa_v2": (V2, FIVE[:4], 1),
    "medmcqa": (MEDMCQA, FIVE[:4], 1),
    "medqa, four options": (MEDQA | {"options": dict(zip("ABCD", FIVE, strict=False))}, FIVE[:4], 1),
    "medqa, five options": (MEDQA | {"options": dict(zip("ABCDE", FIVE, strict=True))}, FIVE, 1),
    "medqa of bigbio": (
        MEDQA | {"options": [{"key": key, "value": text} for key, text in zip("ABCDE", FIVE, strict=True)]},
        *(FIVE, 1),
    ),
    "medqa with a struct of lists": (MEDQA | {"options": {"key": list("ABCDE"), "value": [*FIVE]}}, FIVE, 1),
    "pubmedqa": (
        {
            **{"pubid": 21645374, "question": "Do leaves turn?", "final_decision": "yes", "long_answer": "They do."},
            "context": {"contexts": ["Leaves hang.", "We looked."], "labels": ["BACKGROUND", "METHODS"], "meshes": []},
        },
        *(("yes", "no", "maybe"), 0),
    ),
    "pubmedqa_original": (
        {
            **{"key": "21645374", "QUESTION": "Do leaves turn?", "CONTEXTS": ["Leaves hang.", "We looked."]},
            **{"LABELS": ["BACKGROUND", "METHODS"], "YEAR": "2011", "final_decision": "maybe", "LONG_ANSWER": "So."},
        },
        *(("yes", "no", "maybe"), 2),
    ),
    "mmlu": (
        {"question": "Which colour?", "subject": "anatomy", "choices": [*FIVE[:4]], "answer": 1},
        *(FIVE[:4], 1),
    ),
    "medxpertqa": (
        {
            "id": "Text-0",
            "question": "Which colour?\nAnswer Choices: "
            + " ".join(f"({letter}) {text}" for letter, text in zip("ABCDEFGHIJ", TEN, strict=True)),
            "options": dict(zip("ABCDEFGHIJ", TEN, strict=True)),
            **{"label": "J", "medical_task": "Diagnosis", "body_system": "Other", "question_type": "Understanding"},
        },
        *(TEN, 9),
    ),
    "head_qa": (
        {
            **{"name": "Cuaderno_2013_1_B", "year": "2013", "category": "biology", "qid": 3, "qtext": "Which colour?"},
            "ra": 2,
            "answers": [{"aid": number, "atext": text} for number, text in enumerate(FIVE, start=1)],
        },
        *(FIVE, 1),
    ),
}


def read(name, row, split="train", reading=None, may_repeat=False):
    """The question of a row of a known set, read as a file of this row alone or with answers of this reading."""
    known, cells = FORMATS[name], as_text(row)
    reading = reading or judge(known, lambda: iter([cells]), "train.csv")
    return read_row(cells, known, reading, ("train", "train.csv", 7), split, may_repeat)


def read_or_reason(name, row, **options):
    """The question of a row, or the reason of its rejection."""
    try:
        return read(name, row, **options)
    except RejectedRow as reason:
        return str(reason)


def of_medmcqa(row, **options):
    return read_or_reason("medmcqa", row, reading="number from 1", **options)


@pytest.mark.parametrize("case", KNOWN_SETS)
def test_every_known_set_becomes_the_same_record(case):
    row, texts, gold = KNOWN_SETS[case]
    name = case.split(",")[0].split()[0]
    readings = {"medmcqa": "number from 1", "mmlu": "number from 0"}  # as more rows show
    question = read(name, row, reading=readings.get(name))
    assert (question.source, question.row, question.split) == ("train.csv", 7, "train")
    assert (question.choices, question.gold) == (texts, gold)
    if name.startswith("pubmedqa"):
        assert question.question == "Leaves hang. We looked. Do leaves turn?"
        assert question.id == "train-21645374"
    else:
        assert question.question == "Which colour?"
        assert question.id == ("train-Text-0" if name == "medxpertqa" else "train-7")


def test_every_known_set_is_shown_here():
    assert {case.split(",")[0].split()[0] for case in KNOWN_SETS} == set(FORMATS)


def test_article_and_caption_come_with_the_question():
    v1, v2 = read("pmc_vqa_v1", V1), read("pmc_vqa_v2", V2)
    assert (v1.article, v1.caption, v1.uncut_figure) == ("PMC123", "", "PMC123_F1.jpg")
    assert (v2.article, v2.caption, v2.uncut_figure) == ("PMC9", "A leaf.", "PMC9_F1.jpg")
    assert read("pmc_vqa_v1", V1 | {"Figure_path": ""}).article == ""


def test_the_split_column_of_version_2_decides_where_the_name_does_not():
    assert read("pmc_vqa_v2", V2, split="").split == "test"
    assert read("pmc_vqa_v2", V2, split="train").split == "train"
    with pytest.raises(RejectedRow, match="neither the file's name nor the split column"):
        read("pmc_vqa_v2", V2 | {"split": "?"}, split="")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        *(("medmcqa", {"cop": number}, "cop is not one of 1, 2, 3, 4") for number in ("0", "12", "-2")),
        *(("medmcqa", {"cop": label}, "label is not one of A, B, C, D") for label in ("", "2.5", "E")),
        ("medmcqa", {"cop": -1}, "the row has no answer"),
        ("medmcqa", {"opb": " "}, "option is empty"),
        ("medmcqa", {"opb": "red"}, "two options are the same"),
        ("medqa, five options", {"answer_idx": "C"}, "name different options"),
        ("medqa, five options", {"answer_idx": "F"}, "label is not one of A, B, C, D, E"),
        ("medqa, five options", {"answer": "violet"}, "equals no option"),
        ("medqa, five options", {"options": {"A": "red"}}, "the row has 1 options, not 2 to 10"),
        ("medqa, five options", {"options": {"A": "red", "B": []}}, "an option is not text"),
        ("medqa, five options", {"options": "red or green"}, "neither a list nor lines"),
        ("pmc_vqa_v2", {"Answer": "green"}, "label is not one of"),
        ("mmlu", {"choices": ["red", "green"]}, "options are not A, B, C, D, but 2"),
        ("mmlu", {"answer": 4}, "answer is not one of 0, 1, 2, 3"),
        ("head_qa", {"ra": 6}, "ra is the key of no option"),
        ("pubmedqa", {"final_decision": "perhaps"}, "answer text equals no option"),
    ],
)
def test_rows_that_contradict_themselves_are_rejected(name, change, reason):
    readings = {"medmcqa": "number from 1", "head_qa": "key", "mmlu": "number from 0"}
    row = KNOWN_SETS[name][0] | change
    name = name.split(",")[0]
    assert reason in read_or_reason(name, row, reading=readings.get(name))


@pytest.mark.parametrize("cop", ["b", "B", "2", " 2.0 "])
def test_medmcqa_numbers_may_be_written_as_decimals_or_letters(cop):
    assert of_medmcqa(MEDMCQA | {"cop": cop}).gold == 1


def test_an_option_may_stand_twice_outside_of_train_where_that_is_wanted():
    row = MEDMCQA | {"opd": "red"}
    assert of_medmcqa(row, split="dev", may_repeat=True).choices == ("red", "green", "blue", "red")
    assert of_medmcqa(row, split="train", may_repeat=True) == "two options are the same"
    assert of_medmcqa(row, split="dev") == "two options are the same"


def with_options(row, letters, form):
    """`row` with its four options marked by these letters in a form such as "{}) ", and its answer text too."""
    texts = FIVE[:4]
    marked = {
        f"Choice {at}": form.format(letter) + text for at, letter, text in zip("ABCD", letters, texts, strict=True)
    }
    return row | marked | ({} if "split" in row else {"Answer": marked["Choice B"]})


LETTER_FORMS = ("{}: ", "{}) ", "({}) ", "[{}] ", "{}. ", "{}.", "{}\uff1a", "\uff08{}\uff09", "{} - ", "Option {}: ")


@pytest.mark.parametrize("form", LETTER_FORMS)
@pytest.mark.parametrize("name", ["pmc_vqa_v1", "pmc_vqa_v2"])
@pytest.mark.parametrize("in_case", [str.upper, str.lower])
def test_a_printed_letter_of_another_form_is_read_as_one(name, form, in_case):
    row = KNOWN_SETS[name][0]
    question = read_or_reason(name, with_options(row, in_case("ABCD"), form), reading="letter")
    assert (question.choices, question.gold) == (FIVE[:4], 1)
    # In another order than the columns, the text decides in version 1; in version 2 nothing is guessed.
    shifted = read_or_reason(name, with_options(row | {"Answer_label": "C"}, in_case("ACBD"), form), reading="letter")
    other = read_or_reason(name, with_options(row, in_case("BACD"), form), reading="letter")
    if name == "pmc_vqa_v1":
        assert (shifted.gold, shifted.choices[1], other.gold) == (1, "green", 1)
    else:
        assert other == "label and printed letter name different options"


@pytest.mark.parametrize(
    "options",
    [
        ("A. fumigatus", "Candida", "Mucor", "Rhizopus"),
        ("A. fumigatus", "C. albicans", "C. glabrata", "B. fragilis"),
        ("A-V block", "B-cells", "C-fibres", "D-dimers"),
        ("(A)", "(B)", "(C)", "(D)"),
    ],
)
@pytest.mark.parametrize("name", ["pmc_vqa_v2", "mmlu"])
def test_options_that_only_begin_like_a_letter_keep_their_text(name, options):
    change = {"choices": [*options]} if name == "mmlu" else dict(zip([*V2][4:8], options, strict=True))
    reading = "number from 0" if name == "mmlu" else None
    assert read(name, KNOWN_SETS[name][0] | change, reading=reading).choices == options


def test_a_question_keeps_what_only_looks_like_its_options_again():
    row = KNOWN_SETS["medxpertqa"][0]
    kept = row | {"question": "Which is meant by Answer Choices: (A) red (B) green?"}
    assert read("medxpertqa", kept).question == kept["question"]


def test_real_odd_rows_come_out_as_a_reader_would_have_them(shared_rows):
    with open(shared_rows / "v1_quirks.csv", encoding="utf-8", newline="") as file:
        found = {
            row["Figure_path"]: read_or_reason("pmc_vqa_v1", row, reading="letter") for row in csv.DictReader(file)
        }
    assert found.pop("PMC1421418_F5.jpg") == "label is not one of A, B, C, D"
    assert {figure: question.choices[question.gold] for figure, question in found.items()} == {
        "PMC1064097_F1.jpg": "Focal uptake pattern",
        "PMC1976316_F1.jpg": "N/A",
        "PMC2660287_F5.jpg": "Solitary level expression of signal S",
        "PMC3844328_F3.jpg": "Non-enhanced area",
    }


def test_real_medmcqa_rows_are_kept(shared_rows):
    """lm-evaluation-harness asks all 4,183 rows of this split; so does evaluation, if equal options are kept."""
    with open(shared_rows.parent / "medmcqa/dev.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    found = [of_medmcqa(row, split="dev") for row in rows]
    assert [question for question in found if isinstance(question, str)] == ["two options are the same"] * 21
    kept = [of_medmcqa(row, split="dev", may_repeat=True) for row in rows]
    assert [question.gold + 1 for question in kept] == [row["cop"] for row in rows]
    assert len(kept) == 4183
