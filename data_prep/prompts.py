"""The one place where a question becomes text: preparation, training, evaluation and inference all call it.

Whatever is asked at inference is, to the token, what was trained on; so nothing else in the project writes prompts.
"""

from collections.abc import Sequence

LETTERS = "ABCD"

# What the model is told to answer with, and therefore what it is trained to write.
INSTRUCTIONS = {
    "letter_text": "Answer with the letter and the text of the correct option.",
    "letter": "Answer with the letter of the correct option.",
    "text": "Answer with the text of the correct option.",
}
ANSWER_FORMATS = tuple(INSTRUCTIONS)
DEFAULT_ANSWER_FORMAT = "letter_text"
# The bare question, answered with the right option's text (prepare.py --no_choices).
OPEN = "open"

# Raised with every change to the texts in this file; models remember the version that they were trained with.
PROMPT_VERSION = 1


def user_message(question: str, choices: Sequence[str], answer_format: str = DEFAULT_ANSWER_FORMAT) -> str:
    """The question, its lettered options and the instruction. Without `choices`, or if open, the bare question.

    The figure is never mentioned: a text-only model does not see it, and must not be told that it does.
    """
    if not choices or answer_format == OPEN:
        return question
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *options, INSTRUCTIONS[answer_format]])


def answer_text(choices: Sequence[str], index: int, answer_format: str = DEFAULT_ANSWER_FORMAT) -> str:
    """What the assistant writes to answer with option `index`."""
    return {
        "letter_text": f"{LETTERS[index]}. {choices[index]}",
        "letter": LETTERS[index],
        "text": choices[index],
        OPEN: choices[index],
    }[answer_format]


def prompt_messages(question: str, choices: Sequence[str], answer_format: str = DEFAULT_ANSWER_FORMAT) -> list[dict]:
    """The conversation before the answer. No system prompt: DeepSeek advises against one for its R1 models."""
    return [{"role": "user", "content": user_message(question, choices, answer_format)}]


def completion_messages(answer: str, reasoning: str = "") -> list[dict]:
    """The assistant's turn. How reasoning is marked up is known to the chat template alone."""
    return [{"role": "assistant", "content": answer, "reasoning_content": reasoning}]
