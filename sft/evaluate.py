"""Measure how often a model picks the right option: two scores, their errors, and what they must be compared with.

    python sft/evaluate.py --model_path PMC-VQA-SFT-Output/final_model --dataset_path PMC-VQA-Processed \\
        --method likelihood generation --baseline outputs/eval/base

Scores: option likelihood (the option whose completion, as training would have written it, is the likeliest) and
generation (the model writes, the text is parsed). Floors stand beside them.

In:  --model_path, a base model, an adapter folder or a merged model (folder or Hub id), or with --backend openai its
     name on a server; --dataset_path, a folder written by data_prep/prepare.py.
Out: OUTPUT_DIR/NAME/ with results.json, predictions.parquet (one row a question), report.html, and answers/, from
     which a stopped evaluation continues when the same command is given again.

`accelerate launch sft/evaluate.py ...` uses several GPUs, `--part 1/4` to `--part 4/4` are several jobs.
docs/evaluation.md explains every number.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sft.common.command import UserError, run, shipped, strip_local_paths
from sft.common.data import draw, load_split
from sft.common.figures import Figures
from sft.common.models import (
    check_model_folder,
    context_length,
    dtype_on,
    load_config,
    load_tokenizer,
    prompt_format,
    quantization_of,
    trained_on_figures,
)
from sft.common.prompts import LETTERS, OPEN
from sft.common.template_choice import OWN
from sft.common.vision import load_vision, sees
from sft.evaluation import comparison
from sft.evaluation.answer_cache import Answers, base_model_of, check_kept, fingerprint_of, model_at, models_of
from sft.evaluation.comparison import PREDICTIONS, RESULTS, Evaluation
from sft.evaluation.gallery import examples_of, write_picture
from sft.evaluation.report import write_report
from sft.evaluation.results import results_of
from sft.evaluation.tables import results_text
from sft.evaluation.tasks import (
    BACKENDS,
    CONDITIONS,
    GENERATION,
    LIKELIHOOD,
    NONE,
    REAL,
    SCORE_OF,
    Task,
    check_questions,
    cut_tasks,
    tasks_of,
    with_cut_reasoning,
)
from sft.inference.generation import Sampling
from sft.inference.options import add_shared_options


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `UserError` for the first option that contradicts another or makes no sense."""
    for option in ("num_samples", "batch_size", "concurrency", "request_timeout"):
        value = getattr(args, option)
        if value is not None and not value > 0:  # so that NaN is refused
            raise UserError(f"--{option} {value}: give a positive number")
    if args.overwrite and args.part[1] > 1:
        raise UserError("--overwrite: each --part would delete what the others have answered: delete the folder first")
    if args.retries < 0:
        raise UserError(f"--retries {args.retries}: give 0 or more")
    if not 1 <= args.permutations <= len(LETTERS):
        raise UserError(f"--permutations {args.permutations}: give 1 (as the questions stand) to {len(LETTERS)}")
    if args.permutations > 1 and LIKELIHOOD not in args.method:
        raise UserError("--permutations goes with --method likelihood")
    if len(set(args.generation_seeds)) < len(args.generation_seeds):
        raise UserError("--generation_seeds: a seed stands twice, and would be counted twice")
    if args.temperature == 0 and len(args.generation_seeds) > 1:
        raise UserError("--generation_seeds: --temperature 0 (greedy) gives every seed the same text: name one")
    if args.thinking_budgets and GENERATION not in args.method:
        raise UserError("--thinking_budgets goes with --method generation")
    if args.thinking_budgets and args.part[1] > 1:
        raise UserError("--thinking_budgets needs the answers of all parts: add it once they are there")
    if any(budget < 1 for budget in args.thinking_budgets):
        raise UserError(f"--thinking_budgets {min(args.thinking_budgets)}: give positive numbers of tokens")
    if args.name and (Path(args.name).name != args.name or args.name in (".", "..") or len(args.name) > 100):
        raise UserError(f"--name {args.name[:100]}: give a plain, short name, and the folder with --output_dir")
    if not args.model_path:
        raise UserError("--model_path is empty: name a model")
    if args.backend == "openai":
        for option in ("chat_template", "quantization", "dtype"):
            if getattr(args, option) not in (None, "none", "auto"):
                raise UserError(f"--{option} goes with a model of your own: the server has loaded its model already")
        if not args.base_url:
            raise UserError("--backend openai: name the server with --base_url, as in http://127.0.0.1:8000/v1")
        if args.thinking_budgets:
            raise UserError("--backend openai: servers have no common way to continue a turn: no --thinking_budgets")
        if LIKELIHOOD in args.method:
            advice = "use --method generation, or score the model itself without --backend"
            raise UserError(f"--backend openai: servers have no common way to score a given text: {advice}")
    elif args.base_url:
        raise UserError("--base_url goes with --backend openai")


def part_of(words: str) -> tuple[int, int]:
    """``K/N`` as (k, n), k counted from 0."""
    part, parts = map(int, words.split("/"))
    if not 1 <= part <= parts:
        raise ValueError
    return part - 1, parts


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="base model, adapter or merged model: folder or Hub id")
    parser.add_argument("--dataset_path", required=True, help="prepared data set: folder or Hub id")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_samples", type=int, help="draw this many questions (seeded) instead of all")
    parser.add_argument("--seed", type=int, default=42, help="of the draw of --num_samples")
    parser.add_argument("--baseline", type=Path, help="folder of another evaluation, to compare question by question")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/eval"))
    parser.add_argument("--name", help="name of the folder in --output_dir (default: the model folder's name)")
    parser.add_argument("--overwrite", action="store_true", help="replace an evaluation of the same name")

    part = "answer the Kth of N parts only (a job each); the one that ends last writes the results"
    parser.add_argument("--part", type=part_of, default=(0, 1), metavar="K/N", help=part)

    scores = parser.add_argument_group("scores")
    scores.add_argument("--method", nargs="+", choices=[*SCORE_OF], help="default: likelihood (openai: generation)")
    scores.add_argument("--permutations", type=int, default=1, help="cyclic orders of the options to average over")
    floor = "the floor of the same model without the question (twice the time of likelihood)"
    scores.add_argument("--choices_only", action=argparse.BooleanOptionalAction, default=True, help=floor)
    figures = (
        "what a model that sees is shown; the first gives the score (default: real, if the questions have figures)"
    )
    scores.add_argument("--figures", nargs="+", choices=CONDITIONS, default=[], help=figures)
    text = add_shared_options(parser, Sampling.temperature, "0 for greedy generation")
    text.add_argument("--generation_seeds", type=int, nargs="+", default=[42], help="one generation pass each")
    budgets = "also the accuracy where thinking is cut off at these tokens, and an answer written behind it"
    text.add_argument("--thinking_budgets", type=int, nargs="+", default=[], metavar="TOKENS", help=budgets)

    server = parser.add_argument_group("a model on a server (vLLM, SGLang, TGI, transformers serve)")
    server.add_argument("--backend", choices=[*BACKENDS], default="local")
    server.add_argument("--base_url", help="where its API begins, as in http://127.0.0.1:8000/v1")
    server.add_argument("--concurrency", type=int, default=8, help="requests under way at once")
    server.add_argument("--retries", type=int, default=5, help="of a failed request, with growing pauses")
    server.add_argument("--request_timeout", type=float, default=600.0, help="seconds that a request may take")
    args = parser.parse_args(argv)
    args.tokenizer = None  # of a model here, which `check_model` loads; a server has its own
    args.method = args.method or [GENERATION if args.backend == "openai" else LIKELIHOOD]
    check_arguments(args)
    return args


def check_model(args: argparse.Namespace, answer_format: str) -> None:
    """Raise `UserError` if a local model was trained with another format, or its template or base model is missing."""
    trained = prompt_format(args.model_path)
    if trained not in (None, answer_format):
        raise UserError(
            f"{args.model_path} was trained to answer with {trained}, the questions of {args.dataset_path} ask for "
            f"{answer_format}: prepare them with {'--no_choices' if trained == OPEN else f'--answer_format {trained}'}"
        )
    args.chat_template = args.chat_template and str(shipped(Path(args.chat_template)))
    if args.chat_template and not Path(args.chat_template).is_file():
        raise UserError(f"chat template {args.chat_template} does not exist: choose one of recipes/templates/*.jinja")
    context_length(args.model_path)  # reads the configuration of an adapter's base
    args.tokenizer = load_tokenizer(args.model_path, args.chat_template, args.chat_template_kwargs)


def check_figures(args: argparse.Namespace, questions: list[dict]) -> None:
    """Give a model that sees its processor and the figures, and `args.figures` its default.

    Raises `UserError` for conditions that model or questions do not have.
    """
    seeing, shown = (
        args.backend == "local" and sees(load_config(args.model_path)),
        any(q.get("images") for q in questions),
    )
    if args.figures and not seeing:
        raise UserError(f"--figures: {args.model_path} reads text alone: leave it out")
    trained = trained_on_figures(args.model_path) if seeing else None
    own = seeing and (trained or prompt_format(args.model_path) is None)  # not one that was trained on text alone
    if not args.figures and own and shown:
        args.figures = [REAL]
    if (trained and not args.figures) or (not shown and set(args.figures) - {NONE}):
        raise UserError(
            f"{args.dataset_path} has no figures: prepare it with --figures, or ask without (--figures {NONE})"
        )
    if not args.figures:
        return
    if len(set(args.figures)) < len(args.figures):
        raise UserError("--figures: a condition stands twice")
    figures = Figures([args.dataset_path])
    if missing := next((name for q in questions for name in q.get("images") or () if name not in figures), None):
        raise UserError(f"figures.zip of {args.dataset_path} lacks {missing}: prepare it again")
    load_vision(args.model_path, args.tokenizer, figures)
    vision = args.tokenizer.vision
    if trained and trained != vision.fingerprint():
        if trained.split()[-1] != vision.fingerprint().split()[-1]:
            raise UserError(
                f"{args.model_path} was trained on figures of other sizes or colours than its processor makes"
            )
        print(
            f"Note: trained on pixels by {trained.split()[0]}, asked with those by {vision.fingerprint().split()[0]}"
        )


def answer_missing(args: argparse.Namespace, tasks: Sequence[Task], answers: Answers, state: Any) -> None:
    """Have the model answer what has no answer yet, each process its share; the main process reads them all."""
    wanted = {(task.name, question["id"]) for task in tasks for question in task.questions}
    missing, is_main = wanted - answers.by_key.keys(), state.is_main_process
    if not missing:
        if is_main:
            print(f"all {len(wanted)} answers found in {answers.folder}", flush=True)
        return
    from tqdm import tqdm  # here, because sft/__init__.py has to set how often it writes into a log

    batches = BACKENDS[args.backend](args, tasks, answers.by_key, state)
    state.wait_for_everyone()  # every process has read what was there
    if is_main:
        passes = f"{len(tasks)} pass{'es' if len(tasks) > 1 else ''} ({'; '.join(task.name for task in tasks)})"
        counts = f"{len(wanted)} answers wanted, {len(wanted) - len(missing)} found in {answers.folder}"
        print(f"{len(tasks[0].questions)} questions, {passes}: {counts}", flush=True)
        answers.begin()
        (answers.folder.parent / RESULTS).unlink(missing_ok=True)  # until it is true again
    state.wait_for_everyone()
    part, parts = args.part
    share = -(-len(missing) // (state.num_processes * parts))
    with tqdm(total=share, desc="Asking", unit=" answers", disable=not is_main) as progress:
        for count in answers.write(f"{part}-{state.process_index}" if parts > 1 else state.process_index, batches):
            progress.update(count)
    state.wait_for_everyone()
    if is_main:
        answers.read()
        if parts == 1 and wanted - answers.by_key.keys():
            advice = "put --output_dir where all machines see it"
            raise UserError(f"answers of other processes are missing in {answers.folder}: {advice}")


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.backend == "local":
        check_model_folder(args.model_path)
    samplings = [Sampling(args.max_new_tokens, args.temperature, args.top_p, seed) for seed in args.generation_seeds]
    baseline = comparison.read_evaluation(args.baseline) if args.baseline else None
    split = load_split(args.dataset_path, args.split)
    questions = draw(split, args.num_samples or len(split), args.seed)
    check_questions(questions, args)
    if args.backend == "local":
        check_model(args, questions[0]["answer_format"])
    check_figures(args, questions)

    import torch
    from accelerate import PartialState

    # The timeout lets a process wait for another one that has longer answers to write.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))
    args.dtype = dtype_on(state.device.type, args.dtype)
    if args.backend == "local":
        args.quantization = quantization_of(args.model_path, args.quantization)
    folder = args.output_dir / (args.name or Path(args.model_path).resolve().name)
    models = models_of(args.model_path) if args.backend == "local" else model_at(args.base_url, args.model_path)
    fingerprint = fingerprint_of(args, questions, state.device.type, models)
    if state.is_main_process and args.backend == "local":
        print(f"Chat template: {args.tokenizer.template_source}", flush=True)
    dataset = strip_local_paths(args.dataset_path)
    template = strip_local_paths(args.tokenizer.template_source if args.tokenizer else OWN)
    owners = {"model": models, "questions": f"split {args.split} of {dataset}", "chat_template": template}
    if baseline:
        comparison.common_scores(folder.name, fingerprint["questions"], [SCORE_OF[m] for m in args.method], baseline)
    answers = Answers(folder / "answers", fingerprint, owners, args.overwrite)
    tasks = tasks_of(args, questions, samplings)
    cuts = cut_tasks(tasks, sorted(set(args.thinking_budgets)))
    check_kept(folder, [*tasks, *cuts], args.overwrite)
    answer_missing(args, tasks, answers, state)
    if cuts:
        answers.read()  # each process needs those of the others
        tasks += with_cut_reasoning(args.tokenizer, cuts, tasks, answers.by_key)
        answer_missing(args, tasks, answers, state)
    if not state.is_main_process:
        return
    if missing := sum((task.name, q["id"]) not in answers.by_key for task in tasks for q in task.questions):
        part, parts = args.part
        print(f"Part {part + 1} of {parts} is answered; {missing} answers of other parts are not there yet")
        return

    scores, columns = results_of(questions, tasks, answers.by_key, args.figures)
    results = {
        "name": folder.name,
        "model": strip_local_paths(args.model_path),
        "commit": models[0]["commit"],
        "base_model": base_model_of(args.model_path, models) if args.backend == "local" else None,
        "dataset": dataset,
        "split": args.split,
        "files": dict(sorted(Counter(question["source"] for question in questions if question.get("source")).items())),
        "n": len(questions),
        "questions_in_split": len(split),
        "answer_format": questions[0]["answer_format"],
        **scores,
        "tasks": [task.name for task in tasks],
        "fingerprint": fingerprint,
        "fingerprint_of": owners,
    }
    if baseline:
        results["paired"] = comparison.paired_comparison(Evaluation(results, columns), baseline)
    written = [PREDICTIONS, "report.html"]
    examples = []
    if args.figures and "log_likelihoods" in columns:
        examples = examples_of(questions, columns, args.figures, args.tokenizer.vision.figures)
    if examples:
        write_picture(examples, folder / "figures.png")
        written.insert(1, "figures.png")
    write_report(results, columns, questions, examples, folder / "report.html")
    comparison.write_evaluation(Evaluation(results, columns), folder)
    print(results_text(results))
    print(f"Wrote {folder / RESULTS}, {', '.join(written[:-1])} and {written[-1]}")


if __name__ == "__main__":
    run(main)
