"""Which questions of one set stand in another as well, exactly or nearly: in a benchmark, or in a part of a mixture.

Both sets are read twice, row by row. In memory stay a few numbers a row, the words and signatures of the set that is
compared with, and what was found.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.splits import hash64
from sft.common.command import UserError, read_json

# What two questions have in common, the strongest first.
KINDS = ("question and options", "question", "options", "near-duplicate")
# A question that a set asks with so many different sets of options is generic, such as "What does the image show?",
# and so are options that it offers to so many questions, such as yes, no and maybe: they identify nothing.
GENERIC = 3
# Shorter questions, and sets of options, are often the same by chance (characters without spaces and punctuation).
SHORTEST_QUESTION, SHORTEST_OPTIONS = 30, 40
SIMILARITY = 0.8  # Jaccard: of all different words of two questions with options, the share that is in both
PERMUTATIONS = 120  # of a MinHash
BATCH = 2_000  # rows
SHOWN = 120  # characters of a question in the list
_WORD = re.compile(r"\w+")
# More than `fingerprint` removes: collections differ in their dashes and quotation marks too.
_SPACE_AND_PUNCTUATION = re.compile(r"[^\w<>≤≥=+]+")

Row = dict[str, Any]  # with id, question and choices
Rows = Callable[[], Iterable[Row]]  # each call reads them again


class Text(NamedTuple):
    """A question as it is compared."""

    hashes: tuple[int, ...]  # of what KINDS[:3] name; 0 for what identifies nothing
    words: frozenset[str]  # of question and options, but for what is generic


class Overlap(NamedTuple):
    """A row of a set, and the row of another set that it has most in common with."""

    row: int  # from 0, in the first set
    id: str
    other: str  # name of the other set
    other_id: str
    kind: str
    similarity: float
    question: str
    other_question: str


def parts(row: Row) -> tuple[str, str, str]:
    """Question and options, the question, the options: without case, spaces, punctuation and the options' order."""
    question, *options = (
        _SPACE_AND_PUNCTUATION.sub("", text.casefold()) for text in (row["question"], *row["choices"])
    )
    options = "\n".join(sorted(options))
    return f"{question}\n{options}", question, options


def generic_hashes(rows: Iterable[Row]) -> set[int]:
    """Hashes of the questions with `GENERIC` or more sets of options, and of the options with as many questions."""
    import numpy as np

    hashes = np.fromiter((hash64(part) for row in rows for part in parts(row)), np.uint64).reshape(-1, 3)
    _, different = np.unique(hashes[:, 0], return_index=True)
    counted = (np.unique(hashes[different, column], return_counts=True) for column in (1, 2))
    return {value for values, counts in counted for value in values[counts >= GENERIC].tolist()}


def texts(rows: Rows) -> Iterator[tuple[Row, Text]]:
    """Yield each row, and what it is compared by."""
    generic = generic_hashes(rows())
    for row in rows():
        both, question, options = parts(row)
        hashes, words = [hash64(both)], []
        for part, shortest, written in (
            (question, SHORTEST_QUESTION, [row["question"]]),
            (options, SHORTEST_OPTIONS, row["choices"]),
        ):
            hashed = hash64(part)
            tells = hashed not in generic
            hashes.append(hashed if tells and len(part) >= shortest else 0)
            words += _WORD.findall(" ".join(written).casefold()) if tells else []
        yield row, Text(tuple(hashes), frozenset(words))


def batches(rows: Rows) -> Iterator[tuple[list[tuple[Row, Text]], list[Any]]]:
    """Yield `BATCH` rows with what they are compared by, and their MinHashes."""
    from rensa import RMinHash
    from tqdm import tqdm

    compared = iter(tqdm(texts(rows), desc="Comparing", unit=" rows"))
    while batch := list(islice(compared, BATCH)):
        yield batch, RMinHash.from_token_sets([text.words for _, text in batch], num_perm=PERMUTATIONS, seed=0)


def bands_for(similarity: float) -> int:
    """The fewest bands of a MinHash in which 99 of 100 pairs of that similarity share one."""
    divisors = (bands for bands in range(1, PERMUTATIONS + 1) if PERMUTATIONS % bands == 0)
    return next(bands for bands in divisors if (1 - similarity ** (PERMUTATIONS // bands)) ** bands <= 0.01)


class Known:
    """A set that others are compared with."""

    def __init__(self, name: str, rows: Rows, similarity: float = SIMILARITY) -> None:
        from rensa import RMinHashLSH

        self.name, self.similarity = name, similarity
        self.ids, self.questions, self.words = [], [], []
        self.first: list[dict[int, int]] = [{}, {}, {}]  # of each hash, for each of KINDS[:3], the first row
        self.index = RMinHashLSH(similarity, PERMUTATIONS, bands_for(similarity))
        for batch, sketches in batches(rows):
            for (row, text), sketch in zip(batch, sketches, strict=True):
                place = len(self.ids)
                self.ids.append(row["id"])
                self.questions.append(row["question"][:SHOWN])
                self.words.append(" ".join(sorted(text.words)))  # a set would take ten times as much memory
                for first, hashed in zip(self.first, text.hashes, strict=True):
                    first.setdefault(hashed, place)
                # Copies, such as other orders of the same options, would only be found again.
                if text.words and self.first[0][text.hashes[0]] == place:
                    self.index.insert(place, sketch)

    def match(self, text: Text, candidates: Sequence[int]) -> tuple[int, str, float] | None:
        """(row, kind, similarity) of what a question has most in common with, or None."""
        for kind, first, hashed in zip(KINDS, self.first, text.hashes, strict=False):
            if hashed and hashed in first:
                return first[hashed], kind, self.jaccard(text, first[hashed])
        similarity, place = max(((self.jaccard(text, place), -place) for place in candidates), default=(0, 0))
        return (-place, KINDS[-1], similarity) if similarity >= self.similarity else None

    def jaccard(self, text: Text, place: int) -> float:
        """Share of the different words of a question and of row `place` that both have."""
        words = set(self.words[place].split())
        return len(words & text.words) / len(words | text.words) if words or text.words else 1.0


def split_files(folders: Iterable[str]) -> dict[str, Path]:
    """{``FOLDER/SPLIT``: Parquet file} of prepared folders. Raises `UserError` for another, or two of one name."""
    files: dict[str, Path] = {}
    for folder in folders:
        path = Path(folder).resolve()
        report = read_json(path / "report.json") if (path / "report.json").is_file() else None
        splits = report.get("files") if isinstance(report, dict) else None
        if not splits:
            raise UserError(f"{folder} is not a folder that data_prep/prepare.py has written: prepare the data first")
        for split, name in splits.items():
            file = path / split / name
            if not file.is_file():
                raise UserError(
                    f"{folder} lacks the file {split}/{name}, which its report.json names: prepare it again"
                )
            if files.setdefault(f"{path.name}/{split}", file) != file:
                raise UserError(f"two folders are called {path.name}: rename one, so that the list can name both")
    return files


def benchmark_files(folders: Iterable[str]) -> dict[str, Path]:
    """The files of all splits but train. Raises `UserError` as `split_files`, or if a folder has train alone."""
    files = {name: file for name, file in split_files(folders).items() if not name.endswith("/train")}
    for folder in folders:
        if not any(name.startswith(f"{Path(folder).resolve().name}/") for name in files):
            raise UserError(f"{folder} has no test split, but train alone: name the folder of a benchmark")
    return files


def prepared_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a prepared split."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=["id", "question", "choices"]):
        yield from batch.to_pylist()


def known_sets(files: Mapping[str, Path], similarity: float = SIMILARITY) -> list[Known]:
    """The prepared splits of these names, to compare others with."""
    return [Known(name, partial(prepared_rows, file), similarity) for name, file in files.items()]


def overlaps(rows: Rows, others: Sequence[Known]) -> Iterator[Overlap]:
    """Yield, for each row and each other set, what the row has most in common with, if anything."""
    start = 0
    for batch, sketches in batches(rows):
        for other in others:
            candidates = other.index.query_all(sketches)
            for number, ((row, text), near) in enumerate(zip(batch, candidates, strict=True), start):
                if match := other.match(text, near):
                    place, kind, similarity = match
                    yield Overlap(
                        *(number, row["id"], other.name, other.ids[place], kind, similarity),
                        *(row["question"][:SHOWN], other.questions[place]),
                    )
        start += len(batch)


def count_by_kind(found: Iterable[Overlap], names: Iterable[str]) -> dict[str, dict[str, int]]:
    """{name of the other set: {kind: rows}}."""
    counts = {name: dict.fromkeys(KINDS, 0) for name in names}
    for overlap in found:
        counts[overlap.other][overlap.kind] += 1
    return counts


def write_overlaps(file: Path, found: Iterable[tuple[str, Overlap]]) -> None:
    """Write pairs of a row's own set and its overlap as CSV."""
    with open(file, "w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["set", *Overlap._fields[1:]])
        for name, (_, *cells) in found:
            writer.writerow([name, *(f"{cell:.3f}" if isinstance(cell, float) else cell for cell in cells)])
