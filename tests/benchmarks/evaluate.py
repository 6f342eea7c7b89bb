"""Speed and accuracy of option likelihood beside lm-evaluation-harness: same rows, model, dtype and batch size.

    python tests/benchmarks/evaluate.py --dataset_path PMC-VQA.csv [--dtype bfloat16] [--batch_size 16] [--rounds 3]

Needs the extra `harness` (pip install -c constraints.txt -e '.[harness]'). Both score the same model in memory, by
turns, from the questions' text to the options' log-likelihoods; starting up and reading the data are left out of both.
Once by letter, where options differ in one token, and once by the whole text of the options, as the quickstart's model
answers. Without --dataset_path the embedded sample is asked. Ends with a Markdown table.
"""

import sys
from pathlib import Path

# lm_eval imports a package called evaluate; this file's folder must not offer itself.
sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

from sft.common.command import UserError, run  # noqa: E402

ROOT = Path(__file__).parents[2]
TASK = ROOT / "docs/lm_eval/pmc_vqa.yaml"
MODEL, TEMPLATE = ROOT / "outputs/models/SmolLM2-135M-Instruct", ROOT / "recipes/templates/smollm2.jinja"


def prepared(source: Path | None, answer_format: str, folder: Path) -> Path:
    """Raw questions, or else the embedded sample, prepared to be answered in this format."""
    if source is None:
        source = folder / "PMC-VQA"
        if not source.exists():
            command("data_prep/sample.py", "--output_dir", source)
    out = folder / answer_format
    command("data_prep/prepare.py", "--dataset_path", source, "--output_dir", out, "--answer_format", answer_format)
    return out


def command(*words: object) -> None:
    """Run a command of the project, its output left out."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, capture_output=True)


def harness_task(data: Path, split: str, answer_format: str, end: str) -> dict:
    """The task file that ships, pointed at a split of this data; for whole texts, with the completions of training."""
    import yaml

    task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    task["dataset_kwargs"] = {"data_files": {"test": str(data / split / "*.parquet")}}
    if answer_format == "text":
        task["doc_to_choice"] = lambda row: [choice + end for choice in row["choices"]]
    return task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_path", type=Path, help="what data_prep/prepare.py reads")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model_path", type=Path, default=MODEL)
    parser.add_argument("--chat_template", type=Path, default=TEMPLATE)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise UserError("lm_eval is missing: pip install -c constraints.txt -e '.[harness]'") from None

    import torch
    import transformers

    from sft.common.data import load_split
    from sft.common.models import load_model, load_tokenizer
    from sft.inference.likelihood import most_likely, option_log_likelihoods

    tokenizer = load_tokenizer(str(args.model_path), str(args.chat_template))
    model, _ = load_model(str(args.model_path), args.dtype, tokenizer)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size)
    scored, seconds = harness.loglikelihood, []

    def timed(*words: object, **options: object) -> object:
        start = time.perf_counter()
        result = scored(*words, **options)
        seconds.append(time.perf_counter() - start)
        return result

    harness.loglikelihood = timed
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for answer_format in ("letter", "text"):
            data = prepared(args.dataset_path, answer_format, Path(folder))
            questions = load_split(str(data), args.split).to_list()
            gold = [question["gold"] for question in questions]
            task = harness_task(data, args.split, answer_format, tokenizer.eos_token)
            speeds = {"lm-evaluation-harness": [], "sft/evaluate.py": []}
            for number in range(args.rounds):
                evaluated = lm_eval.simple_evaluate(harness, tasks=[task], apply_chat_template=True, log_samples=True)
                start = time.perf_counter()
                scores = dict(option_log_likelihoods(model, tokenizer, questions, args.batch_size))
                for name, spent in zip(speeds, (seconds[-1], time.perf_counter() - start), strict=True):
                    speeds[name].append(len(questions) / spent)
                pair = ", ".join(f"{name} {values[-1]:.1f}" for name, values in speeds.items())
                print(f"{answer_format}, round {number + 1}: {pair} questions/s", flush=True)
            samples = sorted(evaluated["samples"]["pmc_vqa"], key=lambda sample: sample["doc_id"])
            answers = {
                "lm-evaluation-harness": most_likely([[r[0] for r in sample["filtered_resps"]] for sample in samples]),
                "sft/evaluate.py": most_likely([scores[index] for index in range(len(questions))]),
            }
            theirs, ours = answers.values()
            same = sum(a == b for a, b in zip(theirs, ours, strict=True))
            for name, chosen in answers.items():
                right = sum(a == g for a, g in zip(chosen, gold, strict=True)) / len(gold)
                lines.append(f"| {answer_format} | {name} | {statistics.median(speeds[name]):.1f} | {right:.4f} | |")
            ratios = [b / a for a, b in zip(*speeds.values(), strict=True)]
            lines.append(
                f"| {answer_format} | ratio | {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
                f"{max(ratios):.2f}) | | {same} of {len(gold)} |"
            )
    print(f"\n{len(gold)} questions, {args.model_path.name}, {args.dtype}, batch {args.batch_size}, ", end="")
    print(f"{model.device.type}, {args.rounds} rounds; torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, lm_eval {lm_eval.__version__}\n")
    print("| answer | program | questions/s (median) | accuracy | same answer |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
