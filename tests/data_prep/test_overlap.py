"""Training questions that stand in other prepared data: which are found, which are not, and what becomes of them."""

import csv
import json
import random
from pathlib import Path

import pytest

from data_prep.matching import BATCH, GENERIC, SIMILARITY, Known, overlaps
from sft.common.command import read_json

NERVE = "Which nerve supplies the muscles of facial expression on the left side?"
NERVES = ["Facial nerve", "Trigeminal nerve", "Hypoglossal nerve", "Accessory nerve"]
FEVER = "A patient of 60 years has had fever, cough and a rash on one arm for three days: which arm was bitten?"
ARMS = ["Left", "Right", "Both", "Neither"]
LONG_GENERIC = "Which of the following statements about the given figure is true?"
UNLIKE = "During embryonic growth, from what tissue do these cells arise?"
OTHERS = [["zinc", "iron", "lead", "gold"], ["mole", "newt", "hare", "lynx"], ["oak", "elm", "fir", "ash"]]


def rows(*questions: tuple[str, list[str]]) -> list[dict]:
    return [{"id": f"train-{i}", "question": text, "choices": choices} for i, (text, choices) in enumerate(questions)]


def kinds(train: list[dict], benchmark: list[dict], similarity: float = SIMILARITY) -> dict[str, str]:
    """{id of a training row: what it shares with the benchmark}."""
    found = overlaps(lambda: train, [Known("benchmark/test", lambda: benchmark, similarity)])
    return {overlap.id: overlap.kind for overlap in found}


FOUND = {
    "exact": (NERVE, NERVES, "question and options"),
    "reordered options": (NERVE, NERVES[::-1], "question and options"),
    "other punctuation": (
        "Which nerve supplies the muscles of facial-expression on the LEFT side:-",
        [f"{nerve}." for nerve in NERVES],
        "question and options",
    ),
    "other options": (NERVE, OTHERS[0], "question"),
    "another question": (UNLIKE, NERVES[1:] + NERVES[:1], "options"),
    "one word changed": (FEVER.replace("cough", "chills"), ARMS, "near-duplicate"),
    "one word dropped": (FEVER.replace("fever, ", ""), ARMS[::-1], "near-duplicate"),
    "much changed": (FEVER.replace("fever, cough and a rash on one arm", "pain in his right leg"), ARMS, None),
    "short options alone": (UNLIKE, ARMS, None),
    "short question alone": ("What does the image show?", OTHERS[0], None),
    "yes, no and maybe": ("Is there fluid in the left lung?", ["Yes", "No", "Maybe", "Unknown"], None),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_a_training_question_shares_with_a_benchmark(case):
    benchmark = rows(
        (NERVE, NERVES),
        (FEVER, ARMS),
        ("What does the image show?", OTHERS[1]),
        ("Is the heart larger than it should be?", ["Yes", "No", "Maybe", "Unknown"]),
    )
    question, choices, kind = FOUND[case]
    assert kinds(rows((UNLIKE[::-1], OTHERS[2]), (question, choices)), benchmark).get("train-1") == kind


@pytest.mark.parametrize("sides", ["benchmark", "train"])
@pytest.mark.parametrize(
    "repeated",
    [
        [(LONG_GENERIC, choices) for choices in OTHERS],
        [(question, NERVES) for question in (UNLIKE, UNLIKE[::-1], LONG_GENERIC)],
    ],
    ids=["question", "options"],
)
def test_what_one_set_repeats_often_enough_is_generic_and_no_overlap_by_itself(repeated, sides):
    (question, choices), *_ = repeated
    by_question = choices != NERVES
    single = (question, ["hip", "rib", "jaw", "toe"]) if by_question else (NERVE, choices)

    def found(count: int) -> dict[str, str]:
        many, one = rows(*repeated[:count]), rows(single)
        return kinds(one, many) if sides == "benchmark" else kinds(many, one)

    assert set(found(GENERIC - 1).values()) == {"question" if by_question else "options"}
    assert found(GENERIC) == {}


def test_copies_of_one_question_are_not_generic():
    """As in data prepared with --shuffle_choices."""
    copies = rows(*[(NERVE, NERVES[i:] + NERVES[:i]) for i in range(4)])
    assert set(kinds(copies, rows((NERVE, OTHERS[0]))).values()) == {"question"}


def test_of_several_that_resemble_a_question_the_closest_is_listed():
    closest, *_ = overlaps(
        lambda: rows((FEVER, ARMS)),
        [Known("b/test", lambda: rows((FEVER.replace("60", "9").replace("one", "an"), ARMS), (FEVER[1:], ARMS)))],
    )
    assert (closest.other_id, closest.kind) == ("train-1", "near-duplicate")


@pytest.mark.parametrize("similarity", [0.6, 0.8, 0.9])
def test_near_duplicates_are_those_of_an_exact_comparison_of_all_pairs(similarity):
    rng = random.Random(0)  # noqa: S311
    words = [f"w{i}" for i in range(500)]
    benchmark = rows(*[(" ".join(rng.sample(words, rng.randrange(12, 40))), ARMS) for _ in range(300)])
    train = []
    for row in benchmark:
        text = row["question"].split()
        for place in rng.sample(range(len(text)), rng.randrange(1, len(text) // 3)):
            text[place] = rng.choice(words)
        train.append(row | {"question": " ".join(text)})

    def different(row: dict) -> set[str]:  # the options are generic
        return set(row["question"].split())

    exact = {
        row["id"]
        for row in train
        if any(
            len(different(row) & different(other)) >= similarity * len(different(row) | different(other))
            for other in benchmark
        )
    }
    found = kinds(train, benchmark, similarity).keys()
    assert found <= exact
    assert len(found) >= 0.99 * len(exact)
    assert 5 < len(exact) < 300


def replaced(text: str, rng: random.Random) -> str:
    """The text with one of its words replaced."""
    words = text.split()
    words[rng.randrange(len(words))] = "cartilage"
    return " ".join(words)


EDITS = {
    "case and punctuation": lambda question, choices, rng: (question.upper().rstrip(" .:?-") + " …", choices),
    "order of the options": lambda question, choices, rng: (question, rng.sample(choices, 4)),
    "a word of the question": lambda question, choices, rng: (replaced(question, rng), choices),
    "a word of an option": lambda question, choices, rng: (question, [*choices[1:], replaced(choices[0], rng)]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_real_questions_are_found_after_one_edit(shared_rows, edit):
    rng = random.Random(0)  # noqa: S311
    with open(shared_rows.parent / "medmcqa/dev.jsonl", encoding="utf-8") as file:
        cells = [json.loads(line) for line in file]
    benchmark = rows(*[(row["question"], [row[name] for name in ("opa", "opb", "opc", "opd")]) for row in cells])
    drawn = rng.sample(benchmark, 500)
    train = rows(*[EDITS[edit](row["question"], row["choices"], rng) for row in drawn])
    assert len(kinds(train, benchmark)) >= 0.95 * len(train)


# --- In folders ---


def filler(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Questions without a word in common with others."""
    rng = random.Random(seed)  # noqa: S311

    def draw() -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12))

    return [(" ".join(draw() for _ in range(8)), [draw() for _ in range(4)]) for _ in range(count)]


PLANTED = [(NERVE, NERVES[::-1]), (NERVE, OTHERS[0]), (UNLIKE, NERVES), (FEVER.replace("cough", "chills"), ARMS)]
COUNTS = dict(zip(("question and options", "question", "options", "near-duplicate"), (1, 1, 1, 1), strict=True))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Folders of MedMCQA files: `mine` with train and test, `train_only`, and `benchmark` with test."""
    folder = tmp_path_factory.mktemp("sources")
    content = {
        "mine/train.jsonl": filler(96, seed=1) + PLANTED,
        "mine/test.jsonl": filler(10, seed=2),
        "train_only/train.jsonl": [*filler(20, seed=3), (FEVER, ARMS)],
        "benchmark/test.jsonl": [*filler(20, seed=4), (NERVE, NERVES), (FEVER, ARMS)],
    }
    for name, questions in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        lines = [
            {"question": text, **dict(zip(("opa", "opb", "opc", "opd"), choices, strict=True)), "cop": "b"}
            for text, choices in questions
        ]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def prepare_from(here, sources):
    """Prepare a folder of `sources`; returns what is printed."""

    def run(name: str, folder: Path, *options: object) -> str:
        words = ("--dataset_path", sources / name, "--output_dir", folder, *options)
        done = here("data_prep/prepare.py", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory, prepare_from) -> Path:
    """Where all of `sources` lie prepared, under their names, without a dev split."""
    folder = tmp_path_factory.mktemp("folders")
    for name in ("mine", "train_only", "benchmark"):
        prepare_from(name, folder / name, "--dev_size", 0)
    return folder


def read_list(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_row_is_known_by_its_place_beyond_a_batch():
    train = rows(*filler(BATCH + 5, seed=0), (NERVE, NERVES))
    (overlap,) = overlaps(lambda: train, [Known("benchmark/test", lambda: rows((NERVE, NERVES)))])
    assert (overlap.row, overlap.id) == (BATCH + 5, f"train-{BATCH + 5}")


def ids(folder: Path) -> set[str]:
    import pyarrow.parquet as pq

    return {
        id
        for split in ("train", "dev")
        for file in (folder / split).iterdir()
        for id in pq.read_table(file)["id"].to_pylist()
    }


def test_preparation_counts_and_lists_what_stands_in_a_benchmark(prepare_from, folders, tmp_path):
    printed = prepare_from("mine", tmp_path / "P", "--check_against", folders / "benchmark")
    line = "benchmark/test holds 4 training rows: by question and options 1, question 1, options 1, near-duplicate 1"
    assert line in printed
    report = read_json(tmp_path / "P/report.json")
    assert report["overlap_with"] == {"benchmark/test": COUNTS}
    assert report["options"]["check_against"] == "benchmark"
    assert report["splits"] == {"train": 90, "dev": 10, "test": 10}
    assert "`benchmark/test` holds 4 of the training questions" in (tmp_path / "P/README.md").read_text()
    assert "benchmark/test" in (tmp_path / "P/report.html").read_text()
    listed = read_list(tmp_path / "P/overlaps.csv")
    assert [(row["id"], row["other"], row["other_id"], row["kind"]) for row in listed] == [
        (f"train-{97 + i}", "benchmark/test", f"test-{other}", kind)
        for i, (kind, other) in enumerate(zip(COUNTS, (21, 21, 21, 22), strict=True))
    ]
    assert {row["set"] for row in listed} <= {"train", "dev"}
    assert listed[3]["question"] == FEVER.replace("cough", "chills")
    assert listed[3]["other_question"] == FEVER
    # Both have 24 different words, and 23 in common.
    assert [row["similarity"] for row in (listed[0], listed[3])] == ["1.000", f"{23 / 25:.3f}"]


def test_what_stands_in_a_benchmark_is_removed_from_train_and_dev_on_request(prepare_from, folders, tmp_path):
    printed = prepare_from("mine", tmp_path / "P", "--check_against", folders / "benchmark", "--drop_overlap")
    assert "left out: 4 shared with --check_against" in printed
    report = read_json(tmp_path / "P/report.json")
    assert report["left_out"]["shared with --check_against"] == 4
    assert report["overlap_with"] == {"benchmark/test": COUNTS}
    assert report["splits"] == {"train": 87, "dev": 9, "test": 10}
    assert ids(tmp_path / "P") == {f"train-{i}" for i in range(1, 97)}
    assert {row["set"] for row in read_list(tmp_path / "P/overlaps.csv")} == {"left out"}


def test_only_questions_that_are_drawn_count(prepare_from, folders, tmp_path):
    prepare_from("mine", tmp_path / "P", "--check_against", folders / "benchmark", "--max_samples", 20)
    planted = {f"train-{i}" for i in range(97, 101)} & ids(tmp_path / "P")
    assert {row["id"] for row in read_list(tmp_path / "P/overlaps.csv")} == planted


def test_without_a_benchmark_nothing_is_written_about_one(prepare_from, folders, tmp_path):
    prepare_from("mine", tmp_path / "P", "--check_against", folders / "benchmark")
    prepare_from("mine", tmp_path / "P", "--overwrite")
    assert not (tmp_path / "P/overlaps.csv").exists()
    assert "overlap_with" not in read_json(tmp_path / "P/report.json")
    assert "benchmark" not in (tmp_path / "P/README.md").read_text() + (tmp_path / "P/report.html").read_text()


def test_any_number_of_processes_writes_the_same_bytes(prepare_from, folders, tmp_path):
    options = ("--check_against", folders / "benchmark", folders / "mine", "--drop_overlap", "--num_proc")
    for number in (1, 3):
        prepare_from("mine", tmp_path / f"{number}/P", *options, number)
    files = [file for file in sorted((tmp_path / "1").rglob("*")) if file.is_file()]
    assert any(file.name == "overlaps.csv" for file in files)
    for file in files:
        assert (tmp_path / "3" / file.relative_to(tmp_path / "1")).read_bytes() == file.read_bytes(), file


def test_the_parts_of_a_mixture_are_compared_with_each_other_and_with_benchmarks(succeeds, folders, tmp_path):
    words = (folders / "mine", folders / "train_only", "--against", folders / "benchmark")
    lists = []
    for name in ("first.csv", "again.csv"):
        done = succeeds("data_prep/overlap.py", *words, "--output", tmp_path / name)
        lists.append((tmp_path / name).read_bytes())
    assert lists[0] == lists[1]
    counts = {tuple(line.split()[:3:2]): [*map(int, line.split()[3:])] for line in done.stdout.splitlines()[1:-1]}
    assert counts == {
        ("mine/train", "mine/test"): [0, 0, 0, 0],
        ("mine/train", "train_only/train"): [0, 0, 0, 1],
        ("mine/train", "benchmark/test"): [1, 1, 1, 1],
        ("train_only/train", "mine/train"): [0, 0, 0, 1],
        ("train_only/train", "mine/test"): [0, 0, 0, 0],
        ("train_only/train", "benchmark/test"): [1, 0, 0, 0],
    }
    listed = {(row["set"], row["id"], row["other"], row["other_id"]) for row in read_list(tmp_path / "first.csv")}
    assert len(listed) == 7
    assert ("train_only/train", "train-21", "benchmark/test", "test-22") in listed
    assert ("mine/train", "train-100", "train_only/train", "train-21") in listed


def test_a_lower_similarity_finds_more(succeeds, folders):
    def near(similarity: float) -> int:
        words = (folders / "mine", "--against", folders / "benchmark", "--similarity", similarity)
        return int(succeeds("data_prep/overlap.py", *words).stdout.split()[-1])

    assert near(0.8) == 1
    assert near(0.95) == 0


REFUSED = {
    "nothing there": ("nowhere", "is not a folder that data_prep/prepare.py has written"),
    "files not prepared": ("sources/benchmark", "is not a folder that data_prep/prepare.py has written"),
    "no test split": ("train_only", "has no test split, but train alone"),
    "two of one name": ("benchmark copies/benchmark", "two folders are called benchmark: rename one"),
    "a file is missing": ("broken", "which its report.json names: prepare it again"),
}


@pytest.mark.parametrize("command", ["prepare", "overlap"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_no_benchmark_is_refused_at_once(refused, folders, sources, tmp_path, command, case):
    names, words = REFUSED[case]
    for link, target in {
        "sources": sources, "train_only": folders / "train_only", "benchmark": folders / "benchmark",
    }.items():  # fmt: skip
        (tmp_path / link).symlink_to(target)
    (tmp_path / "copies/benchmark").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    report = (folders / "benchmark/report.json").read_text()
    for name in ("copies/benchmark", "broken"):
        (tmp_path / name / "report.json").write_text(report)
    (tmp_path / "copies/benchmark/test").symlink_to(folders / "benchmark/test")
    benchmarks = [tmp_path / name for name in names.split()]
    # What is to be prepared is not there: it is not looked at before.
    options = {"prepare": ("--dataset_path", tmp_path / "none", "--output_dir", tmp_path / "P", "--check_against")}
    line = refused(f"data_prep/{command}.py", *options.get(command, (folders / "mine", "--against")), *benchmarks)
    assert words in line
    assert not (tmp_path / "P").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("benchmark",), "has no train split: name it behind --against"),
        (("train_only",), "has no split but train: name other folders, or --against a benchmark"),
        (("mine", "--similarity", "0.3"), "--similarity 0.3: give a share of common words from 0.5 to 1"),
        (("mine", "--output", "nowhere/o.csv"), "there is no folder nowhere"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(refused, folders, options, words):
    assert words in refused("data_prep/overlap.py", folders / options[0], *options[1:])
