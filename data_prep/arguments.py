"""The options of data_prep/prepare.py, each checked as far as it can be without reading the data."""

import argparse
from pathlib import Path
from typing import Any

from data_prep.chat_rows import MAX_ORDERS
from data_prep.figures import FIGURE_PIXELS, SMALLEST
from data_prep.formats import FORMATS, wanted_format
from sft.common.command import UserError, usable_cores
from sft.common.prompts import ANSWER_FORMATS, DEFAULT_ANSWER_FORMAT, OPEN
from sft.common.template_choice import template_values


def parse_arguments(description: str) -> argparse.Namespace:
    """The options, each checked as far as it can be without reading the data."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group("what is read")
    source.add_argument("--dataset_path", help="folder, file, saved data set, or id on the Hub")
    named = f"{', '.join(FORMATS)}, or a YAML file; default: as the columns show"
    source.add_argument("--format", default="detect", metavar="NAME", help=named)
    source.add_argument("--columns", help='which column holds what: "question=stem, options=A,B,C,D, answer=label"')
    source.add_argument("--config", help="the part of the data set to read, where it has several; a folder's name")
    source.add_argument("--encoding", help="of text files that do not show it, such as cp1252")
    source.add_argument("--revision", help="commit of the data set on the Hub, 40 digits")
    source.add_argument("--keep_for_evaluation", action="store_true", help="keep an option twice, outside of train")
    source.add_argument("--max_samples", type=int, help="draw at most this many questions of each source split")
    source.add_argument("--max_rejected", type=float, default=0.01, help="largest share of rows that may be rejected")
    figures = parser.add_argument_group("figures, for models that see")
    figures.add_argument(
        "--figures", type=Path, nargs="+", metavar="PATH", help="folders and ZIP files that hold them"
    )
    pixels = f"shrink a figure to so many, keeping its shape (default: {FIGURE_PIXELS:,})"
    figures.add_argument("--figure_pixels", type=int, metavar="N", help=pixels)
    splits = parser.add_argument_group("splits")
    splits.add_argument("--dev_size", type=int, default=2000, help="questions held out from train (at most 10 %%)")
    splits.add_argument("--check_against", nargs="+", metavar="FOLDER", help="prepared benchmarks to compare with")
    splits.add_argument("--drop_overlap", action="store_true", help="drop training questions that these or tests have")
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--answer_format", choices=ANSWER_FORMATS, help=f"default: {DEFAULT_ANSWER_FORMAT}")
    prompts.add_argument("--no_choices", action="store_true", help="ask the bare question; the answer is the text")
    prompts.add_argument("--shuffle_choices", type=int, default=0, metavar="K", help="K option orders a training row")
    prompts.add_argument("--add_reasoning", metavar="FILE", help="rationales: .jsonl, .parquet, or a source's column")
    prompts.add_argument("--require_reasoning", action="store_true", help="leave training questions without one out")
    direct = "share of the questions with a rationale that are answered without it"
    prompts.add_argument("--direct_share", type=float, default=0.0, metavar="SHARE", help=direct)
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument("--tokenizer", metavar="MODEL", help="show tokens in examples.json and report.html")
    tokens.add_argument("--pretokenize", metavar="MODEL", help="write input_ids and labels too, for this model")
    tokens.add_argument("--chat_template", help="Jinja file; default: the tokenizer's own")
    values = "JSON: values of the template's variables, as in '{\"enable_thinking\": false}'"
    tokens.add_argument("--chat_template_kwargs", type=template_values, metavar="JSON", help=values)
    tokens.add_argument("--max_length", type=int, help="in tokens: longer rows leave train and dev (--pretokenize)")
    output = parser.add_argument_group("what is written")
    output.add_argument("--output_dir", type=Path, default=Path("PMC-VQA-Processed"))
    output.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    output.add_argument("--check", action="store_true", help="try it all on 10 rows of each source, keep nothing")
    output.add_argument("--push_to_hub", metavar="REPO", help="upload the folder, privately")
    output.add_argument("--public", action="store_true", help="make a new repository of --push_to_hub public")
    output.add_argument("--num_proc", type=int, default=usable_cores(), help="processes; any number, same bytes")
    output.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    _check(args)
    args.wanted = wanted_format(args.format, args.columns)
    if args.require_reasoning and not (args.add_reasoning or (args.wanted and args.wanted.rationale)):
        raise UserError("--require_reasoning: name the rationales with --add_reasoning")
    if args.direct_share and not (args.add_reasoning or (args.wanted and args.wanted.rationale)):
        raise UserError("--direct_share: name the rationales with --add_reasoning")
    args.answer_format = OPEN if args.no_choices else args.answer_format or DEFAULT_ANSWER_FORMAT
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise `UserError` for an option that is wrong by itself or beside another one."""
    for option, value in vars(args).items():
        if value == "":
            raise UserError(f"--{option} is empty: is a variable of your shell unset?")
        if option in ("max_samples", "max_length", "num_proc", "figure_pixels") and value is not None and value < 1:
            raise UserError(f"--{option} {value}: give a positive number")
    if not (args.dataset_path or args.check):
        raise UserError("--dataset_path is not given: name the folder with train.csv and test.csv")
    if not 0 <= args.shuffle_choices <= MAX_ORDERS:
        raise UserError(f"--shuffle_choices {args.shuffle_choices}: give 0 to {MAX_ORDERS} orders a question")
    if args.dev_size < 0 or not 0 <= args.max_rejected <= 1:
        raise UserError("--dev_size cannot be negative, --max_rejected is a share from 0 to 1")
    if not 0 <= args.direct_share < 1:
        raise UserError(f"--direct_share {args.direct_share:g}: give a share from 0 to less than 1")
    if args.no_choices and (args.answer_format not in (None, "text") or args.shuffle_choices):
        raise UserError("--no_choices shows no options: leave out --shuffle_choices and --answer_format")
    if args.max_length and not args.pretokenize:
        raise UserError("--max_length counts tokens: name the model with --pretokenize")
    if args.tokenizer and args.pretokenize and args.tokenizer != args.pretokenize:
        raise UserError("--tokenizer and --pretokenize name different models: --pretokenize alone shows tokens too")
    for option in ("chat_template", "chat_template_kwargs"):
        if getattr(args, option) and not (args.tokenizer or args.pretokenize):
            raise UserError(f"--{option}: name the model with --tokenizer or --pretokenize")
    if args.figure_pixels and not args.figures:
        raise UserError("--figure_pixels goes with --figures")
    if args.figures and args.pretokenize:
        raise UserError("--pretokenize: with --figures, tokens are made in training, where the figures are opened")
    if args.figure_pixels and args.figure_pixels < SMALLEST**2:
        raise UserError(f"--figure_pixels {args.figure_pixels}: give at least {SMALLEST**2}")
    for path in args.figures or ():
        if not path.exists():
            raise UserError(f"--figures {path}: does not exist: name a folder or a ZIP file")
    if args.public and not args.push_to_hub:
        raise UserError("--public goes with --push_to_hub")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide what is written. Of a path, only the last name is kept."""
    elsewhere = ("output_dir", "overwrite", "num_proc", "check", "push_to_hub", "public", "seed", "answer_format")
    elsewhere += ("wanted",)  # it stands in --format and --columns
    options = {key: value for key, value in vars(args).items() if key not in elsewhere and value not in (None, False)}
    paths = {"dataset_path", "format", "add_reasoning", "tokenizer", "pretokenize", "chat_template"}
    for key in options.keys() & paths:
        if Path(options[key]).exists():
            options[key] = Path(options[key]).name
    if args.figures:
        options["figures"] = " ".join(path.resolve().name for path in args.figures)
        options["figure_pixels"] = args.figure_pixels or FIGURE_PIXELS
    if args.check_against:
        options["check_against"] = " ".join(Path(folder).resolve().name for folder in args.check_against)
    return options
