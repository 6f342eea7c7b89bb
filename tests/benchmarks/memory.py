"""Estimated peak memory of every recipe for a GPU under the launch that its first lines name; nothing is downloaded.

    python tests/benchmarks/memory.py

Prints the table that README.md and the recipes' first lines quote. On a GPU machine, `sft/run.py RECIPE
--probe_steps 20` prints the measured peak beside the estimate.
"""

import dataclasses
import re
from pathlib import Path

from transformers import Gemma3Config, LlamaConfig, Qwen3Config, Qwen3VLConfig

from sft.common.command import run
from sft.training.config import resolve
from sft.training.launch import Launch, read_launch_file
from sft.training.memory import count_parameters, estimate

RECIPES = Path(__file__).parents[2] / "recipes"
# The models' own configurations, as far as they decide sizes.
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    tie_word_embeddings=False,
    **HEADS,
)
QWEN3_8B = Qwen3Config(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    tie_word_embeddings=False,
    **HEADS,
)
MEDGEMMA_4B = Gemma3Config(
    text_config={"vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
    vision_config={"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    | {"image_size": 896, "patch_size": 14},
)


def qwen3_vl(text: dict, vision: dict) -> Qwen3VLConfig:
    text = {"vocab_size": 151936, "num_hidden_layers": 36, "head_dim": 128, **HEADS, **text}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=text["tie_word_embeddings"])


QWEN3_VL_4B = qwen3_vl(
    {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "out_hidden_size": 2560}
    | {"deepstack_visual_indexes": [5, 11, 17]},
)
QWEN3_VL_8B = qwen3_vl(
    {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16, "out_hidden_size": 4096}
    | {"deepstack_visual_indexes": [8, 16, 24]},
)
# Tokens of a long row with a figure (rows are not packed): data_prep makes it at most 256 tokens of Qwen3-VL.
FIGURE_ROW = 512
MODELS = {
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_8B,
    "Qwen/Qwen3-8B": QWEN3_8B,
    "google/medgemma-4b-it": MEDGEMMA_4B,
    "Qwen/Qwen3-VL-4B-Instruct": QWEN3_VL_4B,
    "Qwen/Qwen3-VL-8B-Instruct": QWEN3_VL_8B,
}


def named_launch(recipe: Path) -> tuple[Path, Launch]:
    """(launch file, what it makes with the recipe's --num_processes), as the first lines of `recipe` say."""
    text = recipe.read_text(encoding="utf-8")
    pattern = rf"accelerate launch --config_file (\S+)(?: --num_processes (\d+))? sft/run.py recipes/{recipe.name}"
    named = re.search(pattern, text)
    launch = read_launch_file(recipe.parents[1] / named[1])
    return Path(named[1]), dataclasses.replace(launch, processes=int(named[2] or launch.processes))


def peak(recipe: Path) -> tuple[Launch, int, dict[str, float]]:
    """(launch, trained parameters, GiB on each GPU by part) of the recipe's model."""
    _, launch = named_launch(recipe)
    settings = resolve([str(recipe)]).for_world_size(launch.processes)
    config = MODELS[settings.model_name_or_path]
    parameters = count_parameters(config, settings)
    tokens = settings.per_device_train_batch_size * (settings.max_length or FIGURE_ROW)
    return launch, parameters.trained, estimate(config, settings, launch, parameters, tokens)


def main() -> None:
    print(f"{'recipe':<20} {'launch':<32} {'trained':>14}   GiB a GPU: total = parts")
    for recipe in sorted(set(RECIPES.glob("*.yaml")) - set(RECIPES.glob("quickstart*.yaml"))):
        launch, trained, parts = peak(recipe)
        listed = " + ".join(f"{name} {size:.2f}" for name, size in parts.items())
        print(f"{recipe.stem:<20} {launch.name:<32} {trained:>14,}   {sum(parts.values()):.1f} = {listed}")


if __name__ == "__main__":
    run(main)
