"""Compare two evaluations question by question: the difference, its interval, and the exact McNemar test.

    python sft/compare.py outputs/eval/tuned outputs/eval/base

In:  two folders written by sft/evaluate.py, over the same questions.
Out: a table; positive differences are for the first.
"""

import argparse
from pathlib import Path

from sft.common.command import run
from sft.evaluation.comparison import compare, comparison_lines, read_evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("this", type=Path, help="folder of an evaluation")
    parser.add_argument("baseline", type=Path, help="folder of the evaluation to compare it with")
    args = parser.parse_args()
    this, baseline = read_evaluation(args.this), read_evaluation(args.baseline)
    comparison = compare(this, baseline)
    print(f"{this.results['name']} against {comparison['baseline']}: {len(this.rows)} questions, paired")
    print(f"  {'score':<20}{'by':>8}   95 % interval, clustered by article")
    print("\n".join(comparison_lines(comparison)))


if __name__ == "__main__":
    run(main)
