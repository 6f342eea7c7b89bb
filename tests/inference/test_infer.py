"""Asking a model from the command line."""

import csv
import io
import json
import re
import signal
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.common.chat_template import closed_think_ids, open_think_prefix, split_thinking, token_ids
from sft.common.models import load_model
from sft.inference.assistant import Answer, Assistant, clean_question
from sft.inference.generation import Sampling, generate
from sft.inference.likelihood import option_log_likelihoods, option_tokens, softmax
from sft.inference.question_files import as_csv, read_questions
from sft.inference.web import page

SHORT = ("--max_new_tokens", "8", "--thinking", "off")
CHOICES = ("Congo red", "Prussian blue", "Giemsa")
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ASKED = ("--question", "Which stain shows iron?", "--choices", *CHOICES)


@pytest.fixture(scope="module")
def assistant(tiny_deepseek):
    """The tiny model, loaded once; in float32, so that rounding decides nothing and no CPU is slow."""
    return Assistant(*load_model(str(tiny_deepseek), "float32"), "letter_text", 2048)


@pytest.fixture
def infer(here, tiny_deepseek, assistant, monkeypatch):
    """Run the command, which must succeed, with the tiny model, which is loaded already."""
    monkeypatch.setattr("sft.common.models.load_model", lambda *_: (assistant.model, assistant.tokenizer))

    def run(*words):
        done = here("sft/infer.py", "--model_path", tiny_deepseek, *words)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def infer_refused(refused, tiny_deepseek):
    return lambda *words: refused("sft/infer.py", "--model_path", tiny_deepseek, *words)


def test_one_question_with_options_gets_an_answer_and_probabilities(here, tiny_deepseek):
    done = here("sft/infer.py", "--model_path", tiny_deepseek, *ASKED, *SHORT)
    assert done.returncode == 0, done.stderr
    probabilities = [float(p) for p in re.findall(r"([\d.]+)%", done.stdout)]
    assert len(probabilities) == 3
    assert sum(probabilities) == pytest.approx(100, abs=0.2)
    assert re.search(r"^A: \S", done.stdout, re.MULTILINE)
    assert "not medical advice" in done.stdout


def test_an_open_question_needs_no_options(infer):
    done = infer("--question", "What is an X-ray?", *SHORT)
    assert re.search(r"^A: \S", done.stdout, re.MULTILINE)
    assert "%" not in done.stdout


def test_without_a_question_the_five_built_in_ones_are_asked(infer):
    done = infer("--max_new_tokens", "2")
    assert done.stdout.count("Q: ") == 5
    assert "sampled" not in done.stdout


def test_the_answer_is_greedy_and_the_same_unless_a_temperature_samples(infer):
    def answer(*words):
        fields = json.loads(infer(*ASKED, *SHORT, "--json", *words).stdout)
        return fields["text"], fields["temperature"]

    greedy, sampled = answer(), answer("--temperature", 1.5, "--seed", 1)
    assert greedy == answer("--seed", 1) == answer("--temperature", 0)
    assert sampled == answer("--temperature", 1.5, "--seed", 1) != answer("--temperature", 1.5, "--seed", 2)
    assert (greedy[1], sampled[1]) == (0, 1.5)


@pytest.mark.parametrize("words", [("--question", "Why?"), ()])
def test_a_sampled_answer_is_marked(infer, words):
    done = infer(*words, *SHORT, "--temperature", "0.7")
    answers = re.findall(r"^A: (?:.|\n)*?sampled at temperature 0\.7\)$", done.stdout, re.MULTILINE)
    assert len(answers) == (1 if words else 5), done.stdout  # one question, or the demonstration


def test_json_holds_the_answer_its_probabilities_and_what_it_cost(infer):
    done = infer(*ASKED, *SHORT, "--json")
    answer = json.loads(done.stdout)
    assert answer["choices"] == dict(zip("ABC", CHOICES, strict=True))
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["outcome"] in ("answered", "unparsed", "truncated")
    if answer["answer"]:
        assert answer["answer_text"] == answer["choices"][answer["answer"]]
    assert 0 < answer["tokens"] <= 8
    assert answer["seconds"] > 0
    assert answer["reasoning"] == ""
    assert "not medical advice" in done.stderr


def test_probabilities_are_those_that_evaluation_ranks_by(here, tiny_deepseek, assistant):
    words = (*ASKED, *SHORT, "--json", "--dtype", "float32")
    answer = json.loads(here("sft/infer.py", "--model_path", tiny_deepseek, *words).stdout)
    row = {"question": ASKED[1], "choices": CHOICES, "answer_format": "letter_text"}
    ((_, scores),) = option_log_likelihoods(assistant.model, assistant.tokenizer, [row], 1)
    assert list(answer["probabilities"].values()) == pytest.approx(softmax(scores), abs=1e-5)


# --- Letters typed in front of options ---


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        (["A. Congo red", "B) Prussian blue", "(C) Giemsa", "D: Oil Red O"], [*CHOICES, "Oil Red O"]),
        (["a) Congo red", " b.Prussian  blue "], [*CHOICES[:2]]),
        ([" A:Congo red ", " B:Prussian blue '"], [*CHOICES[:2]]),  # as PMC-VQA has them
        (["[A] Congo red", "[b] Prussian blue"], [*CHOICES[:2]]),
        (["A - Congo red", "B – Prussian blue"], [*CHOICES[:2]]),
        (["Option A: Congo red", "choice b) Prussian blue"], [*CHOICES[:2]]),
        (["A-V block", "B-cell lymphoma"], ["A-V block", "B-cell lymphoma"]),
        (["A. fumigatus", "Candida", "Mucor"], ["A. fumigatus", "Candida", "Mucor"]),
        (["A. fumigatus", "C. albicans"], ["A. fumigatus", "C. albicans"]),
        (["B: x", "A: y"], ["B: x", "A: y"]),
        (["Hepatitis A", "Hepatitis B"], ["Hepatitis A", "Hepatitis B"]),
        (["Vitamin A.", "Vitamin B."], ["Vitamin A.", "Vitamin B."]),
        ([], []),
    ],
)
def test_letters_go_where_every_option_carries_its_own(typed, asked):
    assert clean_question(" Which? ", typed) == ("Which?", asked)


LETTERED = ("A. Congo red", "B) Prussian blue", "(C) Giemsa")


def test_letters_go_in_every_way_to_ask(infer, monkeypatch, tmp_path):
    answer = json.loads(infer(*ASKED[:3], *LETTERED, *SHORT, "--json").stdout)
    assert tuple(answer["choices"].values()) == CHOICES
    (tmp_path / "q.csv").write_text(f"question,A,B,C\nWhich?,{','.join(LETTERED)}\n")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Which?", "choices": LETTERED}))
    for file in ("q.csv", "q.jsonl"):
        assert read_questions(tmp_path / file) == [("Which?", [*CHOICES])]
    output = talk(infer, monkeypatch, ["Which?", *LETTERED, "", "/quit"])
    assert re.findall(r"   [A-D]\. (.*?)  ", output) == [*CHOICES]


def test_the_page_takes_letters_away_and_marks_a_sampled_answer(assistant):
    def ask(temperature, *texts):
        blocks = page(assistant, Sampling(8, temperature, thinking=False), "hide", [])
        _, bars, _, _, notes = next(e.fn for e in blocks.fns.values() if e.fn.__name__ == "ask")(*texts)
        return bars, notes

    bars, notes = ask(0, "Which?", *LETTERED, None)
    assert list(bars["value"]) == ["A. Congo red", "B. Prussian blue", "C. Giemsa"]
    assert "sampled" not in notes
    assert ask(0.7, "Which?", "", "", "", "")[1].endswith("sampled at temperature 0.7")


def test_thinking_can_be_left_out(assistant):
    """Off, the model is asked behind a closed think block, as it was trained without reasoning."""
    model, tokenizer = assistant.model, assistant.tokenizer
    assert open_think_prefix(tokenizer) == "<think>\n"
    row = {"question": "Which?", "choices": ["a", "b"], "answer_format": "letter"}
    (tokens,) = option_tokens(tokenizer, [row])
    closing = closed_think_ids(tokenizer)
    assert tokens["shared"][-len(closing) :] == closing
    prompt = tokens["shared"][: -len(closing)]
    on, off = (
        generate(model, tokenizer, [prompt], Sampling(max_new_tokens=4, temperature=0, thinking=thinking))[0].text
        for thinking in (True, False)
    )
    assert on.startswith("<think>\n")
    assert off.startswith("<think>\n</think>\n\n")
    assert split_thinking(on)[1] == ""  # it never stopped to think
    assert split_thinking(off)[0] == ""


def test_batched_generation_is_generation_one_by_one(assistant):
    """Padding stands on the left and changes no text."""
    model, tokenizer = assistant.model, assistant.tokenizer
    asked = ["Why?", "Which of these stains is used to show iron in tissue of the liver?", "What is it here?"]
    prompts = token_ids(tokenizer, [[{"role": "user", "content": text}] for text in asked], True)
    greedy = Sampling(max_new_tokens=10, temperature=0)
    together = generate(model, tokenizer, prompts, greedy)
    assert together == [generate(model, tokenizer, [prompt], greedy)[0] for prompt in prompts]
    assert len({generated.text for generated in together}) == 3


# --- Many questions ---


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("csv", "question,A,B,C,D\nWhich?,Congo red,Prussian blue,,\nWhy?,,,,\n"),
        ("csv", "id,question,option_a,option_b\n1,Which?,Congo red,Prussian blue\n2,Why?,,\n"),
        ("csv", "question,Options A,answer B\nWhich?,Congo red,Prussian blue\n\nWhy?,,\n"),
        ("csv", "question,opa,opb,opc,opd\nWhich?,Congo red,Prussian blue,,\nWhy?,,,,\n"),
        ("csv", "Figure_path,Question,Choice A,Choice B\nx,Which?, A:Congo red, B:Prussian blue\nx,Why?,,\n"),
        (
            "jsonl",
            '{"question":"Which?","choices":["Congo red","Prussian blue"],"n":"\u2028"}\n\n{"question":"Why?"}\n',
        ),
        ("jsonl", '{"question":"Which?","choices":{"A":"Congo red","B":"Prussian blue"}}\n{"question":"Why?"}'),
    ],
)
def test_many_questions_from_a_file(infer, tmp_path, kind, text):
    questions = tmp_path / f"questions.{kind}"
    questions.write_text(text)
    out = tmp_path / "answers.jsonl"
    infer("--input", questions, "--output", out, "--max_new_tokens", 4)
    first, second = map(json.loads, out.read_text().splitlines())
    assert first["question"] == "Which?"
    assert first["choices"] == {"A": "Congo red", "B": "Prussian blue"}
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert second["choices"] == second["probabilities"] == {}


def test_columns_that_are_not_read_are_listed(infer, tmp_path):
    (tmp_path / "q.csv").write_text("id,question,A,B,Antwort\n1,Which?,x,y,z\n")
    done = infer("--input", tmp_path / "q.csv", "--output", tmp_path / "a.csv", *SHORT)
    assert "columns read: question, A, B; ignored: id, Antwort" in done.stdout


ROW = {"question": "Wörter?", "A": "x", "B": "y"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.csv", "sep=;\nquestion;Choice A;Choice B\nWörter?;x;y\n".encode("cp1252")),
        ("q.tsv", "question\tOption_A\tOption_B\nWörter?\tx\ty\n".encode("utf-16")),
        ("q.json", json.dumps([ROW], indent=1).encode()),
        ("q.json", json.dumps({"first": ROW, "second": ROW}).encode()),
        ("q.jsonl", json.dumps({"question": "Wörter?", "choices": ["x", "y"]}).encode()),
        ("q.parquet", [ROW | {"C": None}]),
        ("q.parquet", [{"question": "Wörter?", "choices": ["x", "y"]}]),
    ],
)
def test_questions_are_read_from_every_kind_of_table(tmp_path, name, content):
    if isinstance(content, list):
        pq.write_table(pa.Table.from_pylist(content), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    assert set(map(repr, read_questions(tmp_path / name))) == {repr(("Wörter?", ["x", "y"]))}


def test_a_table_has_as_many_columns_of_options_as_its_answers():
    many = {letter: letter.lower() for letter in "ABCDEF"}
    answers = [Answer("Q?", many, "F", "f", "answered", "F. f", "", dict.fromkeys(many, 0.1), 0, 1, 0.1)]
    (row,) = csv.DictReader(io.StringIO(as_csv(answers), newline=""))
    assert [row[letter] for letter in "ABCDEF"] == [*"abcdef"]
    assert list(row)[:9] == ["question", *"ABCDEF", "answer", "answer_text"]
    assert row["p_F"] == "0.1"


def test_answers_as_a_table_hold_what_json_lines_hold(infer, tmp_path):
    (tmp_path / "q.csv").write_text(
        'question,A,B\n"Which stain, on µm scale?",Congo red,"Prussian, or Berlin, blue"\nWhy?,,\n'
    )
    for ending in ("csv", "jsonl"):
        words = ("--input", tmp_path / "q.csv", "--output", tmp_path / f"a.{ending}", *SHORT, "--temperature", "0.6")
        infer(*words)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "question A B C D answer answer_text outcome text reasoning p_A p_B p_C p_D temperature tokens seconds"
    assert list(rows[0]) == columns.split()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, line in zip(rows, lines, strict=True):
        for letter in "ABCD":
            assert row[letter] == line["choices"].get(letter, "")
            assert row[f"p_{letter}"] == str(line["probabilities"].get(letter, ""))
        for key in ("question", "outcome", "reasoning", "temperature", "tokens"):
            assert row[key] == str(line[key])
        assert row["text"] in (line["text"], f"'{line['text']}")
        assert row["answer"] == (line["answer"] or "")
    # What was asked can be asked again.
    words = ("--input", tmp_path / "a.csv", "--output", tmp_path / "again.csv", *SHORT)
    infer(*words)
    assert {file.name for file in tmp_path.iterdir()} == {"q.csv", "a.csv", "a.jsonl", "again.csv"}


def test_questions_of_two_and_ten_options_are_answered_in_one_table(infer, tmp_path):
    questions = [{"question": "Which stain?", "choices": CHOICES[:2]}, {"question": "How many?", "choices": NUMBERS}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    infer("--input", tmp_path / "q.jsonl", "--output", tmp_path / "a.csv", *SHORT)
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        two, ten = csv.DictReader(file)
    assert [ten[letter] for letter in "ABCDEFGHIJ"] == NUMBERS
    assert two["C"] == two["p_C"] == two["J"] == ""
    for row in (two, ten):
        assert sum(float(row[f"p_{letter}"] or 0) for letter in "ABCDEFGHIJ") == pytest.approx(1, abs=1e-5)
        assert row["answer"] in ("", *"ABCDEFGHIJ")


def test_letters_typed_before_ten_options_are_taken_away(infer):
    typed = [f"({letter}) {text}" for letter, text in zip("abcdefghij", NUMBERS, strict=True)]
    answer = json.loads(infer("--question", "How many?", "--choices", *typed, "--json", *SHORT).stdout)
    assert answer["choices"] == dict(zip("ABCDEFGHIJ", NUMBERS, strict=True))
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_what_a_model_writes_is_no_formula_of_a_spreadsheet():
    texts = ["=1+1", "- one\n- two", "+", "@x", "B. 5 - 3"]
    answers = [Answer("Q?", {}, None, None, "answered", text, text, {}, 0, 1, 0.1) for text in texts]
    rows = list(csv.DictReader(io.StringIO(as_csv(answers), newline="")))
    assert [row["text"] for row in rows] == [row["reasoning"] for row in rows]
    assert [row["text"] for row in rows] == ["'=1+1", "'- one\n- two", "'+", "'@x", "B. 5 - 3"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("q.csv", "ask,A\nWhy?,x\n", "needs the columns question, A, B, C, ..."),
        ("q.csv", "question,A,A,B\nWhy?,x,y,z\n", "has A more than once"),
        ("q.csv", "question,A,option_a,B\nWhy?,x,y,z\n", "each once"),
        ("q.csv", "question,A,question\nWhy?,x,y\n", "has question more than once"),
        ("q.csv", "question,option 1,option 2\nWhy?,x,y\n", "has 'option 1', which looks like an option"),
        ("q.csv", "question,A,B,K\nWhy?,x,y,z\n", "has 'k', which looks like an option"),
        ("q.csv", "question,A,B,option 10\nWhy?,x,y,z\n", "has 'option 10', which looks like an option"),
        ("q.csv", "question,A,B,choices\nWhy?,x,y,z\n", "has options in choices and in columns of their own"),
        ("q.csv", "question,choices\nWhy?,x|y\n", "choices a list of texts"),
        ("q.csv", "question,A,B\nWhy?,x,y\nŻółw?,x,y\n".encode("cp1250"), "row 2: row is not UTF-8 text"),
        ("q.csv", "question,A,B\nWhy?,x,y\nWhy?,x\n", "row 2: row has too few cells"),
        ("q.csv", "", "found nothing"),
        ("q.csv", "question,A,B\nWhy, oh why?,x,y\n", "row 1: row has too many cells"),
        ("q.csv", 'question,A,B\n"Why?,x,y\nWhat?,x,y\n', "the file ends inside a quoted cell"),
        ("q.csv", b"PK\x03\x04", "an Excel workbook"),
        ("q.parquet", "question", "not a complete Parquet file"),
        ("q.csv", "question,A,B\nWhy?,one,\n", "row 1: give two to ten options"),
        ("q.csv", "question,A,B\nWhy?,x,y\n,x,y\n", "row 2: the question is empty"),
        ("q.csv", "A,B,question\nx,y\n", "row 1: row has too few cells"),
        ("q.csv", "question,A,B\n", "holds no question"),
        ("q.jsonl", "{\n", "is not JSON"),
        ("q.jsonl", "7\n", "line 1 is not a JSON object"),
        ("q.jsonl", '{"question": "Q?"}\n{"question": "\\ud800"}\n', "row 2: row is not UTF-8 text"),
        ("q.jsonl", '{"question": "Q?"}\n{"question": \n', "row 2: line is not JSON"),
        ("q.jsonl", '{"question": "Q?", "options": ["a", "b"]}\n', "'options', which looks like an option"),
        ("q.jsonl", '{"question": "Q?"}\n{"query": "Q?"}\n', "row 2 needs the columns question"),
        ("q.jsonl", '{"question": "Q?", "question": "Why?"}\n', "a key stands twice"),
        ("q.jsonl", '{"question": ["Q?"], "id": 1}\n', "question has to be a text"),
        ("q.jsonl", '{"question": "Q?", "choices": "ab"}\n', "choices a list of texts"),
        ("q.jsonl", '{"question": "Q?", "choices": {"B": "x", "A": "y"}}\n', "A, B, C, ..., in this order"),
        (
            "q.jsonl",
            '{"question": "Q?", "choices": ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"]}\n',
            "row 1: give two to ten",
        ),
        ("q.txt", "Why?", "give a file that ends with one of .csv, .tsv, .json"),
    ],
)
def test_a_file_with_a_bad_row_is_refused_before_the_model_loads(infer_refused, tmp_path, name, text, reason):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert reason in infer_refused("--input", tmp_path / name, "--output", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_evaluate_calls_the_evaluator_with_its_own_temperature(infer, tiny_deepseek, prepared, tmp_path):
    words = ("--evaluate", "--num_samples", 5, "--dataset_path", prepared, "--max_new_tokens", 4)
    done = infer(*words, "--output_dir", tmp_path)
    assert "option likelihood" in done.stdout
    results = json.loads((tmp_path / f"{tiny_deepseek.name}-sample/results.json").read_text())
    assert results["n"] == 5
    assert results["scores"]["generation"]["sampling"]["temperature"] == 0.6


@pytest.mark.parametrize("temperature", ["0", "0.3"])
def test_evaluate_takes_a_temperature_that_is_given(infer, monkeypatch, temperature):
    options = []
    monkeypatch.setattr("sft.evaluate.main", options.extend)
    infer("--evaluate", "--temperature", temperature)
    assert float(options[options.index("--temperature") + 1]) == float(temperature)


# --- In the terminal ---


def talk(infer, monkeypatch, lines):
    """The output of the command when these lines are typed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return infer("--interactive", "--max_new_tokens", 6).stdout


def test_an_interactive_session_goes_on_after_bad_input_and_leaves_at_end_of_file(infer, monkeypatch):
    lines = ["/help", "/nonsense", "Which?", "only one", "", "Which stain shows iron?", *CHOICES[:2], "", "Why?"]
    output = talk(infer, monkeypatch, lines)
    assert "/thinking MODE" in output
    assert "/nonsense is no command" in output
    assert "give two to ten options, or none; found 1" in output
    assert len(re.findall(r"%", output)) == 2
    assert output.count(" tokens, ") == 2  # the question, and one more about it
    assert "sampled" not in output
    assert output.rstrip().endswith("Goodbye.")


def converse_with(assistant, monkeypatch, capsys, lines, thinking="hide", temperature=0.0):
    """The output of a session with a loaded model when these lines are typed."""
    from sft.inference.terminal import converse

    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    capsys.readouterr()
    converse(assistant, Sampling(6, temperature, thinking=thinking != "off"), thinking)
    return capsys.readouterr().out


def test_a_follow_up_continues_the_conversation(assistant, monkeypatch, capsys):
    conversations, reply = [], assistant.reply

    def recorded(messages, *words):
        conversations.append([turn["role"] for turn in messages])
        return reply(messages, *words)

    monkeypatch.setattr(assistant, "reply", recorded)
    converse_with(assistant, monkeypatch, capsys, ["Which?", "", "Why?", "", "What?", "", "/quit"])
    assert conversations == [["user"], ["user", "assistant", "user"], ["user"]]


def test_thinking_is_shown_or_hidden(assistant, monkeypatch, capsys):
    shown, hidden, off = (
        converse_with(assistant, monkeypatch, capsys, ["Which?", "", "", "/quit"], mode)
        for mode in ("show", "hide", "off")
    )
    assert "Thinking ..." in shown
    assert "Thinking ..." in hidden
    assert "Thinking" not in off
    assert len(shown) > len(hidden)


def test_a_session_marks_a_sampled_answer(assistant, monkeypatch, capsys):
    output = converse_with(assistant, monkeypatch, capsys, ["Which?", "", "", "/quit"], temperature=0.7)
    assert ", sampled at temperature 0.7" in output


def test_ctrl_c_at_the_prompt_leaves_cleanly(infer, monkeypatch):
    class AtThePrompt(io.StringIO):
        def readline(self, *_):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "stdin", AtThePrompt())
    done = infer("--interactive")
    assert done.stdout.split("question> ")[1].strip() == "Goodbye."
    assert "Traceback" not in done.stderr


# --- What is refused ---


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--question", " "], "the question is empty"),
        (["--question", "Q?", "--choices", "a"], "two to ten"),
        (["--question", "Q?", "--choices", *"abcdefghijk"], "two to ten"),
        (["--question", "Q?", "--choices", "a", ""], "empty"),
        (["--question", "Q?", "--choices", "a", "a"], "twice"),
        (["--question", "Q?", "--choices", "A. x", "B. x"], "stands twice"),
        (["--choices", "a", "b"], "goes with --question"),
        (["--json"], "goes with --question"),
        (["--input", "q.csv"], "name the file to write"),
        (["--input", "q.csv", "--output", "LICENSE"], "--output LICENSE: name a .csv or a .jsonl file"),
        (["--input", "q.csv", "--output", "answers.xlsx"], "name a .csv or a .jsonl file"),
        (["--temperature", "-1", "--question", "Q?"], "give 0 (greedy)"),
        (["--top_p", "0", "--question", "Q?"], "give a share above 0"),
        (["--seed", "-1", "--question", "Q?"], "give a number from 0"),
        (["--web", "--port", "99999"], "give a number from 1"),
        (["--evaluate", "--thinking", "off"], "uses the model's own format"),
        (["--model_path", "recipes"], "is no model"),
    ],
)
def test_bad_questions_are_refused_in_one_line(infer_refused, words, reason):
    assert reason in infer_refused(*words)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(infer_refused, tmp_path):
    (tmp_path / "q.csv").write_text("question\nWhy?\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.jsonl").symlink_to("/dev/null")
    for output in ("folder.csv", "q.csv/answers.jsonl", "link.jsonl"):
        words = ("--input", tmp_path / "q.csv", "--output", tmp_path / output, "--overwrite")
        assert f"--output {tmp_path / output}" in infer_refused(*words)


def test_answers_that_are_there_stay_unless_they_are_to_be_replaced(infer_refused, infer, tmp_path):
    (tmp_path / "q.csv").write_text("question\nWhy?\n")
    (tmp_path / "a.csv").write_text("mine")
    words = ("--input", tmp_path / "q.csv", "--output", tmp_path / "a.csv", *SHORT)
    assert "exists already: pass --overwrite" in infer_refused(*words)
    assert (tmp_path / "a.csv").read_text() == "mine"
    infer(*words, "--overwrite")
    assert (tmp_path / "a.csv").read_text().startswith("question,A,B,C,D,")


def test_answers_never_replace_their_questions(infer_refused, tmp_path):
    (tmp_path / "q.csv").write_text("question\nWhy?\n")
    (tmp_path / "folder").mkdir()
    words = ("--input", tmp_path / "q.csv", "--output", tmp_path / "folder/../q.csv", "--overwrite")
    assert "is the file of --input: name another file" in infer_refused(*words)
    assert (tmp_path / "q.csv").read_text() == "question\nWhy?\n"


def test_equal_questions_are_not_drawn_alike(infer, tmp_path):
    (tmp_path / "q.csv").write_text("question\n" + "Why?\n" * 4)
    words = ("--input", tmp_path / "q.csv", "--output", tmp_path / "a.jsonl", "--batch_size", 2, "--thinking", "off")
    infer(*words, "--temperature", 1, "--max_new_tokens", 6)
    assert len({json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()}) == 4


def test_a_prompt_longer_than_the_context_is_refused(infer_refused):
    line = infer_refused("--question", "Why? " * 2000)
    assert re.search(r"has \d+ tokens, 2048 more may follow, and the model reads 2048: shorten it", line)
