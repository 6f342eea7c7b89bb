"""What every process that works on chunks of rows knows: the settings and the tokenizer."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What every worker process needs to know."""

    answer_format: str
    seed: int
    shuffle_choices: int = 0
    reasoning: dict[str, str] | str | None = None  # {row id: rationale}, or the column that holds it
    tokenizer: str | None = None
    chat_template: str | None = None
    pretokenize: bool = False
    max_length: int | None = None


settings = Settings(answer_format="letter_text", seed=0)
tokenizer: Any = None
fingerprint = ""


def start(given: Settings) -> None:
    """Keep the settings, and load their tokenizer unless this process has it from its parent.

    Raises:
        UserError: the tokenizer cannot be had, or there is no chat template.
    """
    global settings, tokenizer, fingerprint
    if (given.tokenizer, given.chat_template) != (settings.tokenizer, settings.chat_template):
        from sft.common.chat_template import tokenizer_fingerprint
        from sft.common.models import load_tokenizer

        tokenizer = load_tokenizer(given.tokenizer, given.chat_template) if given.tokenizer else None
        fingerprint = tokenizer_fingerprint(tokenizer) if tokenizer else ""
    settings = given
