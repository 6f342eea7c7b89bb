"""What is shown: trained tokens in colour on a terminal, and the templates of pages and cards."""

import html
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GREEN, DIM, RESET = "\033[1;32m", "\033[2m", "\033[0m"
STYLE = """
:root{color-scheme:light dark;--bar:#3273a8;--line:#8884;--soft:#8881}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;margin:.6rem 0}
th,td{padding:.25rem .9rem .25rem 0;border-bottom:1px solid var(--line);text-align:right}
td{font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.text{text-align:left}
.scroll{overflow-x:auto}
.bar{display:inline-block;height:.75em;background:var(--bar);vertical-align:baseline}
svg{max-width:100%}svg rect{fill:var(--bar)}svg line{stroke:var(--line)}
svg text{font:11px system-ui,sans-serif;fill:currentColor}
.note{opacity:.75;font-size:.9em}
pre{background:var(--soft);padding:.8rem;overflow-x:auto;white-space:pre-wrap}
"""


def shows_colour() -> bool:
    """Whether the output is a terminal whose user has not asked for plain text."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def render(template: Path, **values: Any) -> str:
    """A Jinja template of this project, filled in. One that ends in .html escapes values, unless they are `Markup`.

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
    text, start = "", 0
    for end in range(1, len(input_ids) + 1):
        if end == len(input_ids) or loss_mask[end] != loss_mask[start]:
            # Control characters of the data must not reach the terminal.
            run_of_text = "".join(
                letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1]
                for letter in tokenizer.decode(input_ids[start:end])
            )
            text += f"{before}{run_of_text}{after}" if loss_mask[start] else run_of_text
            start = end
    return text


@dataclass(frozen=True)
class Safe:
    """HTML that is written as it is."""

    content: str


def table(head: list[str], rows: list[list[Any]], texts: int = 1) -> str:
    """An HTML table; the first `texts` columns are text, the others numbers. Cells are escaped, unless marked safe."""

    def cell(tag: str, column: int, value: Any) -> str:
        content = (
            value.content
            if isinstance(value, Safe)
            else html.escape(f"{value:,}" if isinstance(value, int) else str(value))
        )
        return f"<{tag}{' class=text' if column < texts else ''}>{content}</{tag}>"

    lines = ["".join(cell("th", i, value) for i, value in enumerate(head))]
    lines += ["".join(cell("td", i, value) for i, value in enumerate(row)) for row in rows]
    return '<div class="scroll"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"
