"""Turn PMC-VQA CSV files into a chat data set for supervised fine-tuning.

In: a folder with train.csv, test.csv and/or test_clean.csv (version 1 header), or one CSV file.
Out: OUTPUT_DIR with one Parquet folder a split (train, dev, test, ...), which `datasets.load_dataset(OUTPUT_DIR)`
opens, and beside them README.md (data set card), report.json (counts), rejected.csv (each rejected row with its
reason) and examples.json (three rows of each split, to look at). Dev is held out from train by article.
"""

import argparse
import csv
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.command import UserError, run, whole_folder, write_json
from data_prep.prompts import (
    ANSWER_FORMATS,
    DEFAULT_ANSWER_FORMAT,
    PROMPT_VERSION,
    answer_text,
    completion_messages,
    prompt_messages,
)
from data_prep.questions import V1_HEADER, Question, RejectedRow, read_v1_row

# Dev never takes more than this share of the training questions, whatever --dev_size says.
MAX_DEV_SHARE = 0.1


@dataclass
class Reading:
    """What became of the rows that were read: read = kept + rejected + duplicates."""

    splits: dict[str, list[Question]] = field(default_factory=dict)
    rejected: list[tuple[str, int, str, list[str]]] = field(default_factory=list)  # file, row, reason, cells
    read: int = 0
    duplicates: int = 0

    @property
    def kept(self) -> int:
        return sum(map(len, self.splits.values()))


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def source_files(path: Path) -> list[Path]:
    """The CSV files at `path`, a file or a folder.

    Raises:
        UserError: nothing there.
    """
    if not path.exists():
        raise UserError(
            f"--dataset_path {path} does not exist: give the folder that holds train.csv and test.csv, or one CSV file"
        )
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--dataset_path {path} holds no .csv file: give the folder that holds train.csv and test.csv")
    return files


def split_of(file: Path) -> str:
    """The split that a file belongs to, by its name: test_clean and test keep theirs, the rest is training data."""
    return next((split for split in ("test_clean", "test") if file.stem.startswith(split)), "train")


def read_cells(file: Path) -> Iterator[list[str]]:
    """The rows of a version 1 CSV file behind its header, every cell a string.

    Raises:
        UserError: the file is not text, not CSV, or has another header.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines, strict=True)
            header = tuple(name.strip() for name in next(rows, []))
            if header != V1_HEADER:
                raise UserError(
                    f"{file}: the first line is not the PMC-VQA version 1 header: expected {','.join(V1_HEADER)}, "
                    f"found {','.join(header)[:200] or 'an empty file'}"
                )
            try:
                yield from rows
            except csv.Error as error:
                raise UserError(f"{file}: broken CSV near line {rows.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}): is it the CSV file?") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def read_sources(files: Iterable[Path]) -> Reading:
    """Read, clean and reconcile every row; exact duplicates within a split are kept once."""
    from tqdm import tqdm

    reading = Reading()
    seen = set()
    for file in files:
        split = split_of(file)
        questions = reading.splits.setdefault(split, [])
        for row, cells in enumerate(tqdm(read_cells(file), desc=f"Reading {file.name}", unit=" rows"), start=1):
            reading.read += 1
            try:
                question = read_v1_row(cells, file.name, row)
            except RejectedRow as reason:
                reading.rejected.append((file.name, row, str(reason), cells))
                continue
            content = (split, question.figure, question.question, question.choices, question.gold)
            if content in seen:
                reading.duplicates += 1
                continue
            seen.add(content)
            questions.append(question)
    return reading


def check_rejected(reading: Reading, max_rejected: float) -> None:
    """Raise `UserError` if no row is left, or if a larger share than `max_rejected` was rejected."""
    reasons = Counter(reason for _, _, reason, _ in reading.rejected)
    commonest = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
    if not reading.read:
        raise UserError("the source files hold a header and no rows: is the download complete?")
    if not reading.kept:
        raise UserError(f"no row is left after cleaning: all {reading.read} were rejected: {commonest}")
    if len(reading.rejected) > max_rejected * reading.read:
        raise UserError(
            f"{len(reading.rejected)} of {reading.read} rows were rejected, more than --max_rejected {max_rejected:g} "
            f"allows: {commonest}. Check the files, or allow more"
        )


def hold_out_dev(questions: list[Question], dev_size: int, seed: int) -> tuple[list[Question], list[Question]]:
    """(train, dev): whole articles, in the order of a seeded hash, until dev holds `dev_size` questions.

    Dev never exceeds `MAX_DEV_SHARE` of the questions. A question of unknown article is an article of its own.
    """
    wanted = min(dev_size, int(MAX_DEV_SHARE * len(questions)))
    articles: dict[str, list[Question]] = {}
    for question in questions:
        articles.setdefault(question.article or question.id, []).append(question)
    held_out: set[str] = set()
    for article in sorted(articles, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        if wanted <= 0:
            break
        if len(articles[article]) <= wanted:
            held_out.add(article)
            wanted -= len(articles[article])
    train, dev = [], []
    for question in questions:
        (dev if (question.article or question.id) in held_out else train).append(question)
    return train, dev


def chat_row(question: Question, answer_format: str) -> dict:
    """One row of the prepared data set; its columns are the contract with `sft/`."""
    answer = answer_text(question.choices, question.gold, answer_format)
    return {
        "id": question.id,
        "prompt": prompt_messages(question.question, question.choices, answer_format),
        "completion": completion_messages(answer),
        "question": question.question,
        "choices": list(question.choices),
        "gold": question.gold,
        "answer_format": answer_format,
        "article": question.article,
        "figure": question.figure,
    }


def write_parquet(rows: list[dict], folder: Path) -> str:
    """Write rows with the types of the data contract, in row groups of 10,000; returns the file's name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    turn = [("role", text), ("content", text)]
    schema = pa.schema(
        [
            ("id", text),
            ("prompt", pa.list_(pa.struct(turn))),
            ("completion", pa.list_(pa.struct([*turn, ("reasoning_content", text)]))),
            ("question", text),
            ("choices", pa.list_(text)),
            ("gold", pa.int32()),
            ("answer_format", text),
            ("article", text),
            ("figure", text),
        ]
    )
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "rows.parquet", row_group_size=10_000)
    name = f"{sha256(folder / 'rows.parquet')[:16]}.parquet"
    (folder / "rows.parquet").rename(folder / name)
    return name


def data_card(splits: dict[str, list[dict]], report: dict) -> str:
    """README.md of the prepared folder. Its header names the splits, so that `load_dataset` calls dev "dev".

    It also names each file, and each file is named after its content: `load_dataset` takes a local folder's cache key
    from this header alone (datasets 5.2), not from the files or the folder's place, and would otherwise serve the rows
    of any folder of the same name that it has seen before.
    """
    files = "\n".join(f"  - split: {split}\n    path: {split}/{report['files'][split]}" for split in splits)
    counts = "\n".join(f"| {split} | {len(rows)} |" for split, rows in splits.items())
    sources = "\n".join(f"- `{name}`, SHA-256 `{digest}`" for name, digest in report["sources"].items())
    return f"""---
task_categories:
- question-answering
language:
- en
configs:
- config_name: default
  data_files:
{files}
---
# PMC-VQA, prepared for supervised fine-tuning

| split | questions |
|---|---|
{counts}

{report["read"]} rows read, {report["kept"]} kept, {report["rejected"]} rejected, {report["duplicates"]} duplicates.
Answer format `{report["answer_format"]}`, prompt version {report["prompt_version"]}, seed {report["seed"]}.
Dev is held out from train by article. PMC-VQA is distributed under CC BY-SA. Sources:

{sources}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_path", type=Path, required=True, help="folder with the CSV files, or one CSV file")
    parser.add_argument("--output_dir", type=Path, default=Path("PMC-VQA-Processed"))
    parser.add_argument("--max_samples", type=int, help="keep at most this many questions of each source split")
    parser.add_argument("--answer_format", choices=ANSWER_FORMATS, default=DEFAULT_ANSWER_FORMAT)
    parser.add_argument("--dev_size", type=int, default=2000, help="questions held out from train (at most 10 %%)")
    parser.add_argument("--max_rejected", type=float, default=0.01, help="largest share of rows that may be rejected")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    args = parser.parse_args()
    if args.max_samples is not None and args.max_samples < 1:
        raise UserError(f"--max_samples {args.max_samples}: give a positive number of questions")
    if args.output_dir.exists() and not args.overwrite:
        raise UserError(f"{args.output_dir} exists already: pass --overwrite to replace it, or choose another folder")

    start = time.perf_counter()
    files = source_files(args.dataset_path)
    reading = read_sources(files)
    check_rejected(reading, args.max_rejected)

    splits = {}
    for split, questions in reading.splits.items():
        if args.max_samples is not None and len(questions) > args.max_samples:
            drawn = random.Random(args.seed).sample(range(len(questions)), args.max_samples)  # noqa: S311
            questions = [questions[index] for index in sorted(drawn)]
        if split == "train":
            splits["train"], splits["dev"] = hold_out_dev(questions, args.dev_size, args.seed)
        else:
            splits[split] = questions
    rows = {
        split: [chat_row(question, args.answer_format) for question in splits[split]]
        for split in ("train", "dev", "test", "test_clean")
        if splits.get(split)
    }
    report = {
        "read": reading.read,
        "kept": reading.kept,
        "rejected": len(reading.rejected),
        "duplicates": reading.duplicates,
        "splits": {split: len(split_rows) for split, split_rows in rows.items()},
        "rejected_by_reason": dict(Counter(reason for _, _, reason, _ in reading.rejected).most_common()),
        "answer_format": args.answer_format,
        "prompt_version": PROMPT_VERSION,
        "seed": args.seed,
        "sources": {file.name: sha256(file) for file in files},
    }
    if report["read"] != report["kept"] + report["rejected"] + report["duplicates"]:
        raise RuntimeError(f"rows were lost: {report}")

    with whole_folder(args.output_dir, args.overwrite) as folder:
        report["files"] = {split: write_parquet(split_rows, folder / split) for split, split_rows in rows.items()}
        write_json(folder / "examples.json", {split: split_rows[:3] for split, split_rows in rows.items()})
        write_json(folder / "report.json", report)
        (folder / "README.md").write_text(data_card(rows, report), encoding="utf-8")
        with open(folder / "rejected.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "row", "reason", "cells"])
            writer.writerows((*fault, json.dumps(cells, ensure_ascii=False)) for *fault, cells in reading.rejected)

    seconds = time.perf_counter() - start
    print(f"Read {reading.read} rows: {reading.kept} kept, {len(reading.rejected)} rejected, ", end="")
    print(f"{reading.duplicates} duplicates ({reading.read / seconds:,.0f} rows/s)")
    for reason, count in report["rejected_by_reason"].items():
        print(f"  rejected {count}: {reason}")
    print(f"Wrote {args.output_dir}: " + ", ".join(f"{split} {len(split_rows)}" for split, split_rows in rows.items()))


if __name__ == "__main__":
    run(main)
