"""What comes from outside, changed at random: each answer of a server and each file is read correctly, or refused."""

import copy
import csv
import http.server
import io
import json
import random
import threading

import pytest

from sft.common.command import UserError
from sft.inference.generation import Sampling
from sft.inference.parsing import parse_answer
from sft.inference.question_files import read_questions
from sft.inference.server import CUT, FINISHED, Server

STAINS = ["Congo red", "Prussian blue", "Oil Red O", "Giemsa"]
LIMIT = 8
REFUSED = "refused"
B, NONE, CUT_OFF = (1, "answered"), (None, "unparsed"), (None, "truncated")
COMPLETION = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "B"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
}  # fmt: skip
# Fields that decide the answer, by the keys that lead to them; the others may hold anything.
READ = [["choices"], ["choices", 0], ["choices", 0, "message"], ["choices", 0, "message", "content"], ["usage"]]
READ += [["usage", "completion_tokens"]]
NOT_READ = [["id"], ["object"], ["created"], ["model"], ["choices", 0, "index"], ["choices", 0, "message", "role"]]
NOT_READ += [["usage", "prompt_tokens"], ["usage", "total_tokens"]]
WRONG = [5, -1, True, 2.5, [], [[]], {}, {"a": 1}, ["B"], "yes", [None], [{"type": "image_url"}], {"value": "B"}]
CONTENTS = [
    ("B", B), ("**B**", B), ("Option B is correct.", B), ("<think>\nA?\n</think>\n\nB", B), ("A?\n</think>\n\nB", B),
    ("<think>\nB", CUT_OFF), ("", NONE), (None, NONE), ("B or C", NONE), ("\ud800", NONE), ("B \ud800", B),
    ([], NONE), ([{"type": "text", "text": "B"}], B), ([{"type": "text"}], REFUSED), ([{"text": "B"}], REFUSED),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "A"}]}, {"type": "text", "text": "B"}], B),
    ([{"type": "reasoning", "text": "A"}, {"type": "output_text", "text": "B"}], B),
    ([{"type": "tool_use", "name": "B"}], REFUSED), ("B" * 10_000, NONE),
]  # fmt: skip
WORDS = [
    "end",
    "EOS",
    "Stop",
    "finished",
    "end_of_turn",
    "",
    None,
    7,
    True,
    ["stop"],
    {"reason": "stop"},
    "tool_calls",
]
BODIES = ["", "{}", "[]", "null", "<html>Bad gateway</html>", '{"detail": "no"}', '{"error": "no"}', '{"error": {}}']
BODIES += ['{"error": {"message": "no such model"}}', '{"message": ["no"]}', '"no"', "{", "\ud800"]


def at(body, path):
    """What holds the field that `path` leads to."""
    for key in path[:-1]:
        body = body[key]
    return body


def changed_fields(rng):
    """One field missing, renamed or of another type."""
    body, way = copy.deepcopy(COMPLETION), rng.choice(["missing", "renamed", "other type"])
    path = rng.choice(READ + NOT_READ)
    holder, key = at(body, path), path[-1]
    if way == "other type":
        holder[key] = rng.choice([value for value in WRONG if not (key == "content" and value in ("yes", []))])
    elif way == "renamed" and isinstance(key, str):
        holder[f"{key}_"] = holder.pop(key)
    else:
        del holder[key]
    return 200, json.dumps(body), REFUSED if path in READ and not accepted_all_the_same(path, holder) else B


def accepted_all_the_same(path, holder):
    """5 is a number of tokens, and openai reads true as 1."""
    return path[-1] == "completion_tokens" and holder.get("completion_tokens") in (5, True)


def finish_reasons(rng):
    body, tokens = copy.deepcopy(COMPLETION), rng.choice([1, LIMIT - 1, LIMIT, LIMIT + 1])
    word = rng.choice([*FINISHED, *CUT, *WORDS])
    word = word.upper() if isinstance(word, str) and rng.random() < 0.3 else word
    body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"] = word, tokens
    known = str(word).lower()
    cut = known in CUT or (known not in FINISHED and tokens >= LIMIT)
    return 200, json.dumps(body), CUT_OFF if cut else B


def contents(rng):
    body = copy.deepcopy(COMPLETION)
    message = body["choices"][0]["message"]
    message["content"], expected = rng.choice(CONTENTS)
    if rng.random() < 0.4:
        message[rng.choice(["reasoning_content", "reasoning"])] = rng.choice(["It is A.", "", None])
    elif message["content"] in ("", None) and rng.random() < 0.5:
        message["refusal"] = "I cannot say that it is B."
    elif message["content"] in ("", None) and rng.random() < 0.5:
        message["reasoning"], expected = "It is A.</think>\n\nB", B
    return 200, json.dumps(body), expected


def statuses(rng):
    return (
        rng.choice([400, 401, 403, 404, 408, 409, 413, 418, 422, 429, 500, 501, 502, 503]),
        rng.choice(BODIES),
        REFUSED,
    )


def no_completion(rng):
    text = json.dumps(COMPLETION)
    cut = text[: rng.randrange(len(text))]
    error = json.dumps({"error": rng.choice(["no", {"message": "no", "code": 502}, {"code": 1}])})
    return 200, rng.choice([cut, error, *BODIES]), REFUSED


KINDS = [changed_fields, finish_reasons, contents, statuses, no_completion]


@pytest.fixture
def server():
    """(a `Server`, a setter of what it is answered with)."""
    reply = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            content = reply["body"].encode("utf-8", "surrogatepass")
            self.send_response(reply["status"])
            self.send_header("Content-Type", reply["kind"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            reply.update(status=200, body='{"object": "list", "data": []}', kind="application/json")
            self.rfile = io.BytesIO(b"")
            self.headers["Content-Length"] = "0"
            self.do_POST()

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield Server(f"http://127.0.0.1:{running.server_port}/v1", "m", 1, 0, 5.0), reply.update
    running.shutdown()
    running.server_close()


def test_changed_answers_of_a_server_are_read_correctly_or_refused_in_one_line(server):
    asked, answer_with = server
    rng, counts = random.Random(17), {"accepted": 0, "refused": 0}  # noqa: S311
    for number in range(600):
        kind = KINDS[number % len(KINDS)]
        status, body, expected = kind(rng)
        answer_with(status=status, body=body, kind=rng.choice(["application/json"] * 4 + ["text/plain"]))
        try:
            answer = asked.ask([{"role": "user", "content": "Which?"}], Sampling(max_new_tokens=LIMIT))
            got = tuple(parse_answer(answer["text"], STAINS, answer["hit_limit"]))
            json.dumps(answer, ensure_ascii=False).encode()  # as it is kept
        except UserError as error:
            got = REFUSED
            assert str(error).startswith(f"the server {asked.url}"), body
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000, body
        counts["refused" if got == REFUSED else "accepted"] += 1
        assert got == expected, (kind.__name__, status, body[:300], got, expected)
    assert min(counts.values()) > 150


# --- Question files ---

ROWS = [
    ["Which stain, at 5 µm, shows iron?", "Congo red", "Prussian, or Berlin, blue", "Giemsa", ""],
    ['What is "target sign"?', "A layered lesion", "A stain", "", ""],
    ["Which organ?\nName it.", "Liver", "Spleen", "Kidney", "Lung"],
    ["Why is it blue?", "", "", "", ""],
]
ASKED = [(" ".join(q.split(" ")), [option for option in options if option]) for q, *options in ROWS]
HEADS = ["{}", "Choice {}", "option_{}", "Options {}", "ANSWER {}", " {} ", "({})", "alternative-{}"]
LIKE_OPTIONS = ["option 1", "Choices", "options", "choice 5", "distractor 2", "1", "Response B"]


def as_csv(header, rows, delimiter=","):
    table = io.StringIO()
    csv.writer(table, delimiter=delimiter).writerows([header, *rows])
    return table.getvalue()


def changed_header(rng):
    """Names of the columns that mean the same, one that stands twice or looks like an option, or none for question."""
    form, way = rng.choice(HEADS), rng.choice(["same", "same", "twice", "like an option", "no question"])
    header = [rng.choice(["question", "Question", " QUESTION"]), *map(form.format, rng.choice(["ABCD", "abcd"])), "id"]
    rows = [[*row, "7"] for row in ROWS]
    if way == "twice":
        header[-1] = rng.choice(header[:-1])
    elif way == "like an option":
        header[rng.choice([2, 3, 5])] = rng.choice(LIKE_OPTIONS)
    elif way == "no question":
        header[0] = rng.choice(["stem", "prompt", "", "questions"])
    order = rng.sample(range(6), 6)
    text = as_csv([header[i] for i in order], [[row[i] for i in order] for row in rows])
    return "csv", text.encode(), ASKED if way == "same" else REFUSED


def changed_cells(rng):
    """A cell too many or too few, another separator or encoding, or a cell with another text."""
    header, rows = ["question", *"ABCD"], copy.deepcopy(ROWS)
    way = rng.choice(["more", "fewer", "delimiter", "encoding", "empty line", "another text", "cut"])
    row, expected = rng.choice(rows), REFUSED
    if way == "more":
        row.insert(rng.randrange(6), "x")
    elif way == "fewer":
        del row[rng.randrange(5)]
        expected = REFUSED if any(row) else ASKED[:-1]  # commas alone are no row
    elif way == "empty line":
        rows.insert(rng.randrange(5), [])
        expected = ASKED
    elif way == "another text":
        row[0] = rng.choice(["", "  ", "x" * 1000, "=1+1", "\u2028?", "Why\r\nnot?", "naïve"])
        expected = [(q.strip(), [o for o in options if o]) for q, *options in rows] if row[0].strip() else REFUSED
    text = as_csv(header, rows, rng.choice(";\t|") if way == "delimiter" else ",")
    expected = ASKED if way == "delimiter" else expected
    if way == "cut":  # inside the quotes of the third question
        text = text[: text.index("organ?") + rng.randrange(12)]
    encodings = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
    encoding = rng.choice(encodings) if way == "encoding" else "utf-8"
    return "csv", text.encode(encoding), ASKED if way == "encoding" else expected


def changed_lines(rng):
    """JSON lines with a field that is missing, renamed, given twice or of another type, or with a broken line."""
    rows = [{"question": q, "choices": options} for q, options in ASKED]
    if rng.random() < 0.5:
        rows = [row | {"choices": dict(zip("ABCD", row["choices"], strict=False))} for row in rows]
    number = rng.randrange(3)  # not the last, which has no options
    way = rng.choice(["same", "same", "renamed", "other type", "twice", "broken", "letters", "number of options"])
    row, expected = rows[number], REFUSED
    if way == "renamed":
        key, other = rng.choice(
            [("choices", "options"), ("choices", "Choice"), ("question", "query"), ("choices", "A")]
        )
        row[other] = row.pop(key)
    elif way == "other type":
        row[rng.choice(["question", "choices"])] = rng.choice([[1], [None, "x"], {"A": {}}, {"x": "y"}, [[]]])
    elif way == "letters":
        row["choices"] = {letter: "x" + letter for letter in rng.choice(["BA", "AC", "abc", "ABCDEFGHIJK", "12"])}
    elif way == "number of options":
        row["choices"] = rng.choice([["x"], list("abcdefghijk"), ["x", "x"], ["x", ""]])
    elif way == "same":
        row[rng.choice(["id", "answer", "note"])] = rng.choice([None, 3, ["x"]])
        expected = ASKED
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows]
    if way == "twice":
        lines[number] = lines[number][:-1] + ', "question": "Why?"}'
    elif way == "broken":
        lines[number] = rng.choice([lines[number][:-3], f"[{lines[number]}]", "null", "7", '"x"', "[" * 5000, "NaN"])
    return "jsonl", rng.choice(["\n", "\r\n", "\n\n"]).join(lines).encode(), expected


def test_changed_files_of_questions_are_read_correctly_or_refused_in_one_line(tmp_path):
    rng, counts = random.Random(17), {"accepted": 0, "refused": 0}  # noqa: S311
    for number in range(600):
        kind = [changed_header, changed_cells, changed_lines][number % 3]
        ending, content, expected = kind(rng)
        file = tmp_path / f"q.{ending}"
        file.write_bytes(content)
        try:
            got = read_questions(file)
        except UserError as error:
            got = REFUSED
            assert str(file) in str(error) and len(" ".join(str(error).split())) < 1000, content
        counts["refused" if got == REFUSED else "accepted"] += 1
        assert got == expected, (kind.__name__, content, got)
    assert min(counts.values()) > 150
