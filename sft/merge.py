"""Put an adapter's weights into those of its base model, so that it loads anywhere without PEFT.

    python sft/merge.py --model_path PMC-VQA-SFT-Output/final_model --output_dir PMC-VQA-SFT-Output/merged_model

In:  --model_path, an adapter that sft/run.py trained; its base model, which must not be quantised, in bfloat16. An
     adapter that was trained on 8-bit or 4-bit weights is merged onto the bfloat16 weights that these were made from.
Out: --output_dir with safetensors shards, tokenizer, chat template and the facts of the run.

Runs on a CPU, in the memory of one copy of the model. The logits of both on real prompts are compared, and a merged
model that does not answer as the adapter does is not kept.
"""

import argparse
from pathlib import Path

from sft.common.command import atomic_folder, check_output_path, run
from sft.common.models import ADAPTER_CONFIG
from sft.publishing.merging import check_mergeable, check_replaceable, check_space, merge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help=f"adapter: folder with {ADAPTER_CONFIG}, or Hub id")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the merged model goes")
    parser.add_argument("--base_model", help="onto this base: folder or Hub id (default: the one it was trained on)")
    parser.add_argument("--overwrite", action="store_true", help="replace the merged model in --output_dir")
    args = parser.parse_args()

    check_output_path(args.output_dir, args.overwrite)
    base = check_mergeable(args.model_path, args.base_model)
    check_replaceable(args.output_dir, args.model_path, base)
    print(f"The merged model takes {check_space(base, args.output_dir):.2f} GiB of memory and of disk", flush=True)
    with atomic_folder(args.output_dir, args.overwrite) as folder:
        merge(args.model_path, base, folder)
    print(f"Wrote {args.output_dir}")


if __name__ == "__main__":
    run(main)
