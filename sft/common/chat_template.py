"""Chat templates: read one, and prove on every row that training and inference see the same tokens.

Architecture rule: the tokens before the first trained token are exactly the tokens before the first generated one.
A template that breaks it trains a model on prompts other than those that it will get.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from datetime import date
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from sft.common.command import UserError, first_line, shipped, shipped_folder

# What a template may look for in a text, so that it does not just copy it.
_MARKUP = re.compile(r"[<>{}\[\]|\ue000]")
# Stands around the number of a text that is to be filled in: a character that no text of ours holds.
_SLOT = "\ue000"
# Markers of turns, as families write them: <|user|>, <｜User｜>, <start_of_turn>, <extra_id_0>, <s>, <<SYS>>, [INST].
_MARKER = re.compile(r"<[^\s<>]*[|｜_▁\d][^\s<>]*>|</?(?:s|bos|eos|pad)>|<</?[A-Z]+>>|\[/?[A-Z_]+\]")
# The date of a template that would write today's: that which Llama's templates fall back to.
_FIXED_DATE = date(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\s*\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
# The loss of PyTorch and transformers leaves this label out.
IGNORED = -100


def set_chat_template(tokenizer: Any, template: str | Path | None) -> None:
    """Give `tokenizer` the Jinja template in the file `template`; without one, it keeps its own, and must have one.

    A template that writes today's date gets a fixed one instead, so that its tokens are the same tomorrow.

    Raises `UserError` if there is no template, if the date that it writes cannot be fixed, or if a marker that the
    file writes between turns is not a token of the vocabulary: the model would read it as words.
    """
    own = tokenizer.chat_template
    if template:
        file = shipped(Path(template))
        if file.is_dir():
            raise UserError(f"chat template {file} is a folder: name a file, or leave it empty for the model's own")
        if not file.is_file():
            raise UserError(
                f"chat template {file} does not exist: choose one of recipes/templates/*.jinja, or leave it empty for "
                "the model's own"
            )
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"chat template {file} is not UTF-8 text") from error
    elif own is None:
        raise UserError("the tokenizer has no chat template: name one of recipes/templates/*.jinja")
    if isinstance(tokenizer.chat_template, dict):  # several by name, of which "default" is used
        named = tokenizer.chat_template
        tokenizer.chat_template = {name: _with_fixed_date(text) for name, text in named.items()}
    else:
        tokenizer.chat_template = _with_fixed_date(tokenizer.chat_template)
    if template and tokenizer.chat_template != own:
        try:
            _check_markers(tokenizer)
        except UserError as error:
            advice = "leave chat_template_path empty for the model's own" if own else "name that of the model's family"
            raise UserError(f"{error} ({template}): {advice}") from error


def _with_fixed_date(template: str) -> str:
    """`template` with a fixed date in place of today's, which some families (Llama 3.2, gpt-oss) write by default."""
    fixed = _TODAY.sub(lambda call: repr(_FIXED_DATE.strftime(call["format"])), template)
    if "strftime_now" in re.sub(r"strftime_now is (not )?defined", "", fixed):
        raise UserError(
            "chat template writes today's date, so its tokens differ every day: write a fixed date into it"
        )
    return fixed


def _check_markers(tokenizer: Any) -> None:
    """Raise `UserError` if a marker between the turns of a conversation is not one token."""
    turns = [{"role": role, "content": _SLOT} for role in ("user", "assistant")]
    written = "".join(render(tokenizer, [turns]) + render(tokenizer, [turns[:1]], add_generation_prompt=True))
    for marker in dict.fromkeys(_MARKER.findall(written)):
        pieces = len(encode(tokenizer, [marker])[0])
        if pieces > 1:
            raise UserError(f"chat template writes {marker}, which the model would read as {pieces} pieces of words")


@functools.cache
def _copying_templates() -> list[str]:
    """The texts of recipes/templates/, which copy what they are given (tests/common/test_chat_template.py)."""
    files = (shipped_folder() / "recipes/templates").glob("*.jinja")
    return [file.read_text(encoding="utf-8") for file in files]


def token_ids(tokenizer: Any, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[list[int]]:
    """Token ids of each conversation, rendered by the tokenizer's chat template."""
    options = {"add_generation_prompt": add_generation_prompt, "return_dict": True}
    return tokenizer.apply_chat_template(conversations, **options)["input_ids"]


def render(tokenizer: Any, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[str]:
    """The text that the chat template makes of each conversation.

    Our own templates copy the text of a turn unless it holds markup, and Jinja takes longer than the tokenizer. So a
    shape (roles, and which texts are not empty) is rendered once, with placeholders that are then filled in. Texts
    with markup or outer white space go through the template, and so does everything under another template.
    """

    def by_template(some: list[list[dict]]) -> list[str]:
        options = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
        try:
            return tokenizer.apply_chat_template(some, **options) if some else []
        except Exception as error:  # whatever the template's own code raises
            raise UserError(f"chat template: {first_line(error)}") from error

    filled: dict[int, str] = {}
    patterns: dict[tuple, str] = {}
    for index, turns in enumerate(conversations if tokenizer.chat_template in _copying_templates() else ()):
        values = [text for turn in turns for key, text in turn.items() if key != "role" and text]
        if any(_MARKUP.search(text) or text != text.strip() for text in values):
            continue
        shape = tuple((key, text if key == "role" else bool(text)) for turn in turns for key, text in turn.items())
        if shape not in patterns:
            slots = (f"{_SLOT}{number}{_SLOT}" for number in count())
            marked = [{k: next(slots) if k != "role" and text else text for k, text in turn.items()} for turn in turns]
            pattern = by_template([marked])[0].replace("{", "{{").replace("}", "}}")
            patterns[shape] = re.sub(f"{_SLOT}(\\d+){_SLOT}", r"{\1}", pattern)
        filled[index] = patterns[shape].format(*values)
    rest = [i for i in range(len(conversations)) if i not in filled]
    filled.update(zip(rest, by_template([conversations[i] for i in rest]), strict=True))
    return [filled[i] for i in range(len(conversations))]


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of rendered texts: nothing added, nothing cut, as TRL encodes them."""
    if not tokenizer.is_fast:
        return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    # The tokenizer proper: the wrapper around it spends as long again on masks and conversions.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def last_added_token(tokenizer: Any, prompt: str) -> str | None:
    """The last token in the rendered `prompt` at which tokenizers cut any text before they look at the rest.

    What stands before such an added token is encoded alike whatever follows, so it need not be encoded twice.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # DeepSeek's normalizer is an empty sequence; one that changes text could blur the cut.
    normalizes = str(getattr(backend, "normalizer", None)) not in ("None", "Sequence(normalizers=[])")
    places = {
        prompt.rfind(token.content): token.content
        for token in tokenizer.added_tokens_decoder.values()
        if not (token.lstrip or token.single_word or (token.normalized and normalizes))
    }
    return places[max(places)] if places and max(places) >= 0 else None


def split_completions(tokenizer: Any, prompts: list[list[dict]], completions: list[list[dict]]) -> list[dict]:
    """``{"prompt_ids", "completion_ids"}`` of each row, cut where generation would start.

    Raises `UserError` if in some row the prompt's tokens are not a prefix of the row's tokens, a text is left out, the
    begin-of-text token stands twice, the completion is empty, or the row does not end with the end-of-text token.
    """
    prompt_texts = render(tokenizer, prompts, add_generation_prompt=True)
    full_texts = render(tokenizer, [p + c for p, c in zip(prompts, completions, strict=True)])
    cut_at = last_added_token(tokenizer, prompt_texts[0]) if prompt_texts else None
    # Each text is cut into a head, encoded once, and a rest that begins with the end of the prompt.
    cuts = [max(0, text.rfind(cut_at)) if cut_at else 0 for text in prompt_texts]
    heads = encode(tokenizer, [text[:cut] for text, cut in zip(prompt_texts, cuts, strict=True)])
    ends = encode(tokenizer, [text[cut:] for text, cut in zip(prompt_texts, cuts, strict=True)])
    rests = encode(tokenizer, [text[cut:] for text, cut in zip(full_texts, cuts, strict=True)])

    rows = []
    columns = (prompts, completions, prompt_texts, full_texts, heads, ends, rests)
    for prompt, completion, prompt_text, full_text, head, end, rest in zip(*columns, strict=True):
        row = f"the row that asks {prompt[-1]['content'][:60]!r}"
        if not full_text.startswith(prompt_text) or rest[: len(end)] != end:
            prompt_ids, full_ids = encode(tokenizer, [prompt_text, full_text])
            same = len(common_prefix([prompt_ids, full_ids]))
            raise UserError(
                f"chat template breaks parity in {row}: inference ends its prompt with "
                f"{tokenizer.decode(prompt_ids[same:])!r}, training continues with "
                f"{tokenizer.decode(full_ids[same : same + 8])!r}. Name a template "
                + ("that keeps the think block, " if "<think>" in prompt_text + full_text else "")
                + "(recipes/templates/deepseek_r1.jinja for R1 distills): chat_template_path in a "
                "recipe, --chat_template elsewhere"
            )
        for text in (prompt[-1]["content"], completion[-1]["content"], completion[-1].get("reasoning_content") or ""):
            if text.strip() not in full_text:
                raise UserError(f"chat template leaves out {text.strip()[:60]!r} of {row}: use another template")
        prompt_ids, completion_ids = head + end, rest[len(end) :]
        if prompt_ids[:2] == [tokenizer.bos_token_id] * 2:
            raise UserError(f"chat template writes the begin-of-text token twice in {row}")
        if not completion_ids:
            raise UserError(f"the completion is empty in {row}: nothing would be trained")
        rows.append({"prompt_ids": prompt_ids, "completion_ids": _up_to_end_of_turn(tokenizer, completion_ids, row)})
    return rows


def tokenize(tokenizer: Any, prompts: list[list[dict]], completions: list[list[dict]]) -> dict[str, list[list[int]]]:
    """``{"input_ids", "labels"}`` of the rows, as SFTTrainer makes them; raises as `split_completions`."""
    rows = split_completions(tokenizer, prompts, completions)
    return {
        "input_ids": [row["prompt_ids"] + row["completion_ids"] for row in rows],
        "labels": [[IGNORED] * len(row["prompt_ids"]) + row["completion_ids"] for row in rows],
    }


def _up_to_end_of_turn(tokenizer: Any, ids: list[int], row: str) -> list[int]:
    """The ids up to the end-of-text token, without the white space that many templates write behind it.

    Raises `UserError` if they do not end so: the model would not learn to stop where generation stops.
    """
    after = ids[::-1].index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None
    if after is None or (after and tokenizer.decode(ids[-after:]).strip()):
        raise UserError(
            f"chat template ends {row} with {tokenizer.decode(ids[-8:])!r}, and generation stops at "
            f"{tokenizer.eos_token!r}: the model would not learn to stop. Set eos_token in the recipe to the token "
            "that ends a turn in this template, or use the template of the model's family"
        )
    return ids[: len(ids) - after]


def closed_think_ids(tokenizer: Any) -> list[int]:
    """Token ids between a prompt and an answer without thinking: a closed think block; none for other families."""
    prompt = [{"role": "user", "content": "Which?"}]
    answers = [[{"role": "assistant", "content": letter, "reasoning_content": ""}] for letter in "AB"]
    return common_prefix([row["completion_ids"] for row in split_completions(tokenizer, [prompt, prompt], answers)])


def common_prefix(sequences: Sequence[Sequence[int]]) -> list[int]:
    """The leading items that all sequences share."""
    return [items[0] for items in takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False))]


def open_think_prefix(tokenizer: Any) -> str:
    """The part of a think block that the prompt opens already: ``<think>`` and a newline, or nothing."""
    (prompt,) = render(tokenizer, [[{"role": "user", "content": "Which?"}]], add_generation_prompt=True)
    _, tag, rest = prompt.rpartition("<think>")
    return tag + rest if tag and "</think>" not in rest else ""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Fingerprint of everything that decides a row's tokens: the vocabulary, its rules and the chat template."""
    if tokenizer.is_fast:  # without its truncation and padding, which depend on the last call
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        backend = tokenizer.backend_tokenizer.to_str()
    else:
        backend = str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{backend}\n{tokenizer.chat_template}".encode()).hexdigest()[:16]


def explain(tokenizer: Any, prompt: list[dict], completion: list[dict]) -> dict[str, Any]:
    """``{"text", "input_ids", "loss_mask", "tokens"}`` of a row: what the model reads, and where it is trained (1)."""
    (row,) = split_completions(tokenizer, [prompt], [completion])
    ids = row["prompt_ids"] + row["completion_ids"]
    mask = [0] * len(row["prompt_ids"]) + [1] * len(row["completion_ids"])
    return {"text": tokenizer.decode(ids), "input_ids": ids, "loss_mask": mask, "tokens": len(ids)}
