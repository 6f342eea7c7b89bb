"""The one place where a question becomes text, from its cleaned cells to the prompt and the answer.

The prompt at inference is, to the token, the one that was trained on; so nothing else in the project writes prompts.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

LETTERS = "ABCDEFGHIJ"  # of the options of a question, which may have fewer
MIN_OPTIONS = 2

# What the model has to answer with, and therefore what it is trained to write.
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


class OptionPatterns(NamedTuple):
    """Where a text has the letter of an option, or speaks of one."""

    printed_letter: re.Pattern[str]
    typed_letter: re.Pattern[str]
    tied_to_its_place: re.Pattern[str]
    names_options: re.Pattern[str]


@lru_cache
def option_patterns(count: int) -> OptionPatterns:
    """The patterns of questions with `count` options: a letter beyond them is a part of the text."""
    letters = LETTERS[:count].lower()
    a_d, run = f"[a-{letters[-1]}]", "?".join(letters)
    two = "|".join(["two", "three", "four", "five", "six", "seven", "eight", "nine"][: max(2, count - 2)])
    return OptionPatterns(
        printed_letter=re.compile(rf"['\"]?\s*({a_d.upper()})\s*:\s*"),
        # As people type it: "A. x", "(a) x", "[A] x", "A\uff1ax" (full width), "A - x", "Option A: x".
        typed_letter=re.compile(
            r"(?i)^\s*['\"]?\s*(?:option|choice)?\s*[(\[\uff08]?"
            rf"\s*({a_d})\s*(?:[.):\]\uff09\uff0e\uff1a]+|[-–—]\s)"
        ),
        # Options that mean something only where they stand: "all of the above", "both A and C", "A-C", "ABD", "the
        # last two".
        tied_to_its_place=re.compile(
            rf"\b(all|none|any|both|neither|some|{two})( of)?( the)? (above|below|following|others?|these)\b"
            r"|^(all|both|either|neither)$|\b(all|none|any|both|first|second|third|last).* (option|choice|answer)s?$"
            rf"|\b(first|last) ({two})$|^{a_d}$|\b(only|except|not) {a_d}\b|\b{a_d} (only|is|are|alone)\b"
            rf"|\b{a_d}\b( and| or| nor|,).*\b{a_d}\b|\b{a_d}\)? ?(&|\+|/|-|–|to|through) ?\(?{a_d}\b"
            rf"|\b(?={a_d}{{2,}}$){run}?$",
            re.IGNORECASE,
        ),
        names_options=re.compile(rf"\b(option|choice|answer|statement)s? \(?{a_d}\b", re.IGNORECASE),
    )


def user_message(question: str, choices: Sequence[str], answer_format: str = DEFAULT_ANSWER_FORMAT) -> str:
    """The question, its lettered options and the instruction. Without `choices`, or if open, the bare question.

    The figure is never mentioned: a text-only model does not see it, and must not read that it does.
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


def clean_text(cell: str) -> str:
    """One line: every run of white space (new lines and no-break spaces too) becomes one space, outer ones go."""
    return " ".join((cell if cell.isascii() else unicodedata.normalize("NFC", cell)).split())


def clean_choice(cell: str, count: int = 4) -> tuple[str | None, str]:
    """(printed letter or None, text of the option) for a cell such as ``" A: Green "``.

    Only the letters of a question with `count` options are letters.
    A quote that the source glued on goes with the letter behind it, or with the white space before it; quotes that
    belong to the text (5', "double bubble") stay.
    """
    text = clean_text(cell)
    printed = option_patterns(count).printed_letter.match(text)
    if printed:
        text = text[printed.end() :]
    if text.endswith((" '", ' "')) and text.count(text[-1]) % 2:
        text = text[:-2].rstrip()
    return (printed.group(1) if printed else None), text


def typed_choice(cell: str, count: int = 4) -> tuple[str | None, str]:
    """As `clean_choice`, where the letter may have another form: ``"(a) green"`` is ``("A", "green")``."""
    return clean_choice(option_patterns(count).typed_letter.sub(lambda typed: f"{typed[1].upper()}:", cell), count)


def choice_cleaner(cells: Sequence[str]) -> Callable[[str], tuple[str | None, str]]:
    """`typed_choice` where every option has a letter of its own, the first A in any order, and text; `clean_choice`.

    "A. fumigatus" so stays among options without letters.
    """
    clean = partial(clean_choice, count=len(cells))
    if all(clean(cell)[0] for cell in cells):
        return clean
    typed = partial(typed_choice, count=len(cells))
    letters, texts = zip(*map(typed, cells), strict=True)
    own = sorted(letter or "" for letter in letters) == list(LETTERS[: len(cells)])
    return typed if own and all(texts) else clean


def longest_option(choices: Sequence[str]) -> int:
    """Index of the option with the most characters, the first of equals: what the longest-option floor answers."""
    return max(range(len(choices)), key=lambda index: len(choices[index]))


def majority_letter(golds: Mapping[tuple[int, int], int]) -> float:
    """Accuracy of the commonest gold letter of each number of options, from questions by (options, gold index)."""
    commonest: dict[int, int] = {}
    for (options, _), questions in golds.items():
        commonest[options] = max(questions, commonest.get(options, 0))
    return sum(commonest.values()) / sum(golds.values())


def chance(options: Mapping[int, int]) -> dict[str, float]:
    """``{"chance": mean of 1/n}`` from the questions by number of options n; {} if all have four, where it is 1/4."""
    mean = sum(questions / n for n, questions in sorted(options.items())) / sum(options.values())
    return {"chance": mean} if set(options) != {4} else {}


def can_be_shuffled(question: str, choices: Sequence[str], reasoning: str = "") -> bool:
    """False where an option, the question or a rationale speaks, or may speak, of the place or letter of an option."""
    of = option_patterns(len(choices))
    if reasoning or any(map(of.names_options.search, (question, *choices))):
        return False
    return not any(map(of.tied_to_its_place.search, choices))
