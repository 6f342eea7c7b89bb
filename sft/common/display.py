"""What is shown: trained tokens in colour on a terminal, and the templates of pages and cards."""

import os
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

GREEN, DIM, RESET = "\033[1;32m", "\033[2m", "\033[0m"


def shows_colour() -> bool:
    """Whether the output is a terminal, and NO_COLOR is not set."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def render(template: Path, **values: Any) -> str:
    """A Jinja template of this project, filled in. One that ends in .html escapes values that it does not call safe.

    It may extend ``page.html`` and import ``table`` from ``table.html``. A name without a value is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).with_name("templates")]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)


def marked(tokenizer: Any, input_ids: Sequence[int], loss_mask: Sequence[int], colour: bool) -> str:
    """The decoded row, each run of trained tokens (mask 1) in colour or between brackets."""
    before, after = (GREEN, RESET) if colour else ("[[", "]]")
    text = ""
    for trained, pairs in groupby(zip(loss_mask, input_ids, strict=True), key=itemgetter(0)):
        run = tokenizer.decode([token for _, token in pairs])
        # Control characters of the data must not reach the terminal.
        run = "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in run)
        text += f"{before}{run}{after}" if trained else run
    return text


def duration(seconds: float) -> str:
    """A length of time, short: ``48 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
