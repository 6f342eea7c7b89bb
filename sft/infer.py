"""Ask a model, in four ways.

    python sft/infer.py --model_path PMC-VQA-SFT-Output/final_model                    # five built-in questions
    python sft/infer.py --model_path ... --question "Which stain shows iron?" --choices "Congo red" "Prussian blue"
    python sft/infer.py --model_path ... --interactive                                 # in the terminal
    python sft/infer.py --model_path ... --web                                         # in the browser
    python sft/infer.py --model_path ... --input questions.csv --output answers.csv    # many at once
    python sft/infer.py --model_path ... --evaluate --num_samples 50                   # calls sft/evaluate.py

The question is put in the form that the model was trained with. With options, the probability of each is told too.
The answer is the likeliest text, the same every time, unless --temperature samples. --input is a CSV file with the
columns question, A, B, C, D (or PMC-VQA's own), or JSON lines with question and choices; --output takes the form that
its ending names. Not medical advice.
"""

import argparse
import csv
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.common.command import UserError, atomic_write, run
from sft.common.models import DTYPE_HELP, DTYPES, dtype_on
from sft.common.prompts import ANSWER_FORMATS, DEFAULT_ANSWER_FORMAT, LETTERS
from sft.inference.assistant import DEMO
from sft.inference.question_files import read_questions
from sft.training.hardware import this_machine

NOTICE = "A language model wrote this without seeing any figure. It is not medical advice."


def check_output(output: Path, overwrite: bool) -> None:
    """Make the folder of the output file, and refuse at once what could not be written after the work.

    Raises:
        UserError: a name that ends otherwise than .csv or .jsonl, or a file that exists or cannot be written there.
    """
    if output.suffix.lower() not in WRITERS:
        raise UserError(f"--output {output}: name a .csv or a .jsonl file")
    if output.exists() and not (overwrite and output.is_file() and not output.is_symlink()):
        advice = "pass --overwrite to replace it, or " if output.is_file() else ""
        raise UserError(f"--output {output} exists already: {advice}name another file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error


def as_json_lines(answers: Sequence[Any]) -> str:
    """Answers as JSON lines."""
    return "".join(json.dumps(answer.as_json(), ensure_ascii=False) + "\n" for answer in answers)


def as_csv(answers: Sequence[Any]) -> str:
    """Answers as a CSV table, whose columns are the keys of the JSON; A to D are options, p_A to p_D probabilities."""
    columns = ["question", *LETTERS, "answer", "answer_text", "outcome", "text", "reasoning"]
    columns += [*(f"p_{letter}" for letter in LETTERS), "temperature", "tokens", "seconds"]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    for row in (answer.as_json() for answer in answers):
        row |= row.pop("choices")
        row |= {f"p_{letter}": value for letter, value in row.pop("probabilities").items()}
        for key in ("text", "reasoning"):
            # A spreadsheet would take what a model wrote for a formula: a list with dashes for a faulty one.
            row[key] = f"'{row[key]}" if row[key].startswith(("=", "+", "-", "@")) else row[key]
        writer.writerow(row)
    return table.getvalue()


WRITERS = {".csv": as_csv, ".jsonl": as_json_lines}


def answer_file(assistant: Any, questions: list, output: Path, sampling: Any, batch_size: int) -> None:
    """Answer many questions into a CSV or JSON lines file, in their order, whole or not at all.

    Raises:
        UserError: a question that does not fit into the context, or a disk that refuses.
    """
    from tqdm import tqdm

    progress = tqdm(
        assistant.ask_all(questions, sampling, batch_size), total=len(questions), desc="Asking", unit=" questions"
    )
    answers = [answer for _, answer in sorted(progress, key=lambda found: found[0])]
    try:
        with atomic_write(output) as temporary:
            # UTF-8 without a byte order mark, which programs would read as a part of the first column's name; a
            # spreadsheet asks for the encoding when the table is imported.
            temporary.write_text(WRITERS[output.suffix.lower()](answers), encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    print(f"Wrote {len(answers)} answers to {output}")


def show(answer: Any, thinking: str) -> None:
    """Print an answer with its options as bars, and its reasoning if it is wanted."""
    from sft.inference.assistant import sampled

    print(f"\nQ: {answer.question}")
    for letter, choice, probability in zip(LETTERS, answer.choices, answer.probabilities, strict=False):
        print(f"   {letter}. {choice:<40} {probability:6.1%} {'#' * round(20 * probability)}")
    if thinking == "show" and answer.reasoning:
        print(f"Thinking: {answer.reasoning}")
    note = ("" if answer.outcome == "answered" else answer.outcome) + sampled(answer.temperature)
    note = f"   ({note.removeprefix(', ')})" if note else ""
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
    parser.add_argument("--output", type=Path, help="with --input: the .csv or .jsonl file to write")
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
    parser.add_argument("--max_new_tokens", type=int, default=2048)
    parser.add_argument(
        "--temperature",
        type=float,
        help="above 0 the answer is sampled; DeepSeek advises 0.6 for its R1 models that think, because greedy "
        "decoding makes them repeat themselves (default: 0, greedy; with --evaluate that of sft/evaluate.py)",
    )
    parser.add_argument("--top_p", type=float, default=0.95, help="of what is sampled (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="of what is sampled (default: %(default)s)")
    args = parser.parse_args()
    for option, mode in (("choices", "question"), ("json", "question"), ("output", "input")):
        if getattr(args, option) and getattr(args, mode) is None:
            raise UserError(f"--{option} goes with --{mode}")
    if args.input and not args.output:
        raise UserError("--input: name the file to write with --output answers.csv, or answers.jsonl")
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

    from sft.common.models import check_model_folder

    check_model_folder(args.model_path)
    if args.evaluate:
        return evaluate(args)
    from sft.common.models import context_length, load_model, prompt_format
    from sft.inference.assistant import Assistant, as_asked
    from sft.inference.generation import Sampling

    thinking = args.thinking != "off"
    sampling = Sampling(args.max_new_tokens, args.temperature or 0, args.top_p, args.seed, thinking)
    questions = read_questions(args.input) if args.input else DEMO
    if args.question is not None:
        questions = [as_asked(args.question, args.choices)]
    if args.web:
        from sft.inference.web import check_gradio

        check_gradio()
    answer_format = args.answer_format or prompt_format(args.model_path) or DEFAULT_ANSWER_FORMAT
    context = context_length(args.model_path)
    dtype = dtype_on("cuda" if this_machine().count else "cpu", args.dtype)
    loaded = load_model(args.model_path, dtype, args.chat_template, args.quantization)
    assistant = Assistant(*loaded, answer_format, context)
    if args.interactive:
        from sft.inference.terminal import converse

        return converse(assistant, sampling, args.thinking)
    if args.web:
        from sft.inference.web import serve

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
