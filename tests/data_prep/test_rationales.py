"""Rationales from a model's own answers: what may be trained on, what is left out, and the way into the data."""

import contextlib
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from data_prep.rationale_checks import Sample, why_unfit

QUESTION = {
    "id": "train-7",
    "question": "Which stain is used to show iron in the tissue of the liver?",
    "choices": ["Congo red", "Oil Red O", "Prussian blue", "Von Kossa"],
    "gold": 2,
    "answer_format": "letter_text",
}
FIT = "Iron is stored as hemosiderin. The ferrocyanide of Prussian blue reacts with ferric iron and gives a pigment."
# What is thought, and why it is left out; None is kept. The answer behind it is right.
THOUGHTS = [
    (FIT, None),
    ("Congo red stains amyloid, so A is out. Iron needs Perls' reaction, which is Prussian blue, option C.", None),
    ("Let me think about each of the options: A. Congo red is for amyloid; C. Prussian blue is for iron.", None),
    ("Hmm, Oil Red O shows fat (B), and Von Kossa shows calcium (D). That leaves Prussian blue.", None),
    ("The question refers to an image that I cannot see, but the stain for iron is Prussian blue anyway.", None),
    ("If the image shows blue granules, it would be Prussian blue. Iron is what the question asks about.", None),
    ("Without seeing the figure, I would go with the classical stain for iron, which is Prussian blue.", None),
    ("The image was not provided, so this is about knowledge: Perls' Prussian blue is the stain for iron.", None),
    (
        "Levels of β-globin or α-chains do not matter here; the 5 µm section is stained for Fe with Prussian blue.",
        None,
    ),
    ("A liver with too much iron is stained with Prussian blue. And that is the answer.", None),
    ("The correct answer is Prussian blue, since it is the one that reacts with iron.", None),
    ("In hemochromatosis the liver shows iron in its cells, and the stain of choice is Prussian blue.", None),
    ("铁在肝组织中沉积,用普鲁士蓝染色显示,因此答案是普鲁士蓝。", "another language than the question"),
    (
        "Iron is in the liver. 所以我们需要普鲁士蓝染色来显示铁的沉积。 Prussian blue.",
        "another language than the question",
    ),
    ("Железо в печени окрашивается берлинской лазурью.", "another language than the question"),
    (
        "El hierro se deposita en el hígado, y la tinción para el hierro es el azul de Prusia, según los libros.",
        "another language than the question",
    ),
    (
        "Das Eisen wird in der Leber gespeichert, und die Färbung ist mit dem Berliner Blau, das wird auch so.",
        "another language than the question",
    ),
    ("The image shows blue granules in the cells, so it is Prussian blue.", "claims to see a figure"),
    ("Looking at the figure, the pigment is blue, which is iron.", "claims to see a figure"),
    ("As seen in the image, there are blue granules.", "claims to see a figure"),
    ("I can see blue pigment in the picture, which means iron.", "claims to see a figure"),
    ("The provided micrograph depicts iron in blue.", "claims to see a figure"),
    ("The figure clearly shows no amyloid, so Congo red is out; iron it is.", "claims to see a figure"),
    ("In the scan, we find deposits of iron in the liver.", "claims to see a figure"),
    ("The answer key says Prussian blue, so I go with that.", "refers to a given answer"),
    ("Since I was told that the answer is C, I explain why it is.", "refers to a given answer"),
    ("Prussian blue is marked as the correct option, so let me justify it.", "refers to a given answer"),
    ("According to the solution, it is Prussian blue.", "refers to a given answer"),
    ("The ground truth is Prussian blue.", "refers to a given answer"),
    ("The provided answer is Prussian blue; it stains iron.", "refers to a given answer"),
    ("The correct answer is already given: Prussian blue.", "refers to a given answer"),
    ("Option B, Prussian blue, is the stain for iron.", "names options by other letters"),
    ("So the answer is (A) Prussian blue, because it stains iron.", "names options by other letters"),
    ("Let me see: D. Congo red is for amyloid. Iron is shown by Prussian blue.", "names options by other letters"),
    ("", "no thinking"),
]
# Other samples of the same question, and why they are left out.
SAMPLES = [
    (Sample(FIT, 2, "answered", 900), "more than --max_tokens"),
    (Sample(FIT, 0, "answered", 90), "wrong answer"),
    (Sample(FIT, None, "unparsed", 90), "states no option"),
    (Sample(FIT, None, "truncated", 90), "not finished"),
    (Sample(f"<think>{FIT}", 2, "answered", 90), "holds a think tag"),
]


@pytest.mark.parametrize(("thought", "reason"), THOUGHTS, ids=[f"{i}-{why}" for i, (_, why) in enumerate(THOUGHTS)])
def test_a_thought_is_kept_or_left_out_for_its_reason(thought, reason):
    assert why_unfit(Sample(thought, 2, "answered", 90), QUESTION, 512) == reason


@pytest.mark.parametrize(("sample", "reason"), SAMPLES, ids=[reason for _, reason in SAMPLES])
def test_a_sample_is_left_out_for_its_reason(sample, reason):
    assert why_unfit(sample, QUESTION, 512) == reason


def test_a_sighted_model_may_speak_of_the_figure():
    sample = Sample("The image shows blue granules in the cells, so it is Prussian blue.", 2, "answered", 90)
    assert why_unfit(sample, QUESTION, None, sighted=True) is None


def test_letters_of_a_shuffled_order_are_left_out():
    """The rationale joins the question in its own order, in which the letters are others."""
    shuffled = QUESTION | {"id": "train-7#2"}
    assert why_unfit(Sample(FIT, 2, "answered", 90), shuffled, None) is None
    named = Sample("It is option C, which stains iron.", 2, "answered", 90)
    assert why_unfit(named, shuffled, None) == "names options by letters of a shuffled order"
    assert why_unfit(named, QUESTION, None) is None


class Thinking(http.server.BaseHTTPRequestHandler):
    """Answers as vLLM does with a reasoning parser: an option by the hash of prompt and seed, and a thought of it."""

    def do_GET(self):
        self.reply({"object": "list", "data": []})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        options = [line for line in request["messages"][-1]["content"].splitlines() if line[1:3] == ". "]
        number = zlib.crc32(f"{request['messages'][-1]['content']}{request['seed']}".encode())
        option = options[number % len(options)]
        thought = f"It is {option[3:]}, as everybody knows who has read about it{'.' * (number % 3)}"
        if number % 7 == 0:
            thought = f"The image shows {option[3:]}."
        message = {"role": "assistant", "content": option, "reasoning_content": thought}
        time.sleep(0.01)
        self.reply(
            {
                **{"id": "1", "object": "chat.completion", "created": 1, "model": "m"},
                "usage": {"completion_tokens": 10 + number % 3},
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }
        )

    def reply(self, value):
        body = json.dumps(value).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the command was killed
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def thinking():
    """The address of a server that thinks."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Thinking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.fixture(scope="module")
def evaluation(thinking, prepared, tmp_path_factory):
    """(command line of an evaluation of the training questions by the server, its folder)."""
    folder = tmp_path_factory.mktemp("answers")
    words = ["--backend", "openai", "--base_url", thinking, "--model_path", "m", "--dataset_path", prepared]
    words += ["--split", "train", "--num_samples", 240, "--method", "generation", "--generation_seeds", 1, 2, 3, 4]
    return lambda name: (["sft/evaluate.py", *words, "--output_dir", folder, "--name", name], folder / name)


@pytest.fixture(scope="module")
def answers(evaluation, here):
    """The folder of that evaluation, finished."""
    words, folder = evaluation("thinking")
    done = here(*words)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def rationales(here, answers, prepared, tmp_path):
    """Run the command with options; returns (lines of the file, its report)."""

    def run(*options, folder=answers):
        file = tmp_path / "why.jsonl"
        words = ("--answers", folder, "--dataset_path", prepared, "--output_file", file, "--overwrite")
        done = here("data_prep/rationales.py", *words, *options)
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "why.report.json").read_text())
        assert f"{report['rationales']:,} rationales of {report['questions_kept']:,} questions" in done.stdout
        return [json.loads(line) for line in file.read_text().splitlines()], report

    return run


def test_the_report_counts_what_the_answers_hold(rationales, answers, tmp_path):
    import pyarrow.parquet as pq

    lines, report = rationales()
    rows = pq.read_table(answers / "predictions.parquet").to_pylist()
    right = [sum(answer == row["gold"] for answer in row["generation_answers"]) for row in rows]
    counted = {row["right"]: row["questions"] for row in report["right_samples"]}
    assert counted == {number: right.count(number) for number in sorted(set(right))}
    assert sum(report["samples_by_reason"].values()) == report["samples"] == 4 * len(rows)
    assert report["samples_by_reason"]["wrong answer"] == 4 * len(rows) - sum(right)
    assert report["samples_by_reason"]["claims to see a figure"] > 0
    assert report["samples_by_reason"]["says the same as another"] > 0
    assert report["questions_kept"] == len(lines) == len({line["id"] for line in lines})
    assert report["questions_left_out"]["no fit rationale"] == len(rows) - len(lines)
    texts = {row["id"]: row["generation_texts"] for row in rows}
    for line in lines:  # the shortest by tokens, of which the server counts one for each dot
        kept = [text for text in texts[line["id"]] if f"<think>\n{line['reasoning']}\n</think>" in text]
        assert kept
    assert lines[0]["reasoning"].split(",")[0] in (tmp_path / "why.report.html").read_text()


def test_all_rationales_of_a_question_become_rows_and_a_share_stays_direct(rationales, prepare, tmp_path):
    lines, _ = rationales("--keep", "all")
    assert max(len(line["reasoning"]) for line in lines) > 1
    folder = prepare("--add_reasoning", tmp_path / "why.jsonl", "--require_reasoning", "--direct_share", 0.3)
    report = json.loads((folder / "report.json").read_text())
    from sft.common.data import load_split

    rows = load_split(str(folder), "train")
    wanted = {line["id"]: line["reasoning"] for line in lines}
    found: dict[str, list] = {}
    for row in rows:
        found.setdefault(row["id"].partition("#")[0], []).append(row["completion"][0]["reasoning_content"])
    direct = {id for id, texts in found.items() if texts == [""]}
    assert all(texts == wanted[id] for id, texts in found.items() if id not in direct)
    assert len(direct) == report["answered_directly"]
    assert 0.2 < len(direct) / len(found) < 0.4
    # A question counts once in dev.
    assert len(load_split(str(folder), "dev")) == len(set(load_split(str(folder), "dev")["id"]))


def test_hard_questions_and_consistent_answers_are_preferred(rationales):
    def kept(*options):
        _, report = rationales(*options)
        return {row["right"]: row["kept"] for row in report["right_samples"]}

    every, hard, sure = kept(), kept("--hardness", 1), kept("--self_consistency", 0.75)
    assert hard == kept("--hardness", 1)
    assert hard[3] / every[3] < hard[1] / every[1] < 1
    assert sure[1] < every[1] / 4  # three of four agree, on a wrong option that is not the one
    assert sure[3] == every[3]


def test_an_evaluation_that_was_killed_continues_to_the_same_rationales(evaluation, here, rationales):
    words, folder = evaluation("killed")
    run = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=Path(__file__).parents[2], stdout=-3, stderr=-3, start_new_session=True
    )
    while not any(file.stat().st_size for file in folder.glob("answers/answers-*.jsonl")):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (folder / "results.json").exists()
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert rationales(folder=folder) == rationales()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--answers", "nowhere"], "nowhere is not a finished evaluation: give the command of sft/evaluate.py again"),
        (["--max_tokens", 3], "no rationale is left of"),
        (["--max_tokens", 0], "give a positive number"),
        (["--self_consistency", 2], "give a share from 0 to 1"),
        (["--hardness", -1], "give 0 (all questions alike) or a positive power"),
        (["--hardness", "nan"], "give 0 (all questions alike) or a positive power"),
        (["--output_file", "why.json"], "give a name that ends in .jsonl"),
    ],
)
def test_wrong_options_are_refused_in_one_line_and_leave_nothing(
    refused, answers, prepared, tmp_path, options, message
):
    file = tmp_path / "why.jsonl"
    words = ("--answers", answers, "--dataset_path", prepared, "--output_file", file)
    assert message in refused("data_prep/rationales.py", *words, *options)
    assert not [*tmp_path.iterdir()]


def test_answers_to_other_questions_are_refused(refused, answers, prepare, tmp_path):
    words = ("--answers", answers, "--output_file", tmp_path / "why.jsonl")
    other = prepare("--answer_format", "letter")
    assert "words the question train-" in refused("data_prep/rationales.py", *words, "--dataset_path", other)
