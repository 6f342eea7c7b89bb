"""Compare two evaluations question by question: the difference, its interval, and the exact McNemar test.

    python sft/compare.py outputs/eval/tuned outputs/eval/base

In:  two folders written by sft/evaluate.py, over the same questions.
Out: a table; positive differences are for the first.
"""

import argparse
from pathlib import Path

from sft.common.command import run
from sft.evaluation.comparison import paired_comparison, read_evaluation
from sft.evaluation.tables import paired_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("this", type=Path, help="folder of an evaluation")
    parser.add_argument("baseline", type=Path, help="folder of the evaluation to compare it with")
    args = parser.parse_args()
    this, baseline = read_evaluation(args.this), read_evaluation(args.baseline)
    print(paired_text({**this.results, "paired": paired_comparison(this, baseline)}))


if __name__ == "__main__":
    run(main)
