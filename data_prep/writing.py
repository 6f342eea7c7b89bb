"""The second pass: from questions that know their split to Parquet files of chat rows, one file a split."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep import worker
from data_prep.chat_rows import chat_rows, is_answered_directly, schema
from data_prep.figure_files import base_name
from data_prep.figures import Figure
from data_prep.report import Measures
from data_prep.splits import LEFT_OUT, SPLITS
from sft.common.command import sha256
from sft.common.figures import ARCHIVE

ROW_GROUP = 10_000  # rows
# What a prepared folder holds beside a folder for each split.
FILES = ("README.md", "report.json", "report.html", "rejected.csv", "examples.json", "overlaps.csv", ARCHIVE)


def write_chunk(
    piece: tuple[Path, int, Any, dict[str, tuple[str, str]]],
) -> tuple[dict[str, tuple[Any, Measures]], Counter]:
    """({split: (table of chat rows, their measures)}, counts of what is special) of one chunk of questions.

    The piece has the names in figures.zip and the SHA-256 of its figures, by the names in the rows.
    """
    import pyarrow as pa

    file, number, split_of, figures = piece
    with pa.OSFile(str(file)) as content:
        questions = pa.ipc.open_file(content).get_batch(number)
    options, tables, counts = worker.options, {}, Counter()
    columns = schema(tokenized=options.pretokenize is not None, figures=bool(options.figures))
    for code in set(split_of.tolist()) - {LEFT_OUT}:
        split, rows = SPLITS[code], []
        orders = options.shuffle_choices if split == "train" else 0
        for question in questions.filter(pa.array(split_of == code)).to_pylist():
            if options.figures:
                name, digest = figures.get(base_name(question["figure"]), (None, ""))
                question |= {"images": [name] if name else [], "figure_sha256": digest}
            direct = options.direct_share if split == "train" else 0.0
            if split != "train":  # a question that stood there several times would count so often
                question["reasoning"] = question["reasoning"][:1]
            new = list(chat_rows(question, options.answer_format, orders, options.seed, direct))
            if is_answered_directly(question, direct, options.seed):
                counts["answered directly"] += 1
            if len(set(question["choices"])) < len(question["choices"]):
                counts["repeats an option"] += 1
            if orders and new[0]["id"] == question["id"]:  # the id of an order has a number
                counts["not shuffled"] += 1
            rows += new
        if options.pretokenize:
            rows = tokenize(rows, split, counts)
        table = pa.table({name: [row[name] for row in rows] for name in columns.names}, schema=columns)
        tables[split] = (table, Measures.of(rows))
    return tables, counts


def tokenize(rows: list[dict], split: str, counts: Counter) -> list[dict]:
    """The rows with `input_ids` and `labels`, as SFTTrainer makes them.

    What is longer than max_length leaves train and dev, which the trainer reads, and stays in the test splits.
    """
    from sft.common import chat_template

    kept, max_length = [], worker.options.max_length
    messages = ([row[column] for row in rows] for column in ("prompt", "completion"))
    tokens = chat_template.tokenize(worker.tokenizer, *messages)
    for row, ids, labels in zip(rows, tokens["input_ids"], tokens["labels"], strict=True):
        row |= {"input_ids": ids, "labels": labels, "tokenized_for": worker.fingerprint}
        if max_length is not None and len(ids) > max_length:
            counts["too long", split] += 1
            if not split.startswith("test"):
                continue
        kept.append(row)
    return kept


class SplitWriter:
    """One Parquet file, named after its content. Row groups have `ROW_GROUP` rows, however the rows come."""

    def __init__(self, folder: Path, columns: Any) -> None:
        import pyarrow.parquet as pq

        folder.mkdir()
        self.file = folder / "rows.parquet"
        self.pending = columns.empty_table()
        # Texts and tokens hardly repeat: a dictionary of them would cost time and save nothing.
        repeated = ["answer_format", "article", "source", "tokenized_for"]
        self.writer = pq.ParquetWriter(self.file, columns, compression="zstd", use_dictionary=repeated)

    def write(self, table: Any) -> None:
        import pyarrow as pa

        self.pending = pa.concat_tables([self.pending, table])
        while len(self.pending) >= ROW_GROUP:
            self.writer.write_table(self.pending.slice(0, ROW_GROUP).combine_chunks())
            self.pending = self.pending.slice(ROW_GROUP)

    def close(self) -> str:
        """Write what is pending; returns the file's name."""
        if len(self.pending):
            self.writer.write_table(self.pending.combine_chunks())
        self.writer.close()
        return self.file.rename(self.file.with_name(f"{sha256(self.file)[:16]}.parquet")).name


def figures_of_chunk(file: Path, number: int, figures: dict[str, Figure]) -> dict[str, tuple[str, str]]:
    """The names in figures.zip and the SHA-256 of the figures of one chunk of questions, by the names in its rows."""
    import pyarrow as pa

    if not figures:
        return {}
    with pa.OSFile(str(file)) as content:
        names = {base_name(name) for name in pa.ipc.open_file(content).get_batch(number)["figure"].to_pylist()}
    known = (figures[name] for name in names if name in figures)
    return {figure.name: (figure.stored, figure.sha256) for figure in known if not figure.reason}


def write_splits(
    file: Path, lengths: list[int], split_of: Any, folder: Path, apply: Callable, figures: dict[str, Figure]
) -> tuple[dict[str, str], dict[str, Measures], Counter]:
    """Write each split's Parquet file; returns file names and measures by split, and the counts of `write_chunk`."""
    import numpy as np
    from tqdm import tqdm

    columns = schema(tokenized=worker.options.pretokenize is not None, figures=bool(worker.options.figures))
    writers = {split: SplitWriter(folder / split, columns) for code, split in enumerate(SPLITS) if code in split_of}
    measures = {split: Measures.of([]) for split in writers}
    counts: Counter = Counter()
    pieces = (
        (file, number, codes, figures_of_chunk(file, number, figures))
        for number, codes in enumerate(np.split(split_of, np.cumsum(lengths)[:-1]))
    )
    with tqdm(total=len(split_of), desc="Writing", unit=" rows") as progress:
        for length, (tables, chunk_counts) in zip(lengths, apply(write_chunk, pieces), strict=True):
            for split, (table, measured) in tables.items():
                writers[split].write(table)
                measures[split] += measured
            counts += chunk_counts
            progress.update(length)
    return {split: writer.close() for split, writer in writers.items()}, measures, counts


def write_rejected(file: Path, rejected: list[tuple[str, int, str, Any]]) -> None:
    """Write file, row number, reason and the raw cells (as JSON) of every rejected row."""
    with open(file, "w", encoding="utf-8", errors="backslashreplace", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["file", "row", "reason", "cells"])
        for source, row, reason, raw in rejected:
            cells = raw.rstrip() if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)
            # A NUL byte stays visible, and readers of CSV do not stumble over it.
            writer.writerow([source, row, reason, cells.replace("\0", "\\0")])
