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
from pathlib import Path
from typing import Any

from data_prep.command import UserError, run
from data_prep.prompts import ANSWER_FORMATS, DEFAULT_ANSWER_FORMAT, LETTERS

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


def read_questions(file: Path) -> list[tuple[str, list[str]]]:
    """(question, options) of each row of a CSV or JSON lines file.

    Raises:
        UserError: no such file, another kind of file, a row that is none, or a question that cannot be asked.
    """
    import csv

    from data_prep.questions import clean_choice
    from sft.assistant import check_question

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input {file} cannot be read: {error}") from error
    found = []
    if file.suffix == ".csv":
        for number, cells in enumerate(csv.DictReader(text.splitlines(keepends=True)), start=1):
            row = {(name or "").strip().lower(): (cell or "") for name, cell in cells.items() if name is not None}
            if "question" not in row:
                raise UserError(f"--input {file} has no column question: name its columns question, A, B, C, D")
            options = [clean_choice(row.get(f"choice {x}", row.get(x, "")))[1] for x in LETTERS.lower()]
            while options and not options[-1]:
                options.pop()
            found.append((f"{file}, row {number}: ", row["question"].strip(), options))
    elif file.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                    question, options = row["question"], row.get("choices", [])
                    options = [*options.values()] if isinstance(options, dict) else list(options)
                    texts = [question, *options]
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(f"{file}, line {number}: not JSON with question and choices: {error}") from error
                if not all(isinstance(text, str) for text in texts):
                    raise UserError(f"{file}, line {number}: question and choices have to be texts")
                found.append((f"{file}, line {number}: ", question.strip(), options))
    else:
        raise UserError(f"--input {file}: give a .csv or a .jsonl file")
    if not found:
        raise UserError(f"--input {file} holds no question")
    for where, question, options in found:
        check_question(question, options, where)
    return [(question, options) for _, question, options in found]


def answer_file(assistant: Any, questions: list, output: Path, sampling: Any, batch_size: int) -> None:
    """Answer many questions into a JSON lines file, in their order, whole or not at all."""
    from tqdm import tqdm

    lines = [""] * len(questions)
    for index, answer in tqdm(
        assistant.ask_all(questions, sampling, batch_size), total=len(questions), desc="Asking", unit=" questions"
    ):
        lines[index] = json.dumps(answer.as_json(), ensure_ascii=False) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
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
    parser.add_argument("--overwrite", action="store_true", help="with --input: replace the output file")
    parser.add_argument("--dataset_path", default="PMC-VQA-Processed", help="with --evaluate (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=50, help="with --evaluate (default: %(default)s)")
    parser.add_argument("--output_dir", default="outputs/eval", help="with --evaluate (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="with --web: address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="with --web (default: %(default)s)")
    parser.add_argument("--answer_format", choices=ANSWER_FORMATS, help="default: as the model was trained")
    parser.add_argument("--chat_template", help="Jinja file; a model tuned here brings its own")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto")
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
    for option, mode in (("choices", "question"), ("json", "question"), ("output", "input"), ("overwrite", "input")):
        if getattr(args, option) and getattr(args, mode) is None:
            raise UserError(f"--{option} goes with --{mode}")
    if args.input and not args.output:
        raise UserError("--input: name the file to write with --output answers.jsonl")
    if args.output and args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} exists already: pass --overwrite to replace it, or name another file")
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
    loaded = load_model(args.model_path, args.dtype, args.chat_template, args.quantization)
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
    words += ["--name", f"{Path(args.model_path).name}-sample", "--overwrite", "--method", "likelihood", "generation"]
    words += ["--generation_seeds", args.seed]
    options = ("dtype", "quantization", "batch_size", "max_new_tokens", "temperature", "top_p", "chat_template")
    for option in (*options, "output_dir"):
        if getattr(args, option) is not None:
            words += [f"--{option}", getattr(args, option)]
    measure(list(map(str, words)))


if __name__ == "__main__":
    run(main)
