"""A model behind an OpenAI-compatible server answers as the same model here; a server that fails is said to."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
N = 6
GREEDY = ("--method", "generation", "--temperature", 0, "--max_new_tokens", 12, "--num_samples", N)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def templated(embedded_model, smollm2_tokenizer, tmp_path_factory):
    """The embedded model with the template that it is asked with, as a server needs it, and a variable in that."""
    folder = tmp_path_factory.mktemp("served") / "SmolLM2"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).symlink_to(embedded_model / name)
    smollm2_tokenizer.save_pretrained(folder)
    template = folder / "chat_template.jinja"
    template.write_text("{%- if opening is defined %}{{ opening }}{% endif %}" + template.read_text())
    return folder


@contextlib.contextmanager
def serving(model, log, environment=None):
    """`transformers serve` on loopback, writing into the file `log`; yields where its API begins."""
    port = free_port()
    program = os.path.join(os.path.dirname(sys.executable), "transformers")
    words = [sys.executable, program, "serve", str(model), "--port", str(port), "--dtype", "float32"]
    with log.open("w") as out:
        server = subprocess.Popen([*words, "--device", "cpu"], env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None, log.read_text()[-2000:]
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def served(templated, tmp_path_factory):
    """Where the API of a served model begins."""
    with serving(templated, tmp_path_factory.mktemp("log") / "serve.log") as address:
        yield address


def test_a_served_model_answers_as_the_same_model_here(here, served, templated, prepared, tmp_path):
    import pyarrow.parquet as pq

    common = ("--model_path", templated, "--dataset_path", prepared, "--output_dir", tmp_path, *GREEDY)
    common += ("--chat_template_kwargs", '{"opening": "Antworte immer auf Deutsch. "}')
    for name, options in ("served", ("--backend", "openai", "--base_url", served)), ("here", ("--dtype", "float32")):
        done = here("sft/evaluate.py", *common, *options, "--name", name)
        assert done.returncode == 0, done.stderr
    there, local = (pq.read_table(tmp_path / name / "predictions.parquet").to_pylist() for name in ("served", "here"))
    for column in ("id", "prompt_id", "generation_texts", "generation_outcomes", "generation_answers"):
        assert [row[column] for row in there] == [row[column] for row in local]
    results = json.loads((tmp_path / "served/results.json").read_text())
    assert results["n"] == N
    assert "+0.000" in here("sft/compare.py", tmp_path / "served", tmp_path / "here").stdout


FINISH_REASONS = {"filtered": "content_filter", "length": "length", "end_turn": "end_turn", "EOS": "EOS", "odd": "bye"}
PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "It is A."}]}, {"type": "text", "text": "B"}]
MESSAGES = {
    "parts": {"content": PARTS, "reasoning_content": None},
    "refusal": {"content": None, "reasoning_content": None, "refusal": "I cannot say that it is B."},
    "reasoning of newer vLLM": {"content": "B", "reasoning_content": None, "reasoning": "It is A."},
    "answer behind the reasoning": {"content": "", "reasoning_content": "It is A.</think>\n\nB"},
    "an error in the choice": {"content": "", "reasoning_content": None},
    "inline": {"content": "<think>\nIt is A.\n</think>\n\nB", "reasoning_content": None},
    "closing tag alone": {"content": "It is A.\n</think>\n\nB", "reasoning_content": None},
    "a picture": {"content": [{"type": "image_url", "image_url": "B"}], "reasoning_content": None},
}
# The field that is refused, the status and the body; with the words of FastAPI, OpenAI and vLLM.
REFUSALS = {
    "no seed": ("seed", 422, '{"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}'),
    "small seeds": ("seed", 400, '{"error": {"message": "seed must be at most 65535"}}'),
    "no max_tokens": (
        *("max_tokens", 400),
        json.dumps(
            {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}
        ),
    ),
    "no top_p": ("top_p", 400, '{"error": {"message": "\'top_p\' is not supported with this model"}}'),
    "a small context": ("max_tokens", 400, '{"message": "\'max_tokens\' is too large: 2048 > 1024 - 60"}'),
    "words of its own": ("messages", 422, '{"detail": [{"loc": ["body", "messages"],\n "msg": "too many"}]}'),
}


class Misbehaving(http.server.BaseHTTPRequestHandler):
    """A server that answers as its `way` says."""

    way, requests, under_way, most, last = "", 0, 0, 0, None
    lock = threading.Lock()

    def do_GET(self):
        self.reply(200, json.dumps({"object": "list", "data": []}))

    def do_POST(self):
        kind = type(self)
        with self.lock:
            kind.requests += 1
            kind.under_way += 1
            kind.most = max(kind.most, kind.under_way)
            first = kind.requests == 1
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind.last = request
        time.sleep({"silent": 5, "hangs": 60}.get(self.way, 0.1))
        content = {"null": None, "a list": ["B"], "half a character": "B \ud800"}.get(self.way, "B")
        message = {"role": "assistant", "content": content, "reasoning_content": "It could be A."}
        message |= MESSAGES.get(self.way, {})
        usage = {"no count": {}, "words": {"completion_tokens": "3"}}.get(self.way, {"completion_tokens": 3})
        finish = FINISH_REASONS.get(self.way, "stop")
        completion = {
            "id": "1", "object": "chat.completion", "created": 1, "model": "m", "usage": usage,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        }  # fmt: skip
        if self.way == "an error in the choice":
            completion["choices"][0] |= {"finish_reason": "error", "error": {"message": "Overloaded", "code": 502}}
        elif self.way == "another model":
            completion["model"] = "small-model"
        with self.lock:
            kind.under_way -= 1
        if self.way == "busy at first" and first:
            self.reply(503, "{}")
        elif self.way in REFUSALS and REFUSALS[self.way][0] in request:
            self.reply(*REFUSALS[self.way][1:])
        elif self.way == "an error inside":
            self.reply(200, json.dumps({"error": {"message": "Provider returned error", "code": 502}}))
        elif self.way == "broken":
            self.reply(500, "{}")
        elif self.way == "nonsense":
            self.reply(200, json.dumps({"hello": "world"}))
        elif self.way == "a web page":
            self.reply(200, "<html>Welcome</html>", "text/html")
        else:
            self.reply(200, json.dumps(completion))

    def reply(self, status, body, kind="application/json"):
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())
        except BrokenPipeError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def misbehaving():
    """Start a server of some way; returns (its address, its class, which counts)."""
    servers = []

    def start(way):
        kind = type("Server", (Misbehaving,), {"way": way})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", kind

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture
def words(prepared, tmp_path):
    """The command line of an evaluation of twelve questions, for the address of a server and further options."""
    return lambda url, *options: (
        *("sft/evaluate.py", "--backend", "openai", "--base_url", url, "--model_path", "m", "--name", "run"),
        *("--dataset_path", prepared, "--num_samples", 12, "--output_dir", tmp_path / "eval", *options),
    )


@pytest.fixture
def evaluate(here, words):
    """Run it, which must succeed."""

    def run(url, *options):
        done = here(*words(url, *options))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_requests_are_bounded_and_a_busy_server_is_asked_again(evaluate, misbehaving):
    url, server = misbehaving("busy at first")
    # Reasoning that the server has split off is no answer.
    assert "answered 100.0%" in evaluate(url, "--concurrency", 3)
    assert server.requests == 13
    assert 2 <= server.most <= 3


@pytest.mark.parametrize(
    ("way", "options", "message"),
    [
        ("broken", ["--retries", 1], "failed: Error code: 500"),
        ("silent", ["--retries", 0, "--request_timeout", 0.3], "timed out"),
        ("nonsense", [], "sent no chat completion"),
        ("a web page", [], "sent no chat completion"),
        ("a list", [], "sent no chat completion"),
        ("a picture", [], "sent no chat completion"),
        ("an error inside", [], 'answered with an error: {"message": "Provider returned error", "code": 502}'),
        ("an error in the choice", [], 'answered with an error: {"message": "Overloaded", "code": 502}'),
        ("words of its own", [], 'Error code: 422: {"detail": [{"loc": ["body", "messages"], "msg": "too many"}]}'),
        ("a small context", [], "is too large: 2048 > 1024 - 60: lower --max_new_tokens"),
        ("no top_p", [], "--top_p 1 leaves the field out"),
        ("no count", [], "does not send usage.completion_tokens"),
        ("words", [], "does not send usage.completion_tokens"),
    ],
)
def test_a_server_that_fails_is_named_in_one_line(refused, misbehaving, words, way, options, message):
    url, _ = misbehaving(way)
    line = refused(*words(url, *options))
    assert message in line
    assert url in line


@pytest.mark.parametrize(
    ("way", "outcome"),
    [
        ("null", "unparsed"),
        ("filtered", "truncated"),
        ("length", "truncated"),
        ("end_turn", "answered"),
        ("EOS", "answered"),
        ("odd", "answered"),
        ("half a character", "answered"),
        ("parts", "answered"),
        ("refusal", "unparsed"),
        ("reasoning of newer vLLM", "answered"),
        ("answer behind the reasoning", "answered"),
        ("inline", "answered"),
        ("closing tag alone", "answered"),
    ],
)
def test_odd_turns_are_counted_as_what_they_are(evaluate, misbehaving, way, outcome):
    assert f"{outcome} 100.0%" in evaluate(misbehaving(way)[0])


def generation_of(tmp_path):
    return json.loads((tmp_path / "eval/run/results.json").read_text())["scores"]["generation"]


def test_an_unknown_finish_reason_is_counted_and_shown_and_cuts_only_at_the_limit(evaluate, misbehaving, tmp_path):
    url, _ = misbehaving("odd")
    output = evaluate(url)
    assert "finish reasons that are not known here: bye (12)" in output
    score = generation_of(tmp_path)
    assert score["finish_reasons"] == {"bye": 12}
    assert score["unknown_finish_reasons"] == ["bye"]
    assert "truncated 100.0%" in evaluate(url, "--max_new_tokens", 3, "--overwrite")
    known, _ = misbehaving("end_turn")
    assert "not known here" not in evaluate(known, "--overwrite")
    assert generation_of(tmp_path)["unknown_finish_reasons"] == []


@pytest.mark.parametrize(
    ("way", "options", "field"),
    [
        ("no seed", [], "seed"),
        ("small seeds", [], "seed"),
        ("no max_tokens", [], "max_tokens"),
        ("no top_p", ["--top_p", 1], "top_p"),
    ],
)
def test_a_field_that_a_server_refuses_is_replaced_and_recorded(evaluate, misbehaving, tmp_path, way, options, field):
    url, server = misbehaving(way)
    output = evaluate(url, "--concurrency", 4, *options)
    assert "answered 100.0%" in output
    assert f"the server refuses fields of a request: {field} (" in output
    assert 13 <= server.requests <= 16  # it is refused at most once for each request under way
    assert generation_of(tmp_path)["refused_fields"] == [field]
    # An evaluation that is continued knows it from its answers.
    assert f"fields of a request: {field} (" in evaluate(url, *options)


def test_values_of_the_servers_template_are_sent_and_decide_the_answers(evaluate, refused, misbehaving, words):
    url, server = misbehaving("reasoning of newer vLLM")
    values = ("--chat_template_kwargs", '{"enable_thinking": false}')
    evaluate(url, *values)
    assert server.last["chat_template_kwargs"] == {"enable_thinking": False}
    assert "other options" in refused(*words(url))  # these answers are not those of the template as it stands
    evaluate(url, "--overwrite")
    assert "chat_template_kwargs" not in server.last
    assert "write JSON in quotes" in refused(*words(url, "--chat_template_kwargs", "enable_thinking=false"))


def test_another_models_name_in_the_answers_is_shown_once_and_recorded(evaluate, misbehaving, tmp_path):
    url, _ = misbehaving("another model")
    assert evaluate(url).count("another model's name than --model_path: small-model.") == 1
    assert generation_of(tmp_path)["other_models"] == ["small-model"]
    same, _ = misbehaving("")
    assert "another model's name" not in evaluate(same, "--overwrite")
    assert generation_of(tmp_path)["other_models"] == []


def test_overwrite_asks_again(evaluate, misbehaving, tmp_path):
    url, server = misbehaving("")
    for options, total in ([], 12), ([], 12), (["--overwrite"], 24):
        evaluate(url, *options)
        assert server.requests == total
    # Where the server is stands nowhere in what may be published.
    assert "127.0.0.1" not in (tmp_path / "eval/run/results.json").read_text()


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(misbehaving, words):
    url, server = misbehaving("hangs")
    command = [sys.executable, *map(str, words(url))]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as evaluation:
        while server.requests < 8:
            assert evaluation.poll() is None, evaluation.stderr.read()
            time.sleep(0.1)
        start = time.perf_counter()
        evaluation.send_signal(signal.SIGINT)
        assert evaluation.wait() == 130
        assert time.perf_counter() - start < 30
        assert evaluation.stderr.read().splitlines()[-1] == "interrupted"


def test_a_server_that_is_not_there_is_refused_at_once(refused, words, tmp_path):
    start = time.perf_counter()
    assert "Connection refused" in refused(*words(f"http://127.0.0.1:{free_port()}/v1"))
    assert time.perf_counter() - start < 5
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://127.0.0.1:1/v1", ["--method", "likelihood"], "use --method generation"),
        ("http://me:secret@127.0.0.1:1/v1", [], "OPENAI_API_KEY"),
        ("http://127.0.0.1:1/v1", ["--quantization", "8bit"], "goes with a model of your own"),
        ("", [], "name the server with --base_url"),
    ],
)
def test_options_that_no_server_can_follow_are_refused(refused, words, url, options, message):
    assert message in refused(*words(url, *options))


def test_answers_before_a_failure_are_kept(evaluate, refused, misbehaving, words):
    url, server = misbehaving("")
    options = ("--concurrency", 1, "--retries", 0)
    server.way = property(lambda self: "broken" if type(self).requests > 5 else "")
    refused(*words(url, *options))
    server.way = ""
    assert "12 answers wanted, 5 found" in evaluate(url, *options)
    assert server.requests == 6 + 7
