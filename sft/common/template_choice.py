"""Which chat template a tokenizer gets: a file's, or the model's own, or in place of that one which can be trained."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from sft.common.chat_template import SAMPLE_ANSWERS, SAMPLE_PROMPT, SLOT, encode, render, split_completions
from sft.common.command import UserError, shipped, shipped_folder

OWN = "the model's own"
# Markers of turns, as families write them: <|user|>, <｜User｜>, <start_of_turn>, <extra_id_0>, <s>, <<SYS>>, [INST].
_MARKER = re.compile(r"<[^\s<>]*[|｜_▁\d][^\s<>]*>|</?(?:s|bos|eos|pad)>|<</?[A-Z]+>>|\[/?[A-Z_]+\]")
# The date of a template that would write today's: that which Llama's templates fall back to.
_FIXED_DATE = date(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\s*\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
# Values of variables, as they are written at the beginning of a template.
_SETTINGS = re.compile(r'(?:\{%- set \w+ = (?:true|false|[-+.\de]+|"(?:[^"\\]|\\.)*") %\}\n?)*')
# Writes the rationale of the last turn into its text, in the form of SmolLM3's closed think block.
_RATIONALE_AS_TEXT = (
    "{%- if messages[-1].reasoning_content %}"
    "{%- set messages = messages[:-1] + [{'role': messages[-1].role, 'content': "
    "'<think>\\n' ~ messages[-1].reasoning_content ~ '\\n</think>\\n' ~ messages[-1].content}] %}"
    "{%- endif %}\n"
)
# What transformers passes to a template itself.
_GIVEN = re.compile(r"messages|tools|documents|add_generation_prompt|\w+_token|raise_exception|strftime_now")


def template_values(text: str) -> dict[str, Any]:
    """The values of a template's variables that --chat_template_kwargs gives; raises `UserError` for other JSON."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"--chat_template_kwargs {text}: write JSON in quotes, as in '{{\"enable_thinking\": false}}'")
    return values


def set_chat_template(tokenizer: Any, template: str | Path | None, values: Mapping[str, Any] | None = None) -> None:
    """Give `tokenizer` the Jinja template in the file `template`; without one, its own, which it must have.

    A model's own template that fails the proof of `split_completions` is replaced by one that passes it and writes the
    same prompt, if there is one. One that takes rationales in the answer's text alone gets them there. `values` of a
    template's variables (enable_thinking) are written into it. A template that writes today's date gets a fixed one
    instead, so that its tokens are the same tomorrow. The tokenizer keeps in words, as `template_source`, what was
    taken.

    Raises `UserError` if there is no template, if it has no variable of a name in `values`, if the date that it writes
    cannot be fixed, or if a marker that the file writes between turns is not a token of the vocabulary: the model
    would read it as words.
    """
    own = tokenizer.chat_template
    if not template and own is None:
        raise UserError(
            "the tokenizer has no chat template: name one of recipes/templates/*.jinja, or that of the family's chat "
            "model"
        )
    tokenizer.chat_template = _made_fixed(_read(Path(template)) if template else own, values or {})
    tokenizer.template_source = f"{template or OWN}{_in_words(values)}"
    if not template:
        _replace_if_refused(tokenizer, own, values or {})
        _take_rationales(tokenizer)
    elif tokenizer.chat_template != own:
        try:
            _check_markers(tokenizer)
        except UserError as error:
            advice = "leave chat_template_path empty for the model's own" if own else "name that of the model's family"
            raise UserError(f"{error} ({template}): {advice}") from error


def _read(template: Path) -> str:
    file = shipped(template)
    if file.is_dir():
        raise UserError(f"chat template {file} is a folder: name a file, or leave it empty for the model's own")
    if not file.is_file():
        raise UserError(
            f"chat template {file} does not exist: choose one of recipes/templates/*.jinja, or leave it empty for "
            "the model's own"
        )
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"chat template {file} is not UTF-8 text") from error


def _made_fixed(template: str | dict[str, str], values: Mapping[str, Any]) -> str | dict[str, str]:
    """`template`, or each of several by name, with these values of its variables, and a date that stays."""
    if isinstance(template, dict):  # of which "default" is used
        return {name: _made_fixed(text, values) for name, text in template.items()}
    earlier = _SETTINGS.match(template).end()
    for name, value in values.items():
        if name not in _variables(template[earlier:]):
            advice = "check its name, or leave it out (--chat_template_kwargs '{}')"
            raise UserError(f"chat_template_kwargs: the chat template has no variable {name}: {advice}")
        if not isinstance(value, str | int | float) or value in (float("inf"), -float("inf")) or value != value:
            raise UserError(
                f"chat_template_kwargs: {name} is {json.dumps(value)}: write true, false, a number or a text"
            )
    # Written into it, and not passed to it: whoever gets the model asks it as it was trained, with no option. Behind
    # those that an earlier run wrote, so that they hold. Jinja drops the new line, as transformers sets it up, and the
    # template begins as it began.
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    settings = (f"{{%- set {name} = {value} %}}\n" for name, value in written.items())
    return _with_fixed_date(template[:earlier] + "".join(settings) + template[earlier:])


def _variables(template: str) -> set[str]:
    """The names that a template looks up and transformers does not give; none if it cannot be read as one."""
    import jinja2
    from jinja2 import meta

    without_marks = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)  # a tag of transformers' own
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(without_marks)  # noqa: S701
    except jinja2.TemplateError:
        return set()
    return {name for name in meta.find_undeclared_variables(parsed) if not _GIVEN.fullmatch(name)}


def _in_words(values: Mapping[str, Any] | None) -> str:
    return "".join(f", with {name} {json.dumps(value)}" for name, value in (values or {}).items())


def _with_fixed_date(template: str) -> str:
    """`template` with a fixed date in place of today's, which some families (Llama 3.2, gpt-oss) write by default."""
    fixed = _TODAY.sub(lambda call: repr(_FIXED_DATE.strftime(call["format"])), template)
    if "strftime_now" in re.sub(r"strftime_now is (not )?defined", "", fixed):
        raise UserError(
            "chat template writes today's date, so its tokens differ every day: write a fixed date into it"
        )
    return fixed


def _fault(tokenizer: Any) -> str | None:
    """Why the template could not be trained, or None if it passes the proof with an answer without rationale."""
    try:
        split_completions(tokenizer, [SAMPLE_PROMPT], SAMPLE_ANSWERS[:1])
    except UserError as error:
        return str(error).split(": ")[0]
    return None


def _replace_if_refused(tokenizer: Any, own: str | dict[str, str], values: Mapping[str, Any]) -> None:
    """Replace a model's own template that fails the proof by one that passes it and writes the same prompt.

    Without one the model keeps its own, and the first row that fails says why.
    """
    fault, kept = _fault(tokenizer), tokenizer.chat_template
    if fault is None:
        return
    try:
        prompt = render(tokenizer, [SAMPLE_PROMPT], add_generation_prompt=True)
    except UserError:
        return
    for source, template in _others(tokenizer, own):
        try:
            tokenizer.chat_template = _made_fixed(template, values)
            same = render(tokenizer, [SAMPLE_PROMPT], add_generation_prompt=True) == prompt
        except UserError:
            continue
        if same and _fault(tokenizer) is None:
            tokenizer.template_source = f"{source}{_in_words(values)}, because the model's own is refused ({fault})"
            return
    tokenizer.chat_template = kept


def _take_rationales(tokenizer: Any) -> None:
    """Let the template of a model that thinks write rationales, where it takes them in the answer's text alone.

    As SmolLM3's. Its prompt stays as it is, and so do rows without rationale.
    """
    kept = tokenizer.chat_template
    # Of a model that does not think, the marks are words.
    if not isinstance(kept, str) or "</think>" not in kept or len(encode(tokenizer, ["<think>"])[0]) != 1:
        return
    why = [[{**turns[0], "reasoning_content": "Because."}] for turns in SAMPLE_ANSWERS[:1]]
    with contextlib.suppress(UserError):
        (direct,) = split_completions(tokenizer, [SAMPLE_PROMPT], SAMPLE_ANSWERS[:1])
        earlier = _SETTINGS.match(kept).end()
        try:
            split_completions(tokenizer, [SAMPLE_PROMPT], why)
            return
        except UserError:
            tokenizer.chat_template = kept[:earlier] + _RATIONALE_AS_TEXT + kept[earlier:]
        (prompt,) = render(tokenizer, [SAMPLE_PROMPT], add_generation_prompt=True)
        (row,) = split_completions(tokenizer, [SAMPLE_PROMPT], why)
        block = tokenizer.decode(row["completion_ids"]).removesuffix(tokenizer.decode(direct["completion_ids"]))
        if block == "<think>\nBecause.\n</think>\n" and "</think>" not in prompt.rpartition("Which?")[2]:
            tokenizer.template_source += ", with rationales as a think block of the answer"
            return
    tokenizer.chat_template = kept


def _others(tokenizer: Any, own: str | dict[str, str]) -> Iterator[tuple[str, str]]:
    """(where from, text) of templates that may stand in for a family's `own`: TRL's for training, then ours."""
    tokenizer.chat_template = own  # which TRL knows to the letter
    try:
        from trl.chat_template_utils import get_training_chat_template

        trained = get_training_chat_template(tokenizer)
    except Exception:  # of a family that TRL does not know, or whatever the template's own code raises
        trained = None
    if trained:
        yield "TRL's training template of this family", trained
    for file in sorted((shipped_folder() / "recipes/templates").glob("*.jinja")):
        yield f"recipes/templates/{file.name}", file.read_text(encoding="utf-8")


def _check_markers(tokenizer: Any) -> None:
    """Raise `UserError` if a marker between the turns of a conversation is not one token."""
    turns = [{"role": role, "content": SLOT} for role in ("user", "assistant")]
    written = "".join(render(tokenizer, [turns]) + render(tokenizer, [turns[:1]], add_generation_prompt=True))
    for marker in dict.fromkeys(_MARKER.findall(written)):
        pieces = len(encode(tokenizer, [marker])[0])
        if pieces > 1:
            raise UserError(f"chat template writes {marker}, which the model would read as {pieces} pieces of words")
