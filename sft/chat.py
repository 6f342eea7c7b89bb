"""Chat templates: read one, and prove on every row that training and inference see the same tokens.

Architecture rule: the tokens before the first trained token are exactly the tokens before the first generated one.
A template that breaks it trains a model that was never asked in the way it will be asked.
"""

from pathlib import Path
from typing import Any

from data_prep.command import UserError


def set_chat_template(tokenizer: Any, template: str | Path | None) -> None:
    """Give `tokenizer` the Jinja template in the file `template`, or check that it has one of its own.

    Raises:
        UserError: no such file, or no template at all.
    """
    if template is not None:
        file = Path(template)
        if not file.is_file():
            raise UserError(f"chat template {file} does not exist: choose one of recipes/templates/*.jinja")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    elif tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template: name one of recipes/templates/*.jinja")


def token_ids(tokenizer: Any, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[list[int]]:
    """Token ids of each conversation, rendered by the tokenizer's chat template."""
    return tokenizer.apply_chat_template(
        conversations, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
    )["input_ids"]


def split_completions(tokenizer: Any, prompts: list[list[dict]], completions: list[list[dict]]) -> list[dict]:
    """``{"prompt_ids", "completion_ids"}`` of each row, cut where generation would start.

    Raises:
        UserError: in some row the prompt's tokens are not a prefix of the whole row's tokens, the begin-of-text token
            stands twice, the completion is empty, or the row does not end with the end-of-text token.
    """
    rows = []
    asked = token_ids(tokenizer, prompts, add_generation_prompt=True)
    told = token_ids(tokenizer, [p + c for p, c in zip(prompts, completions, strict=True)])
    for prompt_ids, full_ids, prompt in zip(asked, told, prompts, strict=True):
        row = f"the row that asks {prompt[-1]['content'][:60]!r}"
        cut = len(prompt_ids)
        if full_ids[:cut] != prompt_ids:
            same = next(i for i, (a, b) in enumerate(zip([*full_ids, None], prompt_ids, strict=False)) if a != b)
            raise UserError(
                f"chat template breaks parity in {row}: inference ends its prompt with "
                f"{tokenizer.decode(prompt_ids[same:])!r}, training continues with "
                f"{tokenizer.decode(full_ids[same : same + 8])!r}. Set chat_template_path to a template of "
                "recipes/templates/"
            )
        if full_ids[:2] == [tokenizer.bos_token_id] * 2:
            raise UserError(f"chat template writes the begin-of-text token twice in {row}")
        if len(full_ids) == cut:
            raise UserError(f"the completion is empty in {row}: nothing would be trained")
        if full_ids[-1] != tokenizer.eos_token_id:
            raise UserError(
                f"chat template does not end {row} with {tokenizer.eos_token!r}: the model would never learn to stop. "
                "Set chat_template_path to a template of recipes/templates/"
            )
        rows.append({"prompt_ids": prompt_ids, "completion_ids": full_ids[cut:]})
    return rows


def check_rows(dataset: Any, tokenizer: Any, max_length: int | None, name: str) -> list[int]:
    """Check every row of a prompt/completion data set as `split_completions` does; returns its lengths in tokens.

    Raises:
        UserError: a row breaks parity, or is longer than `max_length` tokens, so that TRL would cut its completion.
    """

    def lengths(batch: dict) -> dict:
        rows = split_completions(tokenizer, batch["prompt"], batch["completion"])
        return {"tokens": [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]}

    # Repeated at every start: a cached verdict could be that of another template.
    checked = dataset.map(
        lengths,
        batched=True,
        remove_columns=dataset.column_names,
        load_from_cache_file=False,
        desc=f"Checking {name} rows",
    )
    tokens = list(checked["tokens"])
    too_long = [length for length in tokens if max_length is not None and length > max_length]
    if too_long:
        raise UserError(
            f"{len(too_long)} of {len(tokens)} {name} rows are longer than max_length {max_length} tokens (longest "
            f"{max(too_long)}), and their answers would be cut: set max_length to {max(too_long)} or more"
        )
    return tokens
