"""Command-line options that sft/evaluate.py and sft/infer.py share."""

import argparse
from typing import Any

from sft.common.template_choice import template_values
from sft.inference.generation import Sampling


def add_shared_options(parser: argparse.ArgumentParser, temperature: float | None, temperature_help: str) -> Any:
    """Add how a local model is loaded and how it generates; returns the latter's group, without seeds."""
    local = parser.add_argument_group("a model of your own")
    local.add_argument("--chat_template", help="Jinja file; a model tuned here brings its own, a base model needs one")
    values_help = "JSON: values of the template's variables, as in '{\"enable_thinking\": false}'"
    local.add_argument("--chat_template_kwargs", type=template_values, metavar="JSON", help=values_help)
    dtype_help = "auto: that of the weights; on a CPU without bfloat16 float32 (up to 30 x faster, twice the memory)"
    local.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto", help=dtype_help)
    local.add_argument("--quantization", choices=["none", "8bit", "4bit"], default="none", help="with bitsandbytes")
    local.add_argument("--batch_size", type=int, default=16, help="questions a forward pass, where there are several")
    text = parser.add_argument_group("generation")
    text.add_argument("--max_new_tokens", type=int, default=Sampling.max_new_tokens, help="token budget of an answer")
    text.add_argument("--temperature", type=float, default=temperature, help=temperature_help)
    text.add_argument("--top_p", type=float, default=Sampling.top_p, help="of what is sampled (default: %(default)s)")
    return text
