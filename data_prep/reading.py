"""The first pass: read the sources in chunks, clean and reconcile every row, and keep hashes to tell rows apart by.

Questions go to a temporary Arrow file; in memory stay a few numbers a row.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep import worker
from data_prep.questions import THINK_TAGS, Question, RejectedRow, fingerprint
from data_prep.rows import read_row
from data_prep.sources import Source, cells_of
from data_prep.splits import LEFT_OUT, OVERLAPS, SPLITS, first_occurrences, hash64
from sft.common.command import UserError
from sft.common.table import sound

CHUNK = 2_000  # rows a piece of work: more would take memory and save no time
HASHES = ("content_hash", "prompt_hash", "group_hash", *OVERLAPS.values())


_hash_again = lru_cache(maxsize=64)(hash64)  # of articles and figures, which several rows in a row share

# What to do where a reason that begins so is the most common one: a complete file is then likely to have the fault.
REMEDIES = {
    "row is not UTF-8 text": "save the file as UTF-8, or name its encoding, as in --encoding cp1252",
    "label is not one of A, B": "write the letter of the right option",
    "two options are the same": "correct them, or keep them in dev and test with --keep_for_evaluation",
    "the file's name and the split column": "rename the file, so that its name has no split",
    "not exactly one option is marked": "name the column of the answers (answer=label), or mark one option",
    "its last lines are not options": "write each option in a line of its own, A. to J., with nothing behind them",
    "an option holds a think tag": "remove the tags, at which chat templates cut the answer",
    "a key stands twice": "rename or remove the wrong one",
    "figure is missing": "name the folder or ZIP file that holds it, too, with --figures",
    "no figure is named": "leave these rows out, or prepare them without --figures",
    "a cell is a list or an object": "write one question a line, with text in every cell",
}


@dataclass
class Reading:
    """What became of the rows: read = kept + rejected + duplicates. Arrays have one entry a sound row."""

    read: int
    kept: int
    duplicates: int
    rejected: list[tuple[str, int, str, Any]]  # source, row, reason, raw cells
    chunk_lengths: list[int]  # sound rows in each chunk of the file
    split_of: Any  # int8, index into SPLITS, or LEFT_OUT for duplicates
    has_reasoning: Any  # bool
    hashes: dict[str, Any]  # uint64, by name
    by_source: Counter  # sound rows by (source, split), and rejected rows by (source, "rejected")
    contradictory: int  # sound rows that another row answers otherwise: same split, figure, question and options


def chunks(sources: Iterable[Source], most: int | None = None) -> Iterator[tuple[Source, int, list[Any]]]:
    """Yield (source, number of the first row, raw rows), at most `most` rows of each source."""
    for source in sources:
        rows, first = islice(source.rows(), most), 1
        while raw := list(islice(rows, CHUNK)):
            yield source, first, raw
            first += len(raw)


def questions_schema() -> Any:
    """The `pyarrow` schema of a chunk of questions: the fields of `Question`, and 64-bit hashes to compare by."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    types = {"row": pa.int32(), "gold": pa.int8(), "choices": texts, "reasoning": texts}
    fields = [(name, types.get(name, pa.string())) for name in Question._fields]
    return pa.schema(fields + [(name, pa.uint64()) for name in HASHES])


def hashes_of(question: Question) -> tuple[int, ...]:
    """Values of the columns `HASHES`. The group's hash includes the seed; dev takes articles in its order."""
    prompt = "\n".join([question.split, question.figure, question.question, *question.choices])
    return (
        hash64(f"{prompt}\n{question.gold}"),
        hash64(prompt),
        _hash_again(f"{worker.options.seed}:{question.article or question.id}"),
        _hash_again(question.article),
        _hash_again(question.uncut_figure),
        hash64(fingerprint(question.question, question.choices)),
    )


def clean_reasoning(text: Any) -> str:
    """The rationale without outer white space. Raises `RejectedRow` if it is not text, or holds a think tag."""
    if not isinstance(text, str):
        raise RejectedRow("rationale is not text")
    if any(tag in text for tag in THINK_TAGS):
        raise RejectedRow("rationale holds a think tag")
    return unicodedata.normalize("NFC", sound(text)).strip()


def read_chunk(chunk: tuple[Source, int, list[Any]]) -> tuple[Any, list[tuple[str, int, str, Any]]]:
    """(record batch of the sound questions, rejected rows with their reasons) of one chunk."""
    import pyarrow as pa

    source, first, raw_rows = chunk
    rationales, may_repeat = worker.rationales, worker.options.keep_for_evaluation
    kept, rejected = [], []
    for number, raw in enumerate(raw_rows, start=first):
        try:
            cells = cells_of(raw, source)
            place = (source.stem, source.name, number)
            question = read_row(cells, source.format, source.answers, place, source.split, may_repeat)
            texts = question.reasoning
            if rationales is not None:
                column = isinstance(rationales, str)
                texts = [cells.get(rationales, "")] if column else rationales.get(question.id, [])
            cleaned = [clean_reasoning(text) for text in texts if text]
            question = question._replace(reasoning=[text for text in cleaned if text])
            kept.append((*question, *hashes_of(question)))
        except RejectedRow as reason:
            rejected.append((source.name, number, str(reason), raw))
    schema = questions_schema()
    columns = list(zip(*kept, strict=True)) or [()] * len(schema)
    return pa.record_batch(columns, schema=schema), rejected


def read_sources(sources: list[Source], file: Path, apply: Callable, most: int | None) -> Reading:
    """Read every row (at most `most` of a source) into `file` (Arrow). Of exact duplicates in a split one is kept."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from tqdm import tqdm

    rejected, chunk_lengths = [], []
    with pa.ipc.new_file(file, questions_schema()) as writer, tqdm(desc="Reading", unit=" rows") as progress:
        for batch, faults in apply(read_chunk, chunks(sources, most)):
            writer.write_batch(batch)
            rejected += faults
            chunk_lengths.append(len(batch))
            progress.update(len(batch) + len(faults))
    by_source = Counter((source, "rejected") for source, *_ in rejected)
    with pa.memory_map(str(file)) as content:
        table = pa.ipc.open_file(content).read_all()
        hashes = {name: np.array(table[name]) for name in HASHES}
        split_of = np.array(pc.index_in(table["split"], pa.array(SPLITS)), np.int8)
        has_reasoning = np.array(pc.greater(pc.list_value_length(table["reasoning"]), 0), bool)
        for row in table.group_by(["source", "split"]).aggregate([([], "count_all")]).to_pylist():
            by_source[row["source"], row["split"]] = row["count_all"]
        if any(source.format.id for source in sources):
            ids = table["id"].value_counts().to_pylist()
            if twice := [each["values"] for each in ids if each["counts"] > 1]:
                raise UserError(
                    f"the id {twice[0]} stands in several rows ({len(twice)} such ids): map no id, or mend it"
                )
    first = first_occurrences(hashes["content_hash"])
    split_of[~first] = LEFT_OUT
    return Reading(
        read=len(first) + len(rejected),
        kept=int(first.sum()),
        duplicates=int((~first).sum()),
        rejected=rejected,
        chunk_lengths=chunk_lengths,
        split_of=split_of,
        has_reasoning=has_reasoning,
        hashes=hashes,
        by_source=by_source,
        contradictory=int((~first_occurrences(hashes["prompt_hash"][first])).sum()),
    )


def read_questions(file: Path, wanted: Any) -> Iterator[dict[str, Any]]:
    """Yield id, question and choices of the sound rows in `file` for which the boolean array `wanted` is true."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as content:
        reader, start = pa.ipc.open_file(content), 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number).select(["id", "question", "choices"])
            yield from batch.filter(pa.array(wanted[start : start + len(batch)])).to_pylist()
            start += len(batch)


def check_every_source(reading: Reading, sources: Iterable[Source]) -> None:
    """Raise `UserError` if a source has no sound row: it would be missing from the data, unnoticed."""
    for source in sources:
        if not any(reading.by_source[source.name, split] for split in SPLITS):
            reasons = Counter(reason for name, _, reason, _ in reading.rejected if name == source.name)
            why = (
                "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3)) or "it has a header alone"
            )
            raise UserError(f"no row of {source.name} was accepted: {why}: leave the file out or mend it")


def check_reading(
    reading: Reading, sources: list[Source], max_rejected: float, rationales: dict[str, list[str]] | str | None
) -> None:
    """Raise `UserError` if a source has no sound row, more than `max_rejected` were rejected, or no rationale fits."""
    if not reading.read:
        raise UserError("the source files hold a header and no rows: is the download complete?")
    if reading.kept:
        check_every_source(reading, sources)
    check_rejected(reading, max_rejected)
    if rationales is not None and not reading.has_reasoning.any():
        known = (
            f"; its ids look like {next(iter(rationales))!r}" if isinstance(rationales, dict) and rationales else ""
        )
        raise UserError(f"--add_reasoning: no question has a rationale there{known}; row ids look like 'train-17'")


def check_rejected(reading: Reading, max_rejected: float) -> None:
    """Raise `UserError` if no row is left, or if more than `max_rejected` of them were rejected."""
    rejected = len(reading.rejected)
    if not reading.kept or rejected > max_rejected * reading.read:
        reasons = Counter(reason for _, _, reason, _ in reading.rejected)
        commonest = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        source, row, reason, _ = reading.rejected[0]
        remedy = next((text for words, text in REMEDIES.items() if commonest.startswith(words)), "correct these rows")
        commonest += f". The first is {source} row {row}: {reason}. To do: {remedy}"
        if not reading.kept:
            raise UserError(f"no row is left after cleaning: all {reading.read} were rejected: {commonest}")
        raise UserError(
            f"{rejected} of {reading.read} rows were rejected, more than --max_rejected {max_rejected:g} allows: "
            f"{commonest}, or allow more, which leaves them out"
        )
