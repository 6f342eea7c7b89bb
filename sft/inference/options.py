"""Command-line options that sft/evaluate.py and sft/infer.py share; their defaults are those of `Sampling`."""

import argparse
from typing import Any

from sft.common.command import UserError
from sft.inference.generation import Sampling


def add_model_options(parser: Any, batch_size_help: str) -> None:
    """Add to a parser, or a group of its options, how a local model is loaded."""
    parser.add_argument(
        "--chat_template", help="Jinja file; a model tuned here brings its own, a base model needs one"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "bfloat16", "float16", "float32"],
        default="auto",
        help="auto: that of the weights, or float32 on a CPU without bfloat16 (up to 30 x faster, twice the memory)",
    )
    parser.add_argument("--quantization", choices=["none", "8bit", "4bit"], default="none", help="with bitsandbytes")
    parser.add_argument("--batch_size", type=int, default=16, help=batch_size_help)


def add_sampling_options(parser: Any, temperature: float | None, temperature_help: str) -> None:
    """Add to a parser, or a group of its options, how text is drawn from a model; each command has its own seeds."""
    parser.add_argument(
        "--max_new_tokens", type=int, default=Sampling.max_new_tokens, help="token budget of an answer"
    )
    parser.add_argument("--temperature", type=float, default=temperature, help=temperature_help)
    parser.add_argument(
        "--top_p", type=float, default=Sampling.top_p, help="of what is sampled (default: %(default)s)"
    )


def check_positive(args: argparse.Namespace, *options: str) -> None:
    """Raise `UserError` for the first of these options that has a value which is not above 0."""
    for option in options:
        value = getattr(args, option)
        if value is not None and not value > 0:  # so that NaN is refused
            raise UserError(f"--{option} {value}: give a positive number")
