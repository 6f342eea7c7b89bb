"""Ask a model, in four ways.

    python sft/infer.py --model_path PMC-VQA-SFT-Output/final_model                    # five built-in questions
    python sft/infer.py --model_path ... --question "Which stain shows iron?" --choices "Congo red" "Prussian blue"
    python sft/infer.py --model_path ... --interactive                                 # in the terminal
    python sft/infer.py --model_path ... --web                                         # in the browser
    python sft/infer.py --model_path ... --input questions.csv --output answers.jsonl  # many at once
    python sft/infer.py --model_path ... --evaluate --num_samples 50                   # calls sft/evaluate.py

The question is put in the form that the model was trained with. With options, the probability of each is told too.
--input is a CSV file with the columns question, A, B, C, D (or PMC-VQA's own), or JSON lines with question and
choices. Not medical advice.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.command import UserError, run
from data_prep.prompts import ANSWER_FORMATS, DEFAULT_ANSWER_FORMAT, LETTERS, prompt_messages
from sft.hardware import DTYPE_HELP, DTYPES, dtype_on, this_machine

DEMO = [
    ("Which imaging technique uses sound waves?", ["Ultrasound", "Computed tomography", "Scintigraphy", "X-ray"]),
    ("Which stain is used to show iron in tissue?", ["Congo red", "Prussian blue", "Oil Red O", "Giemsa"]),
    ("What does a crescent of blood along the brain surface on CT suggest?",
     ["Subdural hematoma", "Epidural hematoma", "Ischemic stroke", "Hydrocephalus"]),
    ("Which part of the eye becomes cloudy in cataract?", ["Cornea", "Retina", "Lens", "Iris"]),
    ("Which instrument sends electrons through an ultrathin section?",
     ["Confocal microscope", "Transmission electron microscope", "Stereo microscope", "Dark-field microscope"]),
]  # fmt: skip
NOTICE = "A language model wrote this without seeing any figure. It is not medical advice."


def demo_prompts(tokenizer: Any, answer_format: str | None) -> list[list[int]]:
    """Token ids of the demonstration's questions, asked in a model's form or, where it tells none, the usual one."""
    from sft.chat import token_ids

    asked = answer_format or DEFAULT_ANSWER_FORMAT
    return token_ids(tokenizer, [prompt_messages(*question, asked) for question in DEMO], add_generation_prompt=True)


def csv_rows(file: Path, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, question, options) of the rows of a CSV file."""
    import csv
    import io

    from data_prep.questions import clean_choice

    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower().removeprefix("choice ") for name in next(reader, [])]
        known = [name for name in header if name in ("question", *LETTERS.lower())]
        if "question" not in known or len(set(known)) < len(known) or "e" in header:
            raise UserError(f"--input {file} needs the columns question, A, B, C, D, each once; found {header}")
        for number, cells in enumerate(filter(None, reader), start=1):
            if len(cells) > len(header):
                raise UserError(f"{file}, row {number}: more cells than columns: put texts with commas in quotes")
            row = dict(zip(header, cells, strict=False))
            options = [clean_choice(row.get(letter, ""))[1] for letter in LETTERS.lower()]
            while options and not options[-1]:
                options.pop()
            yield f"{file}, row {number}: ", row["question"].strip(), options
    except csv.Error as error:
        raise UserError(f"--input {file} is not sound CSV: {error}, at line {reader.line_num}") from error


def json_rows(file: Path, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (where, question, options) of the lines of a JSON lines file."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                question, options = row["question"], row.get("choices", [])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{file}, line {number}: not JSON with question and choices: {error}") from error
            if isinstance(options, dict):
                if list(options) != list(LETTERS[: len(options)]):
                    raise UserError(f"{file}, line {number}: name the choices A, B, C, D, in this order")
                options = [*options.values()]
            if not isinstance(options, list) or not all(isinstance(text, str) for text in (question, *options)):
                raise UserError(f"{file}, line {number}: question has to be a text, and choices a list of texts")
            try:
                "".join((question, *options)).encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(f"{file}, line {number}: not text: {error}") from error
            yield f"{file}, line {number}: ", question.strip(), options


def read_questions(file: Path) -> list[tuple[str, list[str]]]:
    """(question, options) of each row of a CSV or JSON lines file.

    Raises:
        UserError: no such file, another kind of file, a row that is none, or a question that cannot be asked.
    """
    from sft.assistant import check_question

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input {file} cannot be read: {error}") from error
    kinds = {".csv": csv_rows, ".jsonl": json_rows}
    if file.suffix.lower() not in kinds:
        raise UserError(f"--input {file}: give a .csv or a .jsonl file")
    found = list(kinds[file.suffix.lower()](file, text))
    if not found:
        raise UserError(f"--input {file} holds no question")
    for where, question, options in found:
        check_question(question, options, where)
    return [(question, options) for _, question, options in found]


def check_output(output: Path, overwrite: bool) -> None:
    """Make the folder of the output file, and refuse at once what could not be written after the work.

    Raises:
        UserError: the file exists, is no plain file, or cannot be written there.
    """
    if output.exists() and not (overwrite and output.is_file() and not output.is_symlink()):
        advice = "pass --overwrite to replace it, or " if output.is_file() else ""
        raise UserError(f"--output {output} exists already: {advice}name another file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error


def answer_file(assistant: Any, questions: list, output: Path, sampling: Any, batch_size: int) -> None:
    """Answer many questions into a JSON lines file, in their order, whole or not at all."""
    from tqdm import tqdm

    lines = [""] * len(questions)
    for index, answer in tqdm(
        assistant.ask_all(questions, sampling, batch_size), total=len(questions), desc="Asking", unit=" questions"
    ):
        lines[index] = json.dumps(answer.as_json(), ensure_ascii=False) + "\n"
    temporary = output.with_name(f".{output.name}.tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.rename(output)
    print(f"Wrote {len(lines)} answers to {output}")


def show(answer: Any, thinking: str) -> None:
    """Print an answer with its options as bars, and its reasoning if it is wanted."""
    print(f"\nQ: {answer.question}")
    for letter, choice, probability in zip(LETTERS, answer.choices, answer.probabilities, strict=False):
        print(f"   {letter}. {choice:<40} {probability:6.1%} {'#' * round(20 * probability)}")
    if thinking == "show" and answer.reasoning:
        print(f"Thinking: {answer.reasoning}")
    note = "" if answer.outcome == "answered" else f"   ({answer.outcome})"
    print(f"A: {answer.text or 'no answer'}{note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="base model, adapter or merged model: folder or Hub id")
    modes = parser.add_argument_group("ways to ask").add_mutually_exclusive_group()
    modes.add_argument("--question", help="one question")
    modes.add_argument("--interactive", action="store_true", help="questions in the terminal; /help tells more")
    modes.add_argument("--web", action="store_true", help="a page in the browser")
    modes.add_argument("--input", type=Path, help="questions in a .csv or .jsonl file")
    modes.add_argument("--evaluate", action="store_true", help="measure the accuracy on a prepared data set")
    parser.add_argument("--choices", nargs="+", default=[], help="with --question: two to four options, A to D")
    parser.add_argument("--json", action="store_true", help="with --question: the answer as JSON")
    parser.add_argument("--output", type=Path, help="with --input: the .jsonl file to write")
    parser.add_argument("--overwrite", action="store_true", help="with --input and --evaluate: replace what is there")
    parser.add_argument("--dataset_path", default="PMC-VQA-Processed", help="with --evaluate (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=50, help="with --evaluate (default: %(default)s)")
    parser.add_argument("--output_dir", default="outputs/eval", help="with --evaluate (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="with --web: address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="with --web (default: %(default)s)")
    parser.add_argument("--answer_format", choices=ANSWER_FORMATS, help="default: as the model was trained")
    parser.add_argument("--chat_template", help="Jinja file; a model tuned here brings its own")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help=DTYPE_HELP)
    parser.add_argument("--quantization", choices=["none", "8bit", "4bit"], default="none", help="with bitsandbytes")
    parser.add_argument("--batch_size", type=int, default=16, help="with --input and --evaluate")
    parser.add_argument(
        "--thinking", choices=["show", "hide", "off"], default="hide", help="off: the model answers at once"
    )
    # DeepSeek's advice for its R1 models.
    parser.add_argument("--max_new_tokens", type=int, default=2048)
    parser.add_argument("--temperature", type=float, default=0.6, help="0 for the most likely answer")
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    for option, mode in (("choices", "question"), ("json", "question"), ("output", "input")):
        if getattr(args, option) and getattr(args, mode) is None:
            raise UserError(f"--{option} goes with --{mode}")
    if args.input and not args.output:
        raise UserError("--input: name the file to write with --output answers.jsonl")
    if args.output:
        check_output(args.output, args.overwrite)
    if args.evaluate and (args.thinking == "off" or args.answer_format):
        raise UserError(
            "--evaluate asks as the model was trained, and lets it think: leave out --answer_format and off"
        )
    if not 0 < args.port < 2**16:
        raise UserError(f"--port {args.port}: give a number from 1 to {2**16 - 1}")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: give a positive number")

    from sft.models import check_model_folder

    check_model_folder(args.model_path)
    if args.evaluate:
        return evaluate(args)
    from sft.assistant import Assistant, check_question
    from sft.generation import Sampling
    from sft.models import context_length, load_model, prompt_format

    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed, thinking=args.thinking != "off")
    questions = read_questions(args.input) if args.input else DEMO
    if args.question is not None:
        check_question(args.question, args.choices)
        questions = [(args.question, args.choices)]
    if args.web:
        from sft.web import check_gradio

        check_gradio()
    answer_format = args.answer_format or prompt_format(args.model_path) or DEFAULT_ANSWER_FORMAT
    context = context_length(args.model_path)
    dtype = dtype_on("cuda" if this_machine().count else "cpu", args.dtype)
    loaded = load_model(args.model_path, dtype, args.chat_template, args.quantization)
    assistant = Assistant(*loaded, answer_format, context)
    if args.interactive:
        from sft.interactive import converse

        return converse(assistant, sampling, args.thinking)
    if args.web:
        from sft.web import serve

        return serve(assistant, sampling, args.thinking, DEMO, args.host, args.port)
    if args.input:
        return answer_file(assistant, questions, args.output, sampling, args.batch_size)
    for question, choices in questions:
        answer = assistant.ask(question, choices, sampling)
        if args.json:
            print(json.dumps(answer.as_json(), ensure_ascii=False, indent=2))
        else:
            show(answer, args.thinking)
    # JSON on stdout stays JSON.
    print(f"\n{NOTICE}", file=sys.stderr if args.json else sys.stdout)


def evaluate(args: argparse.Namespace) -> None:
    """Both scores on a draw of the test split, as `sft/evaluate.py` measures them."""
    from sft.evaluate import main as measure

    words = ["--model_path", args.model_path, "--dataset_path", args.dataset_path, "--num_samples", args.num_samples]
    words += ["--name", f"{Path(args.model_path).resolve().name}-sample", "--method", "likelihood", "generation"]
    words += ["--overwrite"] if args.overwrite else []
    words += ["--generation_seeds", args.seed]
    options = ("dtype", "quantization", "batch_size", "max_new_tokens", "temperature", "top_p", "chat_template")
    for option in (*options, "output_dir"):
        if getattr(args, option) is not None:
            words += [f"--{option}", getattr(args, option)]
    measure(list(map(str, words)))


if __name__ == "__main__":
    run(main)
