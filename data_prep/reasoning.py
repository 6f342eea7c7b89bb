"""Rationales to train on, from a file or from a column of the source. None is ever invented."""

import json
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from data_prep.sources import Source
from sft.common.command import UserError
from sft.common.table import RejectedRow, each_once


def load_rationales(value: str, sources: Iterable[Source]) -> dict[str, list[str]] | str:
    """What `--add_reasoning` names: {row id: rationales} from a file, or the name of a column of some source.

    A file is JSON lines (.jsonl) or Parquet (.parquet) with the fields `id` and `reasoning`, a text or a list of
    texts. Raises `UserError` if there is neither file nor column, if the file lacks these fields, or if a column or an
    id stands twice.
    """
    file = Path(value)
    read = {".jsonl": _read_jsonl, ".parquet": _read_parquet}.get(file.suffix)
    if read is None:
        columns = [source.columns.count(value) for source in sources]
        if max(columns) > 1:
            raise UserError(f"--add_reasoning {value}: two columns of one source are called so: rename the wrong one")
        if any(columns):
            return value
        raise UserError(
            f"--add_reasoning {value}: no source has such a column, and it is not a .jsonl or .parquet file: give a "
            "column, or a file with the fields id and reasoning"
        )
    rationales: dict[str, list[str]] = {}
    try:
        for number, (id, text) in enumerate(read(file), start=1):
            id, texts = str(id), [text] if isinstance(text, str) else text or []
            if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
                raise UserError(f"--add_reasoning {file}: row {number}: the reasoning of {id} is not text")
            if id in rationales:
                raise UserError(f"--add_reasoning {file}: row {number}: the id {id} stands twice")
            rationales[id] = texts
    except OSError as error:
        raise UserError(f"--add_reasoning {file}: cannot be read: {error.strerror or error}") from error
    return rationales


def _read_jsonl(file: Path) -> Iterable[tuple[str, Any]]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if not line.isspace():
                    yield itemgetter("id", "reasoning")(json.loads(line, object_pairs_hook=each_once))
            except (ValueError, TypeError, KeyError, RecursionError, RejectedRow) as error:
                where = f"--add_reasoning {file}: line {number}"
                raise UserError(f"{where} is not a JSON object with id and reasoning, each once") from error


def _read_parquet(file: Path) -> Iterable[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["id", "reasoning"])
        return zip(table["id"].to_pylist(), table["reasoning"].to_pylist(), strict=True)
    except (pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"--add_reasoning {file}: not a Parquet file with the columns id and reasoning") from error
