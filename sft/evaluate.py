"""Measure how often a model picks the right option: two scores, their errors, and what they must be compared with.

    python sft/evaluate.py --model_path PMC-VQA-SFT-Output/final_model --dataset_path PMC-VQA-Processed \\
        --method likelihood generation --baseline outputs/eval/base

Scores: option likelihood (the option whose completion, as training would have written it, is the likeliest) and
generation (the model writes, the text is parsed). Floors stand beside them.

In:  --model_path, a base model, an adapter folder or a merged model (folder or Hub id), or with --backend openai its
     name on a server; --dataset_path, a folder written by data_prep/prepare.py.
Out: OUTPUT_DIR/NAME/ with results.json, predictions.parquet (one row a question), report.html, and answers/, from
     which a stopped evaluation continues when the same command is given again.

`accelerate launch sft/evaluate.py ...` spreads the questions over several GPUs. docs/evaluation.md explains every
number.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sft.common.command import UserError, run, without_paths, write_json
from sft.common.models import DTYPE_HELP, DTYPES, dtype_on
from sft.common.prompts import LETTERS, OPEN, PROMPT_VERSION, can_be_shuffled, prompt_messages
from sft.compare import (
    PREDICTIONS,
    RESULTS,
    SCHEMA_VERSION,
    Evaluation,
    check_comparable,
    compare,
    read_evaluation,
)

LIKELIHOOD, GENERATION = "likelihood", "generation"
# The names of --method, and of the scores in results.json.
SCORE_OF = {LIKELIHOOD: "option_likelihood", GENERATION: "generation"}
CHOICES_ONLY = "choices only"


@dataclass(frozen=True)
class Task:
    """One pass over questions: option likelihood, or with `sampling` generation."""

    name: str
    questions: list[dict]
    sampling: Any = None


def tasks_of(args: argparse.Namespace, questions: list[dict], samplings: Sequence[Any]) -> list[Task]:
    """What has to be asked for the scores that are wanted."""
    tasks = []
    if LIKELIHOOD in args.method:
        tasks.append(Task(LIKELIHOOD, questions))
        if args.choices_only and questions[0]["answer_format"] != OPEN:
            tasks.append(Task(CHOICES_ONLY, [q | {"question": ""} for q in questions]))
        movable = [q for q in questions if can_be_shuffled(q["question"], q["choices"])]
        for shift in range(1, args.permutations):
            turned = [q | {"choices": q["choices"][shift:] + q["choices"][:shift]} for q in movable]
            tasks.append(Task(f"shifted by {shift}", turned))
    if GENERATION in args.method:
        for sampling in samplings:
            how = ", ".join(f"{key}={value}" for key, value in asdict(sampling).items() if key != "thinking")
            tasks.append(Task(f"generation {how}", questions, sampling))
    return tasks


def answered_locally(args: argparse.Namespace, tasks: list[Task], found: dict, state: Any) -> Iterator[tuple]:
    """Yield (task name, {id: answer}) a batch, for this process's share of the batches that are not answered yet.

    Batches are the same however many processes there are and whatever was answered before, and so are the answers.
    What can be refused is refused by the call, before the model loads.
    """
    from sft.common.chat_template import token_ids
    from sft.common.models import context_length, load_model, load_tokenizer
    from sft.generation import batch_seed, check_context, generate
    from sft.scoring import batch_log_likelihoods, longest_first, option_tokens

    tokenizer = load_tokenizer(args.model_path, args.chat_template)
    context = context_length(args.model_path)
    work = []
    for task in tasks:
        if task.sampling:
            conversations = [prompt_messages(q["question"], q["choices"], q["answer_format"]) for q in task.questions]
            tokens = token_ids(tokenizer, conversations, add_generation_prompt=True)
            lengths = [(len(ids), task.sampling.max_new_tokens) for ids in tokens]
        else:
            tokens = option_tokens(tokenizer, task.questions)
            lengths = [(len(t["shared"]), max(map(len, t["options"])) - 1) for t in tokens]
        for question, (prompt, new) in zip(task.questions, lengths, strict=True):
            check_context(context, prompt, new, f"question {question['id']}")
        for number, batch in enumerate(longest_first([prompt for prompt, _ in lengths], args.batch_size)):
            if not all((task.name, task.questions[i]["id"]) in found for i in batch):
                work.append((number, task, batch, [tokens[i] for i in batch]))

    def answers() -> Iterator[tuple]:
        model, tokenizer = load_model(args.model_path, args.dtype, args.chat_template, args.quantization, state.device)
        for number, task, batch, tokens in work[state.process_index :: state.num_processes]:
            if task.sampling:
                drawn = replace(task.sampling, seed=batch_seed(task.sampling.seed, number))
                found = [answer._asdict() for answer in generate(model, tokenizer, tokens, drawn)]
            else:
                found = [{"log_likelihoods": scores} for scores in batch_log_likelihoods(model, tokenizer, tokens)]
            yield task.name, {task.questions[i]["id"]: answer for i, answer in zip(batch, found, strict=True)}

    return answers()


def answered_by_server(args: argparse.Namespace, tasks: list[Task], found: dict, state: Any) -> Iterator[tuple]:
    """Yield (task name, {id: answer}) a question, for this process's share of the questions.

    A server that does not answer is refused by the call.
    """
    from sft.generation import batch_seed
    from sft.server import Server

    server = Server(args.base_url, args.model_path, args.concurrency, args.retries, args.request_timeout)

    def answers() -> Iterator[tuple]:
        for task in tasks:
            todo = [(i, q) for i, q in enumerate(task.questions) if (task.name, q["id"]) not in found]
            todo = todo[state.process_index :: state.num_processes]
            conversations = [prompt_messages(q["question"], q["choices"], q["answer_format"]) for _, q in todo]
            samplings = [replace(task.sampling, seed=batch_seed(task.sampling.seed, i)) for i, _ in todo]
            for place, answer in server.ask_all(conversations, samplings):
                yield task.name, {todo[place][1]["id"]: answer._asdict()}

    return answers()


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other or make no sense.

    Raises:
        UserError: the first of them.
    """
    for option in ("num_samples", "batch_size", "concurrency", "request_timeout"):
        value = getattr(args, option)
        if value is not None and not value > 0:  # so that NaN is refused
            raise UserError(f"--{option} {value}: give a positive number")
    if args.retries < 0:
        raise UserError(f"--retries {args.retries}: give 0 or more")
    if not 1 <= args.permutations <= len(LETTERS):
        raise UserError(f"--permutations {args.permutations}: give 1 (as the questions stand) to {len(LETTERS)}")
    if args.permutations > 1 and LIKELIHOOD not in args.method:
        raise UserError("--permutations goes with --method likelihood")
    if len(set(args.generation_seeds)) < len(args.generation_seeds):
        raise UserError("--generation_seeds: a seed stands twice, and would be counted twice")
    if args.temperature == 0 and len(args.generation_seeds) > 1:
        raise UserError(
            "--generation_seeds: greedy generation (--temperature 0) gives every seed the same text: name one"
        )
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
        if LIKELIHOOD in args.method:
            raise UserError(
                "--backend openai: servers do not tell the log-likelihood of a given text alike: use --method "
                "generation, or score the model itself without --backend"
            )
    elif args.base_url:
        raise UserError("--base_url goes with --backend openai")


def check_questions(questions: list[dict], args: argparse.Namespace) -> None:
    """Refuse rows that cannot be scored.

    Raises:
        UserError: an id that stands twice, a gold option that is none, or options to turn that are not shown.
    """
    ids = Counter(question["id"] for question in questions)
    id, times = ids.most_common(1)[0]
    if times > 1:
        raise UserError(f"{args.dataset_path}: the id {id} stands {times} times in {args.split}: prepare it again")
    for q in questions:
        if not 2 <= len(q["choices"]) <= len(LETTERS) or not 0 <= q["gold"] < len(q["choices"]):
            raise UserError(
                f"{args.dataset_path}: question {q['id']} has {len(q['choices'])} options, and number {q['gold']} is "
                "said to be right: prepare it again"
            )
    if args.permutations > 1 and questions[0]["answer_format"] == OPEN:
        raise UserError("--permutations: these questions were prepared without showing their options")


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

    scores = parser.add_argument_group("scores")
    scores.add_argument("--method", nargs="+", choices=[*SCORE_OF], help="default: likelihood (openai: generation)")
    scores.add_argument(
        "--permutations", type=int, default=1, help="average likelihood over so many cyclic orders of the options"
    )
    scores.add_argument(
        "--choices_only",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the floor of the same model without the question (twice the time of likelihood)",
    )
    # DeepSeek's advice for its R1 models.
    scores.add_argument("--max_new_tokens", type=int, default=2048, help="token budget of an answer")
    scores.add_argument("--temperature", type=float, default=0.6, help="0 for greedy generation")
    scores.add_argument("--top_p", type=float, default=0.95)
    scores.add_argument("--generation_seeds", type=int, nargs="+", default=[42], help="one generation pass each")

    local = parser.add_argument_group("a model of your own")
    local.add_argument("--chat_template", help="Jinja file; a model tuned here brings its own, a base model needs one")
    local.add_argument("--dtype", choices=DTYPES, default="auto", help=DTYPE_HELP)
    local.add_argument("--quantization", choices=["none", "8bit", "4bit"], default="none", help="with bitsandbytes")
    local.add_argument("--batch_size", type=int, default=16, help="questions a forward pass")

    server = parser.add_argument_group("a model on a server (vLLM, SGLang, TGI, transformers serve)")
    server.add_argument("--backend", choices=["local", "openai"], default="local")
    server.add_argument("--base_url", help="where its API begins, as in http://127.0.0.1:8000/v1")
    server.add_argument("--concurrency", type=int, default=8, help="requests under way at once")
    server.add_argument("--retries", type=int, default=5, help="of a failed request, with growing pauses")
    server.add_argument("--request_timeout", type=float, default=600.0, help="seconds that a request may take")
    args = parser.parse_args(argv)
    args.method = args.method or [GENERATION if args.backend == "openai" else LIKELIHOOD]
    check_arguments(args)
    return args


def check_kept(folder: Path, tasks: list[Task], overwrite: bool) -> None:
    """Refuse to replace a finished evaluation by one that asks for less.

    Raises:
        UserError: what it has and would lose, or that it is none.
    """
    file = folder / RESULTS
    if overwrite or not file.exists():
        return
    try:
        lost = set(json.loads(file.read_text(encoding="utf-8"))["tasks"]) - {task.name for task in tasks}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not an evaluation's: pass --overwrite, or choose another --name") from error
    if lost:
        raise UserError(
            f"{folder} holds also {'; '.join(sorted(lost))}: ask for it too, pass --overwrite, or choose another "
            "--name"
        )


def fingerprint_of(args: argparse.Namespace, questions: list[dict], device: str) -> dict[str, Any]:
    """Everything that decides the answers to `questions`; equal fingerprints, equal answers."""
    import hashlib
    import importlib.metadata

    from datasets import Dataset

    from sft.answers import model_fingerprint
    from sft.common.command import sha256
    from sft.common.data import data_fingerprint

    columns = ["id", "question", "choices", "gold", "answer_format"]
    if args.backend == "local":
        model, options = model_fingerprint(args.model_path), ("backend", "dtype", "quantization", "batch_size")
    else:  # the address is told by its hash: it may be nobody's business
        where = hashlib.sha256(args.base_url.encode()).hexdigest()[:16]
        model, options = [f"{without_paths(args.model_path)} at server {where}"], ("backend",)
    return {
        "model": model,
        "questions": data_fingerprint(Dataset.from_list(questions), columns),
        "prompt_version": PROMPT_VERSION,
        "chat_template": sha256(Path(args.chat_template)) if args.chat_template else None,
        "options": {key: getattr(args, key) for key in options},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "device": device,
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)

    # What can be refused is refused before the model loads.
    from sft.answers import Answers
    from sft.common.data import draw, load_split
    from sft.common.models import check_model_folder, prompt_format
    from sft.generation import Sampling

    local_model = args.backend == "local"
    if local_model:
        check_model_folder(args.model_path)
    samplings = [Sampling(args.max_new_tokens, args.temperature, args.top_p, seed) for seed in args.generation_seeds]
    baseline = read_evaluation(args.baseline) if args.baseline else None
    split = load_split(args.dataset_path, args.split)
    questions = draw(split, args.num_samples or len(split), args.seed)
    check_questions(questions, args)
    asked, trained = questions[0]["answer_format"], prompt_format(args.model_path) if local_model else None
    if trained not in (None, asked):
        raise UserError(
            f"{args.model_path} was trained to answer with {trained}, the questions of {args.dataset_path} ask for "
            f"{asked}: prepare them with {'--no_choices' if trained == OPEN else f'--answer_format {trained}'}"
        )

    if args.chat_template and not Path(args.chat_template).is_file():
        raise UserError(f"chat template {args.chat_template} does not exist: choose one of recipes/templates/*.jinja")
    folder = args.output_dir / (args.name or Path(args.model_path).resolve().name)

    import torch
    from accelerate import PartialState
    from tqdm import tqdm

    from sft.common.models import context_length

    if local_model:
        context_length(args.model_path)  # an adapter's base is found, or it is said which one is missing
    # Nobody gives up on a process that has longer answers to write.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))
    args.dtype = dtype_on(state.device.type, args.dtype)
    fingerprint = fingerprint_of(args, questions, state.device.type)
    if baseline:
        check_comparable(folder.name, fingerprint["questions"], [SCORE_OF[m] for m in args.method], baseline)
    answers = Answers(folder / "answers", fingerprint, args.overwrite)
    tasks = tasks_of(args, questions, samplings)
    check_kept(folder, tasks, args.overwrite)
    wanted = [(task.name, question["id"]) for task in tasks for question in task.questions]
    missing = sum(key not in answers.found for key in wanted)
    if not missing and state.is_main_process:
        print(f"all {len(wanted)} answers found in {answers.folder}", flush=True)
    if missing:
        ask = answered_locally if local_model else answered_by_server
        batches = ask(args, tasks, answers.found, state)
        state.wait_for_everyone()  # every process has read what was there
        if state.is_main_process:
            passes = f"{len(tasks)} pass{'es' if len(tasks) > 1 else ''} ({'; '.join(task.name for task in tasks)})"
            found = f"{len(wanted)} answers wanted, {len(wanted) - missing} found in {answers.folder}"
            print(f"{len(questions)} questions, {passes}: {found}", flush=True)
            answers.begin()
            (folder / RESULTS).unlink(missing_ok=True)  # until it is true again
        state.wait_for_everyone()
        writer = answers.writer(state.process_index)
        share = -(-missing // state.num_processes)
        with tqdm(total=share, desc="Asking", unit=" answers", disable=not state.is_main_process) as progress:
            for name, batch in batches:
                writer.add(name, batch)
                progress.update(len(batch))
        state.wait_for_everyone()
    if not state.is_main_process:
        return

    from sft.report import write_report
    from sft.results import results_of, table, write_predictions

    answers.read()
    if any(key not in answers.found for key in wanted):
        raise UserError(
            f"answers of other processes are missing in {answers.folder}: put --output_dir where all machines see it"
        )
    found, columns = results_of(questions, tasks, answers.found)
    results = {
        "schema_version": SCHEMA_VERSION,
        "name": folder.name,
        "model": without_paths(args.model_path),
        "dataset": without_paths(args.dataset_path),
        "split": args.split,
        "files": dict(sorted(Counter(question["source"] for question in questions if question.get("source")).items())),
        "n": len(questions),
        "questions_in_split": len(split),
        "answer_format": asked,
        **found,
        "tasks": [task.name for task in tasks],
        "fingerprint": fingerprint,
    }
    if baseline:
        rows = zip(*columns.values(), strict=True)
        by_id = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
        results["paired"] = compare(Evaluation(results, by_id), baseline)
    write_predictions(columns, folder / PREDICTIONS)
    write_report(results, columns, questions, folder / "report.html")
    write_json(folder / RESULTS, results)
    print(table(results))
    print(f"Wrote {folder / RESULTS}, {PREDICTIONS} and report.html")


if __name__ == "__main__":
    run(main)
