"""Ask a model, in four ways.

    python sft/infer.py --model_path PMC-VQA-SFT-Output/final_model                    # five built-in questions
    python sft/infer.py --model_path ... --question "Which stain shows iron?" --choices "Congo red" "Prussian blue"
    python sft/infer.py --model_path ... --interactive                                 # in the terminal
    python sft/infer.py --model_path ... --web                                         # in the browser
    python sft/infer.py --model_path ... --input questions.csv --output answers.csv    # many at once
    python sft/infer.py --model_path ... --evaluate --num_samples 50                   # calls sft/evaluate.py

The question is put in the form that the model was trained with. With options, the probability of each is printed too.
The answer is the likeliest text, the same every time, unless --temperature samples. --input is a table (CSV,
JSON, Parquet) with the columns question, A, B and so on (or PMC-VQA's own), or question and a list choices; --output
takes the form that its ending names. Not medical advice.
"""

import argparse
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

from sft.common.command import UserError, run
from sft.common.models import check_model_folder, context_length, dtype_on, load_model, load_tokenizer, prompt_format
from sft.common.prompts import ANSWER_FORMATS, DEFAULT_ANSWER_FORMAT
from sft.inference.assistant import DEMO, Answer, Assistant, clean_question, print_probabilities, sampled
from sft.inference.generation import Sampling
from sft.inference.options import add_shared_options
from sft.inference.question_files import check_output, read_questions, write_answers
from sft.inference.web import serve

NOTICE = "A language model wrote this without seeing any figure. It is not medical advice."


def arguments() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="base model, adapter or merged model: folder or Hub id")
    modes = parser.add_argument_group("ways to ask").add_mutually_exclusive_group()
    modes.add_argument("--question", help="one question")
    modes.add_argument("--interactive", action="store_true", help="questions in the terminal; /help tells more")
    modes.add_argument("--web", action="store_true", help="a page in the browser")
    modes.add_argument("--input", type=Path, help="questions in a table: .csv, .tsv, .json, .jsonl, .parquet")
    modes.add_argument("--evaluate", action="store_true", help="measure the accuracy on a prepared data set")
    parser.add_argument("--choices", nargs="+", default=[], help="with --question: two to ten options, A to J")
    parser.add_argument("--json", action="store_true", help="with --question: the answer as JSON")
    parser.add_argument("--encoding", help="with --input: of text that does not show it, such as cp1252")
    parser.add_argument("--output", type=Path, help="with --input: the .csv or .jsonl file to write")
    parser.add_argument("--overwrite", action="store_true", help="with --input and --evaluate: replace what is there")
    parser.add_argument("--dataset_path", default="PMC-VQA-Processed", help="with --evaluate (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=50, help="with --evaluate (default: %(default)s)")
    parser.add_argument("--output_dir", default="outputs/eval", help="with --evaluate (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="with --web: address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="with --web (default: %(default)s)")
    parser.add_argument("--answer_format", choices=ANSWER_FORMATS, help="default: as the model was trained")
    parser.add_argument("--thinking", choices=["show", "hide", "off"], default="hide", help="off: answers at once")
    temperature_help = (
        "above 0 the answer is sampled; DeepSeek advises 0.6 for its R1 models that think, because greedy decoding "
        "makes them repeat themselves (default: 0, greedy; with --evaluate that of sft/evaluate.py)"
    )
    text = add_shared_options(parser, None, temperature_help)
    text.add_argument("--seed", type=int, default=Sampling.seed, help="of what is sampled (default: %(default)s)")
    args = parser.parse_args()
    for option, mode in (("choices", "question"), ("json", "question"), ("output", "input"), ("encoding", "input")):
        if getattr(args, option) and getattr(args, mode) is None:
            raise UserError(f"--{option} goes with --{mode}")
    if args.input and not args.output:
        raise UserError("--input: name the file to write with --output answers.csv, or answers.jsonl")
    if args.output:
        if args.output.resolve() == args.input.resolve():
            raise UserError(f"--output {args.output} is the file of --input: name another file")
        check_output(args.output, args.overwrite)
    if args.evaluate and (args.thinking == "off" or args.answer_format):
        raise UserError("--evaluate uses the model's own format and thinks: leave out --answer_format, --thinking off")
    if not 0 < args.port < 2**16:
        raise UserError(f"--port {args.port}: give a number from 1 to {2**16 - 1}")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: give a positive number")
    if args.web and importlib.util.find_spec("gradio") is None:
        raise UserError("--web needs Gradio: pip install -c constraints.txt -e '.[web]'")
    return args


def main() -> None:
    args = arguments()
    check_model_folder(args.model_path)
    if args.evaluate:
        return evaluate(args)
    thinking = args.thinking != "off"
    sampling = Sampling(args.max_new_tokens, args.temperature or 0, args.top_p, args.seed, thinking)
    questions = read_questions(args.input, args.encoding) if args.input else DEMO
    if args.question is not None:
        questions = [clean_question(args.question, args.choices)]

    import torch
    from tqdm import tqdm  # here, because sft/__init__.py has to set how often it writes into a log

    answer_format = args.answer_format or prompt_format(args.model_path) or DEFAULT_ANSWER_FORMAT
    context = context_length(args.model_path)
    dtype = dtype_on("cuda" if torch.cuda.is_available() else "cpu", args.dtype)
    tokenizer = load_tokenizer(args.model_path, args.chat_template, args.chat_template_kwargs)
    model, _ = load_model(args.model_path, dtype, tokenizer, args.quantization)
    assistant = Assistant(model, tokenizer, answer_format, context)
    print(f"Chat template: {tokenizer.template_source}", file=sys.stderr)
    if args.interactive:
        from sft.inference.terminal import converse

        return converse(assistant, sampling, args.thinking)
    if args.web:
        return serve(assistant, sampling, args.thinking, DEMO, args.host, args.port)
    if args.input:
        answers = assistant.ask_all(questions, sampling, args.batch_size)
        progress = tqdm(answers, total=len(questions), desc="Asking", unit=" questions")
        return write_answers([answer for _, answer in sorted(progress)], args.output)
    for question, choices in questions:
        answer = assistant.ask(question, choices, sampling)
        if args.json:
            print(json.dumps(asdict(answer), ensure_ascii=False, indent=2))
        else:
            show(answer, args.thinking)
    # JSON on stdout stays JSON.
    print(f"\n{NOTICE}", file=sys.stderr if args.json else sys.stdout)


def show(answer: Answer, thinking: str) -> None:
    print(f"\nQ: {answer.question}")
    print_probabilities(answer.choices.values(), answer.probabilities)
    if thinking == "show" and answer.reasoning:
        print(f"Thinking: {answer.reasoning}")
    note = ("" if answer.outcome == "answered" else answer.outcome) + sampled(answer.temperature)
    note = f"   ({note.removeprefix(', ')})" if note else ""
    print(f"A: {answer.text or 'no answer'}{note}", flush=True)


def evaluate(args: argparse.Namespace) -> None:
    """Both scores on a draw of the test split, as `sft/evaluate.py` measures them."""
    from sft.evaluate import main as measure

    of_model = ("model_path", "chat_template", "dtype", "quantization", "batch_size")
    of_run = ("dataset_path", "num_samples", "output_dir", "max_new_tokens", "temperature", "top_p")
    options = {option: getattr(args, option) for option in of_model + of_run}
    options["chat_template_kwargs"] = args.chat_template_kwargs and json.dumps(args.chat_template_kwargs)
    options |= {"generation_seeds": args.seed, "name": f"{Path(args.model_path).resolve().name}-sample"}
    words = [word for option, value in options.items() if value is not None for word in (f"--{option}", str(value))]
    measure([*words, "--method", "likelihood", "generation", *["--overwrite"] * args.overwrite])


if __name__ == "__main__":
    run(main)
