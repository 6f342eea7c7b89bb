"""A few rows of each split, to look at before training: raw cells, messages, and what a model makes of them."""

import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

from data_prep import worker
from data_prep.report import Measures
from data_prep.sources import Source, cells_of

EXAMPLES = 3  # rows of each split in examples.json
SAMPLED = 1_000  # rows of each split whose tokens are counted, where not all are


def examples(folder: Path, sources: list[Source], files: dict[str, str]) -> dict[str, list[dict]]:
    """The first rows of each split: raw cells, messages and, with a tokenizer, text, ids and loss mask."""
    import pyarrow.parquet as pq

    splits = {
        split: pq.ParquetFile(folder / split / name).read_row_group(0).slice(0, EXAMPLES).to_pylist()
        for split, name in files.items()
    }
    waiting: dict[str, list[dict]] = {}
    for row in (row for rows in splits.values() for row in rows):
        waiting.setdefault(re.sub(r"#\d+$", "", row["id"]), []).append(row)
        if worker.tokenizer is not None:
            from sft.common.chat_template import explain

            row |= explain(worker.tokenizer, row["prompt"], row["completion"])
    # The sources are read again, up to the last row that is shown.
    last_row = Counter()
    for id, rows in waiting.items():
        source = rows[0]["source"]
        last_row[source] = max(last_row[source], int(id.rpartition("-")[2]))
    for source in sources:
        for number, raw in enumerate(islice(source.rows(), last_row[source.name]), start=1):
            for row in waiting.get(f"{source.stem}-{number}", []):
                row["raw"] = cells_of(raw, source)
    return splits


def sampled_lengths(folder: Path, files: dict[str, str], measures: dict[str, Measures]) -> dict[str, Measures]:
    """The measures with lengths in tokens, counted on the first `SAMPLED` rows of each split. Checks their parity."""
    import pyarrow.parquet as pq

    from sft.common.chat_template import split_completions

    for split, name in files.items():
        rows = pq.ParquetFile(folder / split / name).read_row_group(0, ["prompt", "completion"])
        rows = rows.slice(0, SAMPLED).to_pydict()
        tokens = split_completions(worker.tokenizer, rows["prompt"], rows["completion"])
        lengths = Counter(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in tokens)
        measures[split] = replace(measures[split], lengths=lengths)
    return measures
