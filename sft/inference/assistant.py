"""A loaded model that answers questions: what every mode of sft/infer.py and the web page share."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sft.common.chat_template import check_generation_stops, split_thinking, token_ids
from sft.common.command import UserError
from sft.common.prompts import (
    DEFAULT_ANSWER_FORMAT,
    LETTERS,
    MIN_OPTIONS,
    clean_text,
    prompt_messages,
    typed_choice,
)
from sft.inference.generation import Generated, Sampling, batch_seed, check_context, generate
from sft.inference.likelihood import batch_log_likelihoods, longest_first, option_tokens, softmax
from sft.inference.parsing import parse_answer

Question = tuple[str, list[str]]  # and its options
# Questions about the quickstart's facts, each with the four answers of its group. Training rows word them otherwise.
DEMO = [
    ("Which technique makes images from sound waves?",
     ["Computed tomography", "Ultrasound imaging", "Positron emission tomography", "Magnetic resonance imaging"]),
    ("Which stain is used to show iron in tissue?", ["Congo red", "Oil Red O", "Prussian blue", "Von Kossa"]),
    ("What does a crescent of blood along the brain surface on CT suggest?",
     ["Subdural hematoma", "Intraventricular hemorrhage", "Epidural hematoma", "Subarachnoid hemorrhage"]),
    ("Which part of the eye becomes cloudy in cataract?", ["Cornea", "Retina", "Iris", "Lens"]),
    ("Which instrument sends electrons through a very thin section?",
     ["Scanning electron microscope", "Confocal laser microscope", "Transmission electron microscope",
      "Phase contrast microscope"]),
]  # fmt: skip


def demo_prompts(tokenizer: Any, answer_format: str | None) -> list[list[int]]:
    """Token ids of the demonstration's questions, asked in a model's answer format (None: the default one)."""
    conversations = [prompt_messages(*question, answer_format or DEFAULT_ANSWER_FORMAT) for question in DEMO]
    return token_ids(tokenizer, conversations, add_generation_prompt=True)


def clean_question(question: str, choices: Sequence[str], where: str = "") -> tuple[str, list[str]]:
    """A question and its options as a model is asked them: options in one line, without letters typed before them.

    Letters go where every option has its own, the first A, the second B and so on: "A. fumigatus" stays among options
    without letters. Raises `UserError`, whose message begins with `where` (the file and row), if the question is
    empty, or the options are not zero or two to ten different ones.
    """
    lettered = [typed_choice(text, len(choices)) for text in choices]
    all_lettered = [letter for letter, _ in lettered] == list(LETTERS[: len(choices)])
    choices = [text for _, text in lettered] if all_lettered else [clean_text(text) for text in choices]
    if not question.strip():
        raise UserError(f"{where}the question is empty: ask something")
    if choices and not MIN_OPTIONS <= len(choices) <= len(LETTERS):
        raise UserError(f"{where}give two to ten options, or none; found {len(choices)}")
    if not all(choices) or len(set(choices)) < len(choices):
        raise UserError(f"{where}an option is empty or stands twice: give different ones")
    return question.strip(), choices


def print_probabilities(choices: Iterable[str], probabilities: dict[str, float]) -> None:
    for choice, (letter, probability) in zip(choices, probabilities.items(), strict=True):
        print(f"   {letter}. {choice:<40} {probability:6.1%} {'#' * round(20 * probability)}")


def sampled(temperature: float) -> str:
    """What is added to an answer's notes if it was sampled: another seed may give another."""
    return f", sampled at temperature {temperature:g}" if temperature else ""


@dataclass(frozen=True)
class Answer:
    """A question and what the model answered to it, as it is written to JSON; options go by their letters.

    `answer` is the letter of the option that `text` states, or None (`outcome` says why: "unparsed" or "truncated"; a
    question without options is "answered" by any text). `probabilities` are those of option likelihood; `temperature`
    is 0 of a greedy answer.
    """

    question: str
    choices: dict[str, str]
    answer: str | None
    answer_text: str | None
    outcome: str
    text: str
    reasoning: str
    probabilities: dict[str, float]
    temperature: float
    tokens: int
    seconds: float


@dataclass
class Assistant:
    """A model, its tokenizer, the form in which it is asked, and the tokens that it can read."""

    model: Any
    tokenizer: Any
    answer_format: str
    context: int | None

    def __post_init__(self) -> None:
        """Raise `UserError` if the model would not end its answers."""
        check_generation_stops(self.tokenizer)

    def reply(self, messages: list[dict], sampling: Sampling, streamer: Any = None) -> Generated:
        """Continue a conversation; raises `UserError` if that does not fit into the context."""
        (ids,) = token_ids(self.tokenizer, [messages], add_generation_prompt=True)
        check_context(self.context, len(ids), sampling.max_new_tokens, "the conversation")
        return generate(self.model, self.tokenizer, [ids], sampling, streamer)[0]

    def probabilities(self, questions: Sequence[Question]) -> list[dict[str, float]]:
        """Probability of each option of each question, as sft/evaluate.py scores them; empty without options."""
        rows = [{"question": q, "choices": c, "answer_format": self.answer_format} for q, c in questions if c]
        tokens = option_tokens(self.tokenizer, rows)
        scores = iter(batch_log_likelihoods(self.model, self.tokenizer, tokens) if rows else [])
        return [dict(zip(LETTERS, softmax(next(scores)), strict=False)) if c else {} for _, c in questions]

    def ask(self, question: str, choices: list[str], sampling: Sampling) -> Answer:
        """Answer one question as `ask_all` does."""
        return next(self.ask_all([(question, choices)], sampling, 1))[1]

    def ask_all(self, questions: Sequence[Question], sampling: Sampling, batch_size: int) -> Iterator[tuple]:
        """Yield (index, answer) of questions from `clean_question`; raises `UserError` for one that is too long."""
        conversations = [prompt_messages(*question, self.answer_format) for question in questions]
        prompts = token_ids(self.tokenizer, conversations, add_generation_prompt=True)
        for index, prompt in enumerate(prompts):
            check_context(self.context, len(prompt), sampling.max_new_tokens, f"question {index + 1}")
        for number, batch in enumerate(longest_first([len(prompt) for prompt in prompts], batch_size)):
            start = time.perf_counter()
            probabilities = self.probabilities([questions[i] for i in batch])
            seeded = replace(sampling, seed=batch_seed(sampling.seed, number))
            turns = generate(self.model, self.tokenizer, [prompts[i] for i in batch], seeded)
            seconds = (time.perf_counter() - start) / len(batch)
            for i, turn, chances in zip(batch, turns, probabilities, strict=True):
                question, choices = questions[i]
                reasoning, text = split_thinking(turn.text)
                index, outcome = parse_answer(turn.text, choices, turn.hit_limit)
                answer = Answer(
                    question=question,
                    choices=dict(zip(LETTERS, choices, strict=False)),
                    answer=None if index is None else LETTERS[index],
                    answer_text=None if index is None else choices[index],
                    outcome=outcome if choices or turn.hit_limit else "answered",
                    text=text,
                    reasoning=reasoning,
                    probabilities={letter: round(chance, 6) for letter, chance in chances.items()},
                    temperature=sampling.temperature,
                    tokens=turn.tokens,
                    seconds=round(seconds, 3),
                )
                yield i, answer
