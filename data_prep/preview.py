"""Show prepared rows as a model reads them, with the tokens that it is trained to write in colour.

    python data_prep/preview.py PMC-VQA-Processed --tokenizer MODEL [-n 5] [--split train] [--chat_template FILE]

Where colour cannot be shown (a pipe, a log file, NO_COLOR), trained text stands between [[ and ]].
"""

import argparse

from sft.common.command import UserError, run
from sft.common.display import DIM, RESET, marked, shows_colour
from sft.common.prompts import LETTERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="prepared data set: folder or Hub id")
    parser.add_argument("--tokenizer", required=True, metavar="MODEL", help="folder or Hub id of the model")
    parser.add_argument("--chat_template", help="Jinja file; default: the tokenizer's own")
    parser.add_argument("--split", default="train")
    parser.add_argument("-n", type=int, default=5, help="rows to show")
    args = parser.parse_args()
    if args.n < 1:
        raise UserError(f"-n {args.n}: give a positive number of rows")

    from sft.common.chat_template import explain
    from sft.common.data import load_split
    from sft.common.models import load_tokenizer

    rows = load_split(args.folder, args.split)
    tokenizer = load_tokenizer(args.tokenizer, args.chat_template)
    colour = shows_colour()
    pretokenized = "input_ids" in rows.column_names
    for row in rows.select(range(min(args.n, len(rows)))):
        shown = explain(tokenizer, row["prompt"], row["completion"])
        if pretokenized and row["input_ids"] != shown["input_ids"]:
            raise UserError(
                f"{args.folder} has tokens for another model: prepare it with --pretokenize {args.tokenizer}, or name "
                "its own model and --chat_template here"
            )
        trained = sum(shown["loss_mask"])
        title = f"{row['id']}: {shown['tokens']} tokens, {trained} trained, right option {LETTERS[row['gold']]}"
        print(f"{DIM}{title}{RESET}" if colour else f"--- {title}")
        print(marked(tokenizer, shown["input_ids"], shown["loss_mask"], colour) + "\n")


if __name__ == "__main__":
    run(main)
