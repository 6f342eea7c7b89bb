"""Count and list training questions that stand in other prepared data as well, exactly or nearly.

    python data_prep/overlap.py PMC-VQA-Processed MedMCQA-Processed --against MedQA-Processed --output overlaps.csv

In:  folders written by data_prep/prepare.py: those of a mixture and, behind --against, those of benchmarks.
Out: for the train split of each FOLDER and every other split (but train of a benchmark), one line with its rows that
     stand there too, by what they share: question and options, the question alone, the options alone, or most of the
     words (near-duplicate). A row counts once, for the first of these. docs/data.md has the rules. With --output, all
     these rows, each beside the one that it resembles most, as CSV.
"""

import argparse
from functools import partial
from pathlib import Path

from data_prep.matching import (
    KINDS,
    SIMILARITY,
    benchmark_files,
    count_by_kind,
    known_sets,
    overlaps,
    prepared_rows,
    split_files,
    write_overlaps,
)
from sft.common.command import UserError, atomic_write, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="prepared data set with a train split")
    parser.add_argument("--against", nargs="+", default=[], metavar="BENCHMARK", help="prepared data to be tested on")
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV file for the list")
    parser.add_argument(
        "--similarity", type=float, default=SIMILARITY, help="of near-duplicates, 0.5 to 1 (%(default)s)"
    )
    args = parser.parse_args()
    if not 0.5 <= args.similarity <= 1:
        raise UserError(f"--similarity {args.similarity:g}: give a share of common words from 0.5 to 1")
    if args.output and not args.output.parent.is_dir():
        raise UserError(f"--output: there is no folder {args.output.parent}")
    split_files([*args.folders, *args.against])  # refuses two of one name
    files = split_files(args.folders) | benchmark_files(args.against)
    training = {f"{Path(folder).resolve().name}/train": folder for folder in args.folders}
    if missing := training.keys() - files.keys():
        raise UserError(f"{training[min(missing)]} has no train split: name it behind --against")
    # The only train split is compared with others, and no other with it.
    compared = {name: file for name, file in files.items() if [*training] != [name]}
    if not compared:
        raise UserError(f"{args.folders[0]} has no split but train: name other folders, or --against a benchmark")

    sets, found = known_sets(compared, args.similarity), []
    head = "training rows that stand in"
    width = max(len(head), *(len(f"{name} in {other}") for name in training for other in compared))
    print(f"{head:<{width}}", *(f"{kind:>20}" for kind in KINDS))
    for name in training:
        others = [other for other in sets if other.name != name]
        new = [*overlaps(partial(prepared_rows, files[name]), others)]
        for other, counts in count_by_kind(new, [other.name for other in others]).items():
            print(f"{f'{name} in {other}':<{width}}", *(f"{count:>20,}" for count in counts.values()))
        found += [(name, overlap) for overlap in new]
    if args.output:
        with atomic_write(args.output) as temporary:
            write_overlaps(temporary, found)
        print(f"Wrote {args.output}")


if __name__ == "__main__":
    run(main)
