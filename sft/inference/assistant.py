"""A loaded model that answers questions: what every mode of sft/infer.py and the web page share."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sft.common.chat_template import token_ids
from sft.common.command import UserError
from sft.common.prompts import DEFAULT_ANSWER_FORMAT, LETTERS, clean_choice, clean_text, prompt_messages
from sft.inference.generation import Generated, Sampling, batch_seed, check_context, generate, split_thinking
from sft.inference.likelihood import longest_first, option_log_likelihoods, softmax
from sft.inference.parsing import parse_answer

# Of the quickstart's facts, in words that it does not train on, each with the four answers of its group.
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
# A letter in front of an option, as people type it: "A. x", "A) x", "(A) x"; "A: x" is PMC-VQA's.
_TYPED_LETTER = re.compile(r"^\s*\(?([A-Da-d])\s*[.):]")


def demo_prompts(tokenizer: Any, answer_format: str | None) -> list[list[int]]:
    """Token ids of the demonstration's questions, asked in a model's form or, where it tells none, the usual one."""
    asked = answer_format or DEFAULT_ANSWER_FORMAT
    return token_ids(tokenizer, [prompt_messages(*question, asked) for question in DEMO], add_generation_prompt=True)


def as_asked(question: str, choices: Sequence[str], where: str = "") -> tuple[str, list[str]]:
    """A question and its options as a model is asked them: options in one line, without letters typed before them.

    Letters go where every option has its own, the first A, the second B and so on: "A. fumigatus" stays among options
    without letters. `where` begins the message of an error: the file and row of the question, or nothing.

    Raises:
        UserError: an empty question, or options that are not none or two to four different ones.
    """
    lettered = [clean_choice(_TYPED_LETTER.sub(lambda typed: f"{typed[1].upper()}:", text)) for text in choices]
    if [letter for letter, _ in lettered] == list(LETTERS[: len(choices)]):
        choices = [text for _, text in lettered]
    else:
        choices = [clean_text(text) for text in choices]
    if not question.strip():
        raise UserError(f"{where}the question is empty: ask something")
    if choices and not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{where}give two to four options, or none; found {len(choices)}")
    if not all(choices) or len(set(choices)) < len(choices):
        raise UserError(f"{where}an option is empty or stands twice: give different ones")
    return question.strip(), choices


def print_probabilities(choices: Sequence[str], probabilities: Sequence[float]) -> None:
    """Print the options of a question, each with its probability as a number and a bar."""
    for letter, choice, probability in zip(LETTERS, choices, probabilities, strict=False):
        print(f"   {letter}. {choice:<40} {probability:6.1%} {'#' * round(20 * probability)}")


def sampled(temperature: float) -> str:
    """What is added to an answer's notes if it was sampled, so that another seed may give another."""
    return f", sampled at temperature {temperature:g}" if temperature else ""


@dataclass(frozen=True)
class Answer:
    """A question and what the model answered to it.

    `letter` is that of the option which `text` states, or None (`outcome` says why: "unparsed" or "truncated"; a
    question without options is "answered" by whatever is written). `probabilities` are those of option likelihood,
    in the order of the options. `temperature` is 0 of a greedy answer. `tokens` were written in `seconds`.
    """

    question: str
    choices: list[str]
    text: str
    reasoning: str
    letter: str | None
    outcome: str
    probabilities: list[float]
    temperature: float
    tokens: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The answer for programs; letters are keys."""
        return {
            "question": self.question,
            "choices": dict(zip(LETTERS, self.choices, strict=False)),
            "answer": self.letter,
            "answer_text": self.choices[LETTERS.index(self.letter)] if self.letter else None,
            "outcome": self.outcome,
            "text": self.text,
            "reasoning": self.reasoning,
            "probabilities": {
                letter: round(value, 6) for letter, value in zip(LETTERS, self.probabilities, strict=False)
            },
            "temperature": self.temperature,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }


@dataclass
class Assistant:
    """A model, its tokenizer, the form in which it is asked, and the tokens that it can read."""

    model: Any
    tokenizer: Any
    answer_format: str
    context: int | None

    def reply(self, messages: list[dict], sampling: Sampling, streamer: Any = None) -> Generated:
        """Continue a conversation.

        Raises:
            UserError: it does not fit into the context with what may be written.
        """
        (ids,) = token_ids(self.tokenizer, [messages], add_generation_prompt=True)
        check_context(self.context, len(ids), sampling.max_new_tokens, "the conversation")
        return generate(self.model, self.tokenizer, [ids], sampling, streamer)[0]

    def probabilities(self, questions: Sequence[dict], batch_size: int = 1) -> list[list[float]]:
        """Probability of each option of each question, as sft/evaluate.py scores them."""
        scores = dict(option_log_likelihoods(self.model, self.tokenizer, questions, batch_size))
        return [softmax(scores[index]) for index in range(len(questions))]

    def row(self, question: str, choices: Sequence[str]) -> dict:
        """A question as the scorer reads it."""
        return {"question": question, "choices": list(choices), "answer_format": self.answer_format}

    def messages(self, question: str, choices: Sequence[str]) -> list[dict]:
        """The conversation that a question opens."""
        return prompt_messages(question, choices, self.answer_format)

    def answer(
        self, question: str, choices: list[str], written: Generated, chances: list, temperature: float, since: float
    ) -> Answer:
        """What was written, taken apart; `since` is when it was asked (`time.perf_counter`)."""
        reasoning, text = split_thinking(written.text)
        parsed = parse_answer(written.text, choices, written.hit_limit) if choices else None
        outcome = parsed.outcome if parsed else "truncated" if written.hit_limit else "answered"
        letter = LETTERS[parsed.index] if parsed and parsed.index is not None else None
        seconds = time.perf_counter() - since
        return Answer(
            question, choices, text, reasoning, letter, outcome, chances, temperature, written.tokens, seconds
        )

    def ask(self, question: str, choices: Sequence[str], sampling: Sampling, streamer: Any = None) -> Answer:
        """Answer one question.

        Raises:
            UserError: an empty question, wrong options, or a prompt that does not fit into the context.
        """
        question, choices = as_asked(question, choices)
        since = time.perf_counter()
        written = self.reply(self.messages(question, choices), sampling, streamer)
        chances = self.probabilities([self.row(question, choices)])[0] if choices else []
        return self.answer(question, choices, written, chances, sampling.temperature, since)

    def ask_all(
        self, questions: Sequence[tuple[str, list[str]]], sampling: Sampling, batch_size: int
    ) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) of many questions from `as_asked`, in batches whose seconds are shared evenly."""
        prompts = token_ids(self.tokenizer, [self.messages(*question) for question in questions], True)
        for index, prompt in enumerate(prompts):
            check_context(self.context, len(prompt), sampling.max_new_tokens, f"question {index + 1}")
        for number, batch in enumerate(longest_first([len(prompt) for prompt in prompts], batch_size)):
            since = time.perf_counter()
            with_options = [i for i in batch if questions[i][1]]
            chances = self.probabilities([self.row(*questions[i]) for i in with_options], batch_size)
            of_question = dict(zip(with_options, chances, strict=True))
            drawn = replace(sampling, seed=batch_seed(sampling.seed, number))
            written = generate(self.model, self.tokenizer, [prompts[i] for i in batch], drawn)
            each = (time.perf_counter() - since) / len(batch)
            for i, text in zip(batch, written, strict=True):
                since = time.perf_counter() - each
                yield i, self.answer(*questions[i], text, of_question.get(i, []), sampling.temperature, since)
