"""Turn medical multiple-choice questions into a chat data set for supervised fine-tuning.

In:  questions with two to ten options: a folder with tables (CSV, JSON, Parquet), one table, a saved `datasets`
     folder, or an id on the Hub. Known sets are recognised; for others, --columns or --format FILE says which column
     holds what.
Out: OUTPUT_DIR with one Parquet file a split (train, dev, test, test_clean), which `datasets.load_dataset` opens, and
     beside them README.md (data set card), report.json and report.html (counts, floors, overlaps, lengths),
     rejected.csv (each rejected row with its reason) and examples.json (three rows of each split, to look at); with
     --check_against, overlaps.csv (training questions that stand in a benchmark, exactly or nearly).

Two passes over chunks of rows, so that memory holds a few numbers a row and only the rejected rows themselves: the
first reads, cleans and reconciles; then every question gets its split; the second writes messages and, with
--pretokenize, token ids.
"""

import argparse
import contextlib
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep import worker
from data_prep.answers import FROM_0, FROM_1, LETTER, NONE, Undecided, judge
from data_prep.arguments import options_of, parse_arguments
from data_prep.figure_rows import read_figures
from data_prep.figures import facts_of_figures
from data_prep.first_rows import mapping_of, print_understood
from data_prep.formats import FORMATS
from data_prep.matching import Overlap, benchmark_files, count_by_kind, known_sets, overlaps, write_overlaps
from data_prep.reading import Reading, check_reading, read_questions, read_sources
from data_prep.reasoning import load_rationales
from data_prep.report import SAMPLED, TEMPLATES, Measures, examples, sampled_lengths, write_report
from data_prep.sample_rows import write_sample
from data_prep.sources import Source, find_sources
from data_prep.splits import LEFT_OUT, SPLITS, held_out, leaked, not_drawn, overlap_table, why_none_held_out
from data_prep.worker import ordered_map
from data_prep.writing import FILES, write_rejected, write_splits
from sft.common.command import (
    UserError,
    atomic_folder,
    check_holds_only,
    check_output_path,
    read_json,
    run,
    terminated_as_exit,
)
from sft.common.display import render
from sft.common.hub import check_push, make_public, push
from sft.common.prompts import PROMPT_VERSION

CHECK_ROWS = 10  # of each source, with --check


def assign_splits(
    reading: Reading, outside: Any, file: Path, args: argparse.Namespace
) -> tuple[Any, Any, dict[str, int], list[Overlap]]:
    """(split of each question, by index or LEFT_OUT, before and after --drop_overlap; left out by reason; overlaps).

    `outside`: not drawn by --max_samples. The overlaps are those of train with the folders of --check_against.
    """
    import numpy as np

    split_of, hashes, left_out, shared = reading.split_of.copy(), reading.hashes, {}, []

    def leave_out(reason: str, those: Any) -> None:
        left_out[reason] = int(those.sum())
        split_of[those] = LEFT_OUT

    if args.max_samples is not None:
        leave_out("not drawn by --max_samples", outside)
    train, dev = SPLITS.index("train"), SPLITS.index("dev")
    has_own_dev = (split_of == dev).any()
    if args.require_reasoning:
        leave_out("no reasoning", np.isin(split_of, (train, dev)) & ~reading.has_reasoning)
    if args.check_against:
        training = split_of == train
        found = overlaps(partial(read_questions, file, training), known_sets(benchmark_files(args.check_against)))
        rows = np.flatnonzero(training)
        shared = [overlap._replace(row=rows[overlap.row]) for overlap in found]
        if args.drop_overlap:
            leave_out("shared with --check_against", np.isin(np.arange(len(split_of)), [row for row, *_ in shared]))
    if not has_own_dev:
        training = np.flatnonzero(split_of == train)
        split_of[training[held_out(hashes["group_hash"][training], args.dev_size)]] = dev
    assigned = split_of.copy()
    if args.drop_overlap:
        leave_out("shared with another split", leaked(split_of, hashes))
    for code, split in enumerate(SPLITS):
        if (reading.split_of == code).any() and not (split_of == code).any():
            why = ", ".join(f"{count} {why}" for why, count in left_out.items())
            raise UserError(f"no question of {split} is left, of {int((reading.split_of == code).sum())}: {why}")
    return assigned, split_of, left_out, shared


def check_lengths(measures: dict[str, Measures], too_long: dict[str, int], args: argparse.Namespace) -> None:
    """Raise `UserError` if a larger share than --max_rejected is too long, or a split has no row left."""
    dropped = sum(count for split, count in too_long.items() if not split.startswith("test"))
    trainable = sum(measured.rows for split, measured in measures.items() if not split.startswith("test"))
    if dropped > args.max_rejected * (trainable + dropped):
        raise UserError(
            f"{dropped} of {trainable + dropped} train and dev rows are longer than --max_length {args.max_length}, "
            f"more than --max_rejected {args.max_rejected:g} allows: see the lengths with --tokenizer and raise it"
        )
    if empty := [split for split, measured in measures.items() if not measured.rows]:
        raise UserError(f"no row of {' and '.join(empty)} is as short as --max_length {args.max_length}: raise it")


def with_lengths(
    measures: dict[str, Measures], heads: dict[str, Any], args: argparse.Namespace
) -> tuple[dict[str, Measures], str, str]:
    """(the measures with lengths in tokens, where a tokenizer is named; their unit; of which rows they are)."""
    if worker.tokenizer is None:
        note = "Characters of question, options, instruction and answer. Pass --tokenizer for tokens."
        return measures, "characters", note
    if args.pretokenize:
        return measures, "tokens", "Tokens of every row, as SFTTrainer makes them."
    measures = {split: measures[split]._replace(lengths=sampled_lengths(head)) for split, head in heads.items()}
    return measures, "tokens", f"Tokens of the first {SAMPLED:,} rows of each split."


def facts_of(source: Source, counts: Counter) -> dict[str, Any]:
    """What the report states of a source; `counts` has its rows by split, and its rejected ones."""
    splits = {split: counts[source.name, split] for split in SPLITS}
    rows = sum(splits.values()) + counts[source.name, "rejected"]
    known = source.format
    facts = {"format": known.name, "title": known.title, "sha256": source.sha256(), "rows": rows, "splits": splits}
    if known != FORMATS.get(known.name):
        facts["columns"] = mapping_of(known, source.answers)
    if source.answers != LETTER:
        facts["answers"] = source.answers
    return facts


def counts_of_options(
    args: argparse.Namespace, reading: Reading, sources: list[Source], counts: Counter, too_long: dict[str, int]
) -> dict[str, Any]:
    """What the report counts only where an option asks for it; `counts` are those of `write_splits`."""
    counted: dict[str, Any] = {}
    if args.shuffle_choices:
        counted["not_shuffled"] = counts["not shuffled"]
    if args.max_length:
        counted["longer_than_max_length"] = too_long
    if args.keep_for_evaluation:
        counted["kept_for_evaluation"] = counts["repeats an option"]
    if args.direct_share:
        counted["answered_directly"] = counts["answered directly"]
    if args.add_reasoning or any(source.format.rationale for source in sources):
        counted["rationales"] = int(reading.has_reasoning.sum())
        if isinstance(worker.rationales, dict):
            counted["rationales_unused"] = len(worker.rationales) - counted["rationales"]
    return counted


def prepare(args: argparse.Namespace, sources: list[Source], folder: Path) -> dict[str, Any]:
    """Write the prepared data set into `folder`; returns the report.

    Raises `UserError` if a source breaks off, too many rows are rejected or too long, or no question is left.
    """
    import pyarrow.parquet as pq

    file = folder / "questions.arrow"
    with ordered_map(args.num_proc) as apply:
        reading = read_sources(sources, file, apply, CHECK_ROWS if args.check else None)
        # Where no row of a check has a rationale, a later one may.
        check_reading(reading, sources, args.max_rejected, None if args.check else worker.rationales)
        outside = not_drawn(reading.split_of, args.max_samples, args.seed)
        figures = read_figures(reading, outside, sources, file, folder, apply, args) if args.figures else {}
        assigned, split_of, left_out, shared = assign_splits(reading, outside, file, args)
        files, measures, counts = write_splits(file, reading.chunk_lengths, split_of, folder, apply, figures)
    file.unlink()
    written = int((split_of != LEFT_OUT).sum())
    if reading.kept != written + sum(left_out.values()):
        raise RuntimeError(f"questions were lost: {reading.kept} kept, {written} written, left out {left_out}")
    too_long = {split: count for split in SPLITS if (count := counts["too long", split])}
    check_lengths(measures, too_long, args)
    heads = {split: pq.ParquetFile(folder / split / name).read_row_group(0) for split, name in files.items()}
    measures, unit, note = with_lengths(measures, heads, args)
    report = {
        "read": reading.read,
        "kept": reading.kept,
        "rejected": len(reading.rejected),
        "duplicates": reading.duplicates,
        "left_out": left_out,
        "splits": {split: measured.rows for split, measured in measures.items()},
        "rejected_by_reason": dict(Counter(reason for _, _, reason, _ in reading.rejected).most_common()),
        "answer_format": args.answer_format,
        "prompt_version": PROMPT_VERSION,
        "seed": args.seed,
        "options": options_of(args),
        "contradictory": reading.contradictory,
        "sources": {source.name: facts_of(source, reading.by_source) for source in sources},
        "files": files,
        "length_unit": unit,
        "length_note": note,
        "measures": {split: measured.statistics() for split, measured in measures.items()},
        "no_dev": "" if "dev" in files else why_none_held_out((assigned == 0).sum(), args.dev_size),
        "overlap": overlap_table(split_of, reading.hashes),
    }
    if args.drop_overlap:
        report["overlap_before"] = overlap_table(assigned, reading.hashes)
    if args.check_against:
        report["overlap_with"] = count_by_kind(shared, benchmark_files(args.check_against))
        names = [*SPLITS, "left out"]  # the last for LEFT_OUT, -1
        write_overlaps(folder / "overlaps.csv", ((names[split_of[overlap.row]], overlap) for overlap in shared))
    report |= {"figures": facts_of_figures(figures.values())} if args.figures else {}
    report |= counts_of_options(args, reading, sources, counts, too_long)
    write_rejected(folder / "rejected.csv", reading.rejected)
    write_report(folder, report, measures, examples(heads, sources), sources)
    return report


def with_answers(sources: list[Source]) -> list[Source]:
    """The sources, each with the way to read its answers; one whose publisher keeps the answers back is left out.

    Raises `UserError` if a column of answers does not show how it is to be read, or no source with answers is left.
    """
    found: dict[str, str | Undecided] = {}
    for source in sources:
        where = str(source.path) if source.path.name == source.name else f"{source.path}, {source.name}"
        try:
            found[source.name] = judge(source.format, partial(source.readable, {*source.format.named}), where)
        except Undecided as error:
            found[source.name] = error
    for source in sources:  # a small file may be too small to show what the others of its format show
        if isinstance(found[source.name], Undecided):
            others = {found[other.name] for other in sources if other.format == source.format} & {FROM_0, FROM_1}
            if len(others) != 1:
                raise found[source.name]
            found[source.name] = others.pop()
    judged = [replace(source, answers=found[source.name]) for source in sources]
    for source in judged:
        if source.answers == NONE:
            what = f"{source.name}: no row has an answer in {source.format.answer}"
            if not source.format.no_answer or len(judged) == 1:
                raise UserError(f"{what}: leave this file or split out")
            print(f"Left out: {what}, which {source.format.title} publishes without answers")
    return [source for source in judged if source.answers != NONE]


def check_is_ours(folder: Path) -> None:
    """Raise `UserError` if `folder` holds anything that preparation does not write: --overwrite must not take it."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    check_holds_only(folder, (*FILES, *(f"{split}/*.parquet" for split in SPLITS)), "a prepared data set")
    report = read_json(folder / "report.json") if (folder / "report.json").exists() else None
    if not (isinstance(report, dict) and "prompt_version" in report):
        raise UserError(f"--overwrite: {folder} has no report.json of a prepared data set: choose another folder")


def main() -> None:
    args = parse_arguments(__doc__)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminated_as_exit())
        if args.check:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            args.output_dir, args.push_to_hub = temporary / "checked", None
            args.max_rejected, args.num_proc, args.require_reasoning = max(args.max_rejected, 0.5), 1, False
            if not args.dataset_path:
                write_sample(temporary / "sample")
                args.dataset_path = str(temporary / "sample")
        check_output_path(args.output_dir, args.overwrite)
        check_is_ours(args.output_dir)
        repo = ("--push_to_hub", args.push_to_hub, "dataset")
        if args.push_to_hub and check_push(*repo, args.public) is not None and not args.overwrite:
            raise UserError(f"--push_to_hub {args.push_to_hub} exists already: pass --overwrite to replace its data")
        benchmark_files(args.check_against or [])
        found = find_sources(args.dataset_path, args.wanted, args.revision, args.config, args.encoding)
        sources = with_answers(found)
        print_understood(sources)
        # Here first: a tokenizer that cannot be had is refused before the work, and forked processes inherit it.
        worker.start(args, load_rationales(args.add_reasoning, sources) if args.add_reasoning else None)
        with atomic_folder(args.output_dir, args.overwrite) as folder:
            report = prepare(args, sources, folder)
        seconds = time.perf_counter() - start
        print(render(TEMPLATES / "terminal.txt", **report), end="")
        if args.check:
            from datasets import load_dataset  # opens what was written as training does

            opened = load_dataset(str(args.output_dir), cache_dir=str(temporary / "cache"))
            if opened.num_rows != report["splits"]:
                raise RuntimeError(f"written {report['splits']}, read {opened.num_rows}")
            print("OK")
            return
        print(f"Wrote {args.output_dir} in {seconds:.1f} s ({report['read'] / seconds:,.0f} rows/s)")
    if args.push_to_hub:
        # overlaps.csv stays here: it holds questions of benchmarks, which must not spread.
        files = [*(name for name in FILES if name != "overlaps.csv"), "*/*.parquet"]
        commit = push(*repo, args.output_dir, "Prepared questions", files, replaced=["*.parquet", "overlaps.csv"])
        if args.public:
            make_public(*repo)
        print(f"Pushed to {commit}")


if __name__ == "__main__":
    run(main)
