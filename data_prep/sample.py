"""Write the embedded sample: a small data set with the header, the quirks and the faults of PMC-VQA version 1.

In: sample_facts.yaml (24 checkable statements written for this project, eight phrasings each).
Out: OUTPUT_DIR/train.csv (five phrasings) and OUTPUT_DIR/test.csv (the other three); same seed, same bytes.
With --figures, other questions, about drawn figures; and OUTPUT_DIR/images.zip holds the figures.
"""

import argparse
from pathlib import Path

from data_prep.sample_figures import write_figure_sample
from data_prep.sample_rows import write_sample
from sft.common.command import atomic_folder, check_holds_only, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart/PMC-VQA"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--figures", action="store_true", help="write questions about drawn figures instead")
    args = parser.parse_args()
    check_holds_only(args.output_dir, ("train.csv", "test.csv", "images.zip"), "a sample")
    with atomic_folder(args.output_dir, args.overwrite) as folder:
        counts = (write_figure_sample if args.figures else write_sample)(folder, args.seed)
    print(f"Wrote {args.output_dir}: " + ", ".join(f"{split}.csv {count} rows" for split, count in counts.items()))


if __name__ == "__main__":
    run(main)
