"""Chat templates: read one, and prove on every row that training and inference see the same tokens.

Architecture rule: the tokens before the first trained token are exactly the tokens before the first generated one.
A template that breaks it trains a model on prompts other than those that it will get.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from sft.common.command import UserError, first_line

# What a template may look for in a text, so that it does not just copy it.
_MARKUP = re.compile(r"[<>{}\[\]|\ue000]")
# Stands around the number of a text that is to be filled in: a character that no text of ours holds.
_SLOT = "\ue000"
# One filled-in text in so many is compared with the template's own.
COMPARED_EVERY = 100


def set_chat_template(tokenizer: Any, template: str | Path | None) -> None:
    """Give `tokenizer` the Jinja template in a file, or keep its own; raises `UserError` if there is none."""
    if template is None:
        if tokenizer.chat_template is None:
            raise UserError("the tokenizer has no chat template: name one of recipes/templates/*.jinja")
        return
    if not Path(template).is_file():
        raise UserError(f"chat template {template} does not exist: choose one of recipes/templates/*.jinja")
    try:
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"chat template {template} is not UTF-8 text") from error


def token_ids(tokenizer: Any, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[list[int]]:
    """Token ids of each conversation, rendered by the tokenizer's chat template."""
    options = {"add_generation_prompt": add_generation_prompt, "return_dict": True}
    return tokenizer.apply_chat_template(conversations, **options)["input_ids"]


def render(tokenizer: Any, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[str]:
    """The text that the chat template makes of each conversation.

    Templates copy the text of a turn unless it holds markup, and Jinja takes longer than the tokenizer. So a shape
    (roles, and which texts are not empty) is rendered once, with placeholders that are then filled in. Texts with
    markup or outer white space go through the template, and so does one conversation in `COMPARED_EVERY` of the
    others: if they differ there, the template does not copy, and every conversation goes through it.
    """

    def by_template(some: list[list[dict]]) -> list[str]:
        options = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
        try:
            return tokenizer.apply_chat_template(some, **options) if some else []
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"chat template: {first_line(error)}") from error

    filled: dict[int, str] = {}
    patterns: dict[tuple, str] = {}
    for index, turns in enumerate(conversations):
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
    compared = list(filled)[::COMPARED_EVERY]
    if by_template([conversations[i] for i in compared]) != [filled[i] for i in compared]:
        filled.clear()
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

    Raises `UserError` if in some row the prompt's tokens are not a prefix of the row's tokens, the begin-of-text token
    stands twice, the completion is empty, or the row does not end with the end-of-text token.
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
    columns = (prompts, prompt_texts, full_texts, heads, ends, rests)
    for prompt, prompt_text, full_text, head, end, rest in zip(*columns, strict=True):
        row = f"the row that asks {prompt[-1]['content'][:60]!r}"
        if not full_text.startswith(prompt_text) or rest[: len(end)] != end:
            prompt_ids, full_ids = encode(tokenizer, [prompt_text, full_text])
            same = len(common_prefix([prompt_ids, full_ids]))
            raise UserError(
                f"chat template breaks parity in {row}: inference ends its prompt with "
                f"{tokenizer.decode(prompt_ids[same:])!r}, training continues with "
                f"{tokenizer.decode(full_ids[same : same + 8])!r}. Name a template of recipes/templates/: "
                "chat_template_path in a recipe, --chat_template elsewhere"
            )
        prompt_ids, completion_ids = head + end, rest[len(end) :]
        if prompt_ids[:2] == [tokenizer.bos_token_id] * 2:
            raise UserError(f"chat template writes the begin-of-text token twice in {row}")
        if not completion_ids:
            raise UserError(f"the completion is empty in {row}: nothing would be trained")
        if completion_ids[-1] != tokenizer.eos_token_id:
            raise UserError(
                f"chat template does not end {row} with {tokenizer.eos_token!r}: the model would never learn to stop. "
                "Name a template of recipes/templates/: chat_template_path in a recipe, --chat_template elsewhere"
            )
        rows.append({"prompt_ids": prompt_ids, "completion_ids": completion_ids})
    return rows


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


def check_rows(dataset: Any, tokenizer: Any, max_length: int | None, name: str) -> list[int]:
    """Check every row of a prepared data set as `split_completions` does; returns its lengths in tokens.

    Rows with tokens (`prepare.py --pretokenize`) were checked when they were made; here only that they were made for
    this tokenizer and template. Raises `UserError` if a row breaks parity, is longer than `max_length` tokens, so that
    TRL would cut its completion, or has tokens for another model.
    """

    def lengths(batch: dict) -> dict:
        rows = split_completions(tokenizer, batch["prompt"], batch["completion"])
        return {"tokens": [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]}

    if "input_ids" in dataset.column_names:
        fingerprint = tokenizer_fingerprint(tokenizer)
        if others := set(dataset.unique("tokenized_for")) - {fingerprint}:
            raise UserError(
                f"{name} rows have tokens for another tokenizer or chat template (fingerprint {others.pop()}, here "
                f"{fingerprint}): prepare them with --pretokenize and this model and --chat_template"
            )
        import pyarrow.compute as pc

        tables = dataset.select_columns(["input_ids"]).with_format("arrow").iter(10_000)
        tokens = [length for table in tables for length in pc.list_value_length(table["input_ids"]).to_pylist()]
    else:  # at every start: a cached verdict could be that of another template
        options = {"remove_columns": dataset.column_names, "load_from_cache_file": False}
        tokens = list(dataset.map(lengths, batched=True, desc=f"Checking {name} rows", **options)["tokens"])
    if too_long := [length for length in tokens if max_length is not None and length > max_length]:
        raise UserError(
            f"{len(too_long)} of {len(tokens)} {name} rows are longer than max_length {max_length} tokens (longest "
            f"{max(too_long)}), and their answers would be cut: set max_length to {max(too_long)} or more"
        )
    return tokens


def trained_columns(dataset: Any) -> list[str]:
    """The columns that SFTTrainer reads: token ids where preparation has made them, else messages."""
    return ["input_ids", "labels"] if "input_ids" in dataset.column_names else ["prompt", "completion"]
