"""The passes of an evaluation over its questions, and who answers them: a model here, or a server."""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sft.common.chat_template import (
    check_generation_stops,
    common_prefix,
    render,
    split_completions,
    split_thinking,
    token_ids,
)
from sft.common.command import UserError
from sft.common.models import check_vocabulary, context_length, load_model
from sft.common.prompts import LETTERS, MIN_OPTIONS, OPEN, can_be_shuffled, completion_messages, prompt_messages
from sft.common.vision import conversation_of, in_parts, vision_of, with_other_figures
from sft.inference.generation import Prompts, Sampling, batch_seed, check_context, generate
from sft.inference.likelihood import batch_log_likelihoods, longest_first, option_tokens
from sft.inference.server import Server

LIKELIHOOD, GENERATION = "likelihood", "generation"
# The names of --method, and of the scores in results.json.
SCORE_OF = {LIKELIHOOD: "option_likelihood", GENERATION: "generation"}
CHOICES_ONLY = "choices only"
# Begins the name of a pass over cyclic permutations of the options; the number of places follows.
SHIFTED = "shifted by"


# What a model that sees is shown: a question's own figures, those of another article, grey ones, or none.
REAL, SHUFFLED, BLANK, NONE = CONDITIONS = ("real", "shuffled", "blank", "none")
# Tokens of an answer behind reasoning that was cut off: more than any option's text has.
ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Task:
    """One pass over questions: option likelihood, or with `sampling` generation.

    With a `budget`, in tokens, the questions have the `reasoning` that the pass `of` wrote, cut off there. With a
    `condition`, it is the pass `of` under another one of `CONDITIONS`.
    """

    name: str
    questions: list[dict]
    sampling: Sampling | None = None
    budget: int | None = None
    of: str | None = None
    condition: str | None = None


def shown_under(condition: str, questions: list[dict]) -> list[dict]:
    """The questions with the figures of one of `CONDITIONS`."""
    if condition == SHUFFLED:
        return with_other_figures(questions)
    changes = {REAL: {}, BLANK: {"blank": True}, NONE: {"images": []}}
    return [q | changes[condition] for q in questions]


def tasks_of(args: argparse.Namespace, questions: list[dict], samplings: Sequence[Sampling]) -> list[Task]:
    """The passes that the scores of --method need, each under every condition of --figures, where there are any."""
    tasks, asked, (condition, *others) = [], questions, args.figures or [REAL]
    questions = shown_under(condition, questions)
    if LIKELIHOOD in args.method:
        tasks.append(Task(LIKELIHOOD, questions))
        if args.choices_only and questions[0]["answer_format"] != OPEN:
            tasks.append(Task(CHOICES_ONLY, [q | {"question": ""} for q in questions]))
        free = [q for q in questions if can_be_shuffled(q["question"], q["choices"])]
        for shift in range(1, min(args.permutations, max(len(q["choices"]) for q in questions))):
            longer = [q for q in free if len(q["choices"]) > shift]  # others would come back to an order they had
            permuted = [q | {"choices": q["choices"][shift:] + q["choices"][:shift]} for q in longer]
            tasks.append(Task(f"{SHIFTED} {shift}", permuted))
    if GENERATION in args.method:
        for sampling in samplings:
            options = ", ".join(f"{key}={value}" for key, value in asdict(sampling).items() if key != "thinking")
            tasks.append(Task(f"generation {options}", questions, sampling))
    compared = [task for task in tasks if task.questions is questions]
    for other in others:
        shown = shown_under(other, asked)
        tasks += [
            replace(t, name=f"{t.name}, figures {other}", questions=shown, of=t.name, condition=other)
            for t in compared
        ]
    return tasks


def cut_tasks(tasks: Sequence[Task], budgets: Sequence[int]) -> list[Task]:
    """The passes, still without questions, that answer behind reasoning cut off at each budget (arXiv 2501.19393)."""
    return [
        Task(
            name=f"{task.name}, thinking cut at {budget}",
            questions=[],
            sampling=replace(task.sampling, max_new_tokens=ANSWER_TOKENS),
            budget=budget,
            of=task.name,
        )
        for task in tasks
        if task.sampling and not task.condition
        for budget in budgets
    ]


def with_cut_reasoning(tokenizer: Any, cuts: list[Task], tasks: Sequence[Task], answers: dict) -> list[Task]:
    """The passes of `cut_tasks` with the questions whose reasoning is longer than the budget, or never ended."""
    by_name = {task.name: task for task in tasks}
    filled = []
    for cut in cuts:
        questions = []
        for q in by_name[cut.of].questions:
            answer = answers[cut.of, q["id"]]
            reasoning = split_thinking(answer["text"])[0]
            ids = tokenizer(reasoning, add_special_tokens=False)["input_ids"]
            unfinished = answer["hit_limit"] and "</think>" not in answer["text"]
            if reasoning and (len(ids) > cut.budget or unfinished):
                questions.append(q | {"reasoning": tokenizer.decode(ids[: cut.budget])})
        filled.append(replace(cut, questions=questions))
    return filled


def answered_locally(args: argparse.Namespace, tasks: list[Task], answered: dict, state: Any) -> Iterator[tuple]:
    """Yield (task name, {id: answer}) a batch, for this process's share of the batches that are not answered yet.

    Of all batches, `args.part` = (k, n) takes every nth from the kth on, answered or not, so that parts that begin at
    different times share none. Batches depend neither on the number of processes nor on what is answered already, and
    neither do the answers.
    A question that is too long is refused by the call, before the model loads.
    """
    tokenizer = args.tokenizer
    if any(task.sampling for task in tasks):
        check_generation_stops(tokenizer)
    context = context_length(args.model_path)
    work, batches = [], itertools.count()
    part, parts = args.part
    for task in tasks:
        if task.sampling:
            tokens = generation_prompts(tokenizer, task)
            lengths = [(length_of(prompt), task.sampling.max_new_tokens) for prompt in tokens]
            read = [prompt for prompt in tokens if isinstance(prompt, list)]
        else:
            tokens = option_tokens(tokenizer, task.questions)
            lengths = [(t["length"], max(map(len, t["options"])) - 1) for t in tokens]
            read = [ids for t in tokens for ids in (t["shared"], *t["options"])]
        check_vocabulary(args.model_path, tokenizer, max(map(max, read), default=0))
        for question, (prompt, new) in zip(task.questions, lengths, strict=True):
            check_context(context, prompt, new, f"question {question['id']}")
        for number, batch in enumerate(longest_first([prompt for prompt, _ in lengths], args.batch_size)):
            ids = [task.questions[i]["id"] for i in batch]
            if next(batches) % parts == part and not all((task.name, id) in answered for id in ids):
                work.append((number, task, ids, [tokens[i] for i in batch]))

    def answers() -> Iterator[tuple]:
        model, _ = load_model(args.model_path, args.dtype, tokenizer, args.quantization, state.device)
        for number, task, ids, tokens in work[state.process_index :: state.num_processes]:
            if task.sampling:
                sampling = replace(task.sampling, seed=batch_seed(task.sampling.seed, number))
                batch = [turn._asdict() for turn in generate(model, tokenizer, tokens, sampling)]
            else:
                batch = [{"log_likelihoods": scores} for scores in batch_log_likelihoods(model, tokenizer, tokens)]
            yield task.name, dict(zip(ids, batch, strict=True))

    return answers()


def generation_prompts(tokenizer: Any, task: Task) -> Prompts:
    """The prompts of a pass, as `generate` takes them; behind cut reasoning they end as training ends it."""
    conversations = [conversation_of(tokenizer, q) for q in task.questions]
    prompts, behind = token_ids(tokenizer, conversations, add_generation_prompt=True), [[]] * len(conversations)
    if task.budget is not None:
        repeated = [conversation for conversation in conversations for _ in "AB"]
        turns = [completion_messages(letter, q["reasoning"]) for q in task.questions for letter in "AB"]
        rows = split_completions(tokenizer, repeated, [in_parts(tokenizer, turn) for turn in turns])
        # What two answers have in common ends where an answer begins.
        behind = [
            common_prefix([row["completion_ids"], other["completion_ids"]])
            for row, other in zip(rows[::2], rows[1::2], strict=True)
        ]
    whole = [prompt + rest for prompt, rest in zip(prompts, behind, strict=True)]
    if not (vision := vision_of(tokenizer)):
        return whole
    texts = render(tokenizer, conversations, add_generation_prompt=True)
    texts = [text + tokenizer.decode(rest) for text, rest in zip(texts, behind, strict=True)]
    return [vision.prompt(q, *of) for q, *of in zip(task.questions, texts, map(len, whole), strict=True)]


def length_of(prompt: list[int] | dict) -> int:
    """Tokens of a prompt of `generation_prompts`."""
    return prompt["length"] if isinstance(prompt, dict) else len(prompt)


def answered_by_server(args: argparse.Namespace, tasks: list[Task], answered: dict, state: Any) -> Iterator[tuple]:
    """Yield (task name, {id: answer}) a question, for this process's share; the call refuses a silent server."""
    limits = (args.concurrency, args.retries, args.request_timeout)
    server = Server(args.base_url, args.model_path, *limits, args.chat_template_kwargs)
    part, parts = args.part

    def answers() -> Iterator[tuple]:
        for task in tasks:
            mine = list(enumerate(task.questions))[part::parts]
            missing = [(i, q) for i, q in mine if (task.name, q["id"]) not in answered]
            share = missing[state.process_index :: state.num_processes]
            conversations = [prompt_messages(q["question"], q["choices"], q["answer_format"]) for _, q in share]
            samplings = [replace(task.sampling, seed=batch_seed(task.sampling.seed, number)) for number, _ in share]
            for place, turn in server.ask_all(conversations, samplings):
                yield task.name, {share[place][1]["id"]: turn}

    return answers()


BACKENDS = {"local": answered_locally, "openai": answered_by_server}


def check_questions(questions: list[dict], args: argparse.Namespace) -> None:
    """Raise `UserError` if an id stands twice, a gold option does not exist, or hidden options are to be permuted."""
    [(id, times)] = Counter(question["id"] for question in questions).most_common(1)
    if times > 1:
        raise UserError(f"{args.dataset_path}: the id {id} stands {times} times in {args.split}: prepare it again")
    for q in questions:
        if not MIN_OPTIONS <= len(q["choices"]) <= len(LETTERS) or not 0 <= q["gold"] < len(q["choices"]):
            raise UserError(
                f"{args.dataset_path}: question {q['id']} has {len(q['choices'])} options, and number {q['gold']} is "
                "said to be right: prepare it again"
            )
    if args.permutations > 1 and questions[0]["answer_format"] == OPEN:
        raise UserError("--permutations: these questions were prepared without showing their options")
