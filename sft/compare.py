"""Compare evaluations question by question: a row each, with floors, differences, intervals and exact McNemar tests.

    python sft/compare.py outputs/eval/tuned outputs/eval/base
    python sft/compare.py outputs/eval/tuned outputs/eval/other outputs/eval/base --format latex
    python sft/compare.py ours.csv theirs.csv

In:  two or more folders written by sft/evaluate.py, over the same questions, or as many CSV files with the columns id
     and correct (1 or 0), and article if articles are known. The last is the baseline: every other run is compared
     with it, and positive differences are for the other run.
Out: a table on stdout: text, markdown and latex round it, csv and json hold every number in full.
"""

import argparse
from pathlib import Path

from sft.common.command import run
from sft.evaluation.comparison import compared, read_runs
from sft.evaluation.formats import FORMATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of an evaluation, or CSV file")
    parser.add_argument("others", type=Path, nargs="+", help="further ones; the last is the baseline")
    parser.add_argument("--format", choices=[*FORMATS], default="text", help="of the table (default: %(default)s)")
    args = parser.parse_args()
    print(FORMATS[args.format](compared(read_runs([args.run, *args.others]))))


if __name__ == "__main__":
    run(main)
