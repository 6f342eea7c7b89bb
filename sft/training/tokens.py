"""The token ids that SFTTrainer gets: every row checked, made once, and kept in the cache of `datasets`.

SFTTrainer leaves rows with `input_ids` as they are. Its own preparation makes the same ids, row by row in one process
(tests/data_prep/test_pretokenize.py compares them).
"""

import hashlib
from pathlib import Path
from typing import Any

from sft.common import chat_template
from sft.common.command import UserError, sha256, usable_cores

# Below this number of rows, starting processes takes longer than the work.
ROWS_PER_PROCESS = 5_000


def tokenized(dataset: Any, tokenizer: Any, name: str, max_length: int | None, num_proc: int | None = None) -> Any:
    """The rows of a prepared data set as `input_ids` and `labels`, in their order, each row checked.

    Rows with tokens (`prepare.py --pretokenize`) were checked when they were made; here only that they were made for
    this tokenizer and template. Others are checked as `tokenize` does, on all cores. The first process of each machine
    does the work, the others wait and read its cache, and so does a later run with the same data, vocabulary and
    chat template.

    Raises `UserError` if a row breaks parity, is longer than `max_length` tokens, so that TRL would cut its
    completion, or has tokens for another model.
    """
    fingerprint = chat_template.tokenizer_fingerprint(tokenizer)
    if "input_ids" in dataset.column_names:
        if others := set(dataset.unique("tokenized_for")) - {fingerprint}:
            raise UserError(
                f"{name} rows have tokens for another tokenizer or chat template (fingerprint {others.pop()}, here "
                f"{fingerprint}): prepare them with --pretokenize and this model and --chat_template"
            )
        tokens = dataset.select_columns(["input_ids", "labels"])
    else:
        # What decides the tokens, and whether they are accepted; a pickled tokenizer changes as it is used.
        parts = (dataset._fingerprint, fingerprint, tokenizer.eos_token, tokenizer.bos_token)
        parts += (sha256(Path(chat_template.__file__)),)
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        tokens = mapped(dataset, _tokenize_batch, tokenizer, digest, num_proc, f"Tokenizing {name} rows", _features())
    check_lengths(lengths_of(tokens), max_length, name)
    return tokens


def mapped(
    rows: Any, batch_of: Any, tokenizer: Any, digest: str, num_proc: int | None, words: str, features: Any = None
) -> Any:
    """The columns that `batch_of(batch, tokenizer)` makes of rows, on all cores, kept in the cache under `digest`.

    The first process of each machine does the work, and the others read its cache.
    """
    from accelerate import PartialState

    cores = num_proc or usable_cores()
    with PartialState().local_main_process_first():
        return rows.map(
            batch_of,
            batched=True,
            fn_kwargs={"tokenizer": tokenizer},
            remove_columns=rows.column_names,
            features=features,
            new_fingerprint=digest,
            num_proc=cores if len(rows) > ROWS_PER_PROCESS * cores > ROWS_PER_PROCESS else None,
            desc=words,
        )


def check_lengths(lengths: list[int], max_length: int | None, name: str) -> None:
    """Raise `UserError` for rows longer than `max_length` tokens, if there is such a limit."""
    if max_length is not None and (too_long := [length for length in lengths if length > max_length]):
        raise UserError(
            f"{len(too_long)} of {len(lengths)} {name} rows are longer than max_length {max_length} tokens (longest "
            f"{max(too_long)}), and their answers would be cut: set max_length to {max(too_long)} or more"
        )


def lengths_of(tokens: Any) -> list[int]:
    """Tokens of each row."""
    import pyarrow.compute as pc

    tables = tokens.select_columns(["input_ids"]).with_format("arrow").iter(10_000)
    return [length for table in tables for length in pc.list_value_length(table["input_ids"]).to_pylist()]


def highest_id(tokens: Any) -> int:
    """The largest token id of all rows."""
    import pyarrow.compute as pc

    tables = tokens.select_columns(["input_ids"]).with_format("arrow").iter(10_000)
    return max(pc.max(pc.list_flatten(table["input_ids"])).as_py() for table in tables)


def _tokenize_batch(batch: dict[str, list], tokenizer: Any) -> dict[str, list]:
    return chat_template.tokenize(tokenizer, batch["prompt"], batch["completion"])


def _features() -> Any:
    from datasets import Features, List, Value

    return Features({name: List(Value("int32")) for name in ("input_ids", "labels")})
