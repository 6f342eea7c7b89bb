"""Speed of evaluation by batch size, and its accuracy beside lm-evaluation-harness: same rows, model and dtype.

    python tests/benchmarks/evaluate.py --dataset_path PMC-VQA.csv [--dtype bfloat16] [--batch_size 16] [--rounds 3]

With the extra `harness` (pip install -c constraints.txt -e '.[harness]') both score the same model in memory, by
turns, from the questions' text to the options' log-likelihoods; starting up and reading the data are left out of both.
Once by letter, where options differ in one token, and once by the whole text of the options, as the quickstart's model
answers. Without --dataset_path the embedded sample is asked; --prepared FOLDER asks rows as they are. --generate N
also measures answers of N tokens. Ends with a Markdown table; --output_file keeps its numbers.
"""

import sys
from pathlib import Path

# lm_eval imports a package called evaluate; this file's folder must not offer itself.
sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from sft.common.command import first_line, run, write_json  # noqa: E402

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


class Harness:
    """lm-evaluation-harness on the model in memory; None in `lm_eval` where it is not installed."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        self.lm_eval, self.seconds = lm_eval, 0.0
        self.model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.score, self.model.loglikelihood = self.model.loglikelihood, self.timed

    def timed(self, *words: object, **options: object) -> object:
        start = time.perf_counter()
        result = self.score(*words, **options)
        self.seconds = time.perf_counter() - start
        return result

    def scores(self, task: dict, count: int) -> list[list[float]]:
        """Log-likelihood of every option of the first `count` questions of the task."""
        options = {"apply_chat_template": True, "log_samples": True, "limit": count}
        done = self.lm_eval.simple_evaluate(self.model, tasks=[task], **options)
        samples = sorted(done["samples"]["pmc_vqa"], key=lambda sample: sample["doc_id"])
        return [[response[0] for response in sample["filtered_resps"]] for sample in samples]


def measured(model: Any, tokenizer: Any, questions: list[dict], task: dict | None, size: int, rounds: int) -> dict:
    """{program: questions/s of each round, and accuracy}, and how many answers are the same, at one batch size."""
    from sft.inference.likelihood import most_likely, option_log_likelihoods

    harness = Harness(model, tokenizer, size) if task else None
    speeds: dict[str, list[float]] = {"lm-evaluation-harness": [], "sft/evaluate.py": []}
    answers = {}
    list(option_log_likelihoods(model, tokenizer, questions[:size], size))  # warms up
    for number in range(rounds):
        if harness:
            answers["lm-evaluation-harness"] = most_likely(harness.scores(task, len(questions)))
            speeds["lm-evaluation-harness"].append(len(questions) / harness.seconds)
        start = time.perf_counter()
        scores = dict(option_log_likelihoods(model, tokenizer, questions, size))
        speeds["sft/evaluate.py"].append(len(questions) / (time.perf_counter() - start))
        answers["sft/evaluate.py"] = most_likely([scores[index] for index in range(len(questions))])
        pair = ", ".join(f"{name} {values[-1]:.1f}" for name, values in speeds.items() if values)
        print(f"batch {size}, round {number + 1}: {pair} questions/s", flush=True)
    right = {
        name: sum(answer == question["gold"] for answer, question in zip(chosen, questions, strict=True))
        for name, chosen in answers.items()
    }
    same = sum(len(set(pair)) == 1 for pair in zip(*answers.values(), strict=True)) if harness else None
    programs = {name: {"speeds": speeds[name], "accuracy": right[name] / len(questions)} for name in answers}
    return {"programs": programs, "same": same, "n": len(questions)}


def generated(model: Any, tokenizer: Any, questions: list[dict], size: int, tokens: int) -> dict:
    """Questions and tokens a second of greedy answers of up to so many tokens, in four batches at most."""
    from sft.common.chat_template import split_completions
    from sft.inference.generation import Sampling, generate_ids

    rows = split_completions(tokenizer, [q["prompt"] for q in questions], [q["completion"] for q in questions])
    prompts = [row["prompt_ids"] for row in rows][: 4 * size]
    sampling = Sampling(max_new_tokens=tokens, temperature=0)
    generate_ids(model, tokenizer, prompts[:size], Sampling(max_new_tokens=2, temperature=0))  # warms up
    start, written = time.perf_counter(), 0
    for first in range(0, len(prompts), size):
        written += sum(map(len, generate_ids(model, tokenizer, prompts[first : first + size], sampling)))
    seconds = time.perf_counter() - start
    return {"questions/s": len(prompts) / seconds, "tokens/s": written / seconds, "n": len(prompts)}


def markdown(result: dict) -> list[str]:
    """The tables of what was measured."""
    lines = [
        "| answer | batch | program | questions/s (median) | accuracy | same answer |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["likelihood"]:
        where = f"| {row['answer']} | {row['batch']}"
        if "failed" in row:
            lines.append(f"{where} | failed: {row['failed']} | | | |")
            continue
        for name, of in row["programs"].items():
            lines.append(f"{where} | {name} | {statistics.median(of['speeds']):.1f} | {of['accuracy']:.4f} | |")
        if len(row["programs"]) > 1:
            theirs, ours = (of["speeds"] for of in row["programs"].values())
            ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(f"{where} | ratio | {spread} | | {row['same']} of {row['n']} |")
    if result["generation"]:
        lines += ["", "| generation, batch | questions/s | tokens/s |", "|---|---|---|"]
    for row in result["generation"]:
        shown = "failed: {failed} | |" if "failed" in row else "{questions/s:.2f} | {tokens/s:.1f} |"
        lines.append(f"| {row['batch']} | " + shown.format(**row))
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_path", type=Path, help="what data_prep/prepare.py reads")
    parser.add_argument("--prepared", type=Path, help="what data_prep/prepare.py wrote, asked in its own format")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_samples", type=int, help="ask the first so many questions")
    parser.add_argument("--model_path", type=Path, default=MODEL)
    parser.add_argument("--chat_template", type=Path, help="default: SmolLM2's for the embedded model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--generate", type=int, default=0, metavar="TOKENS", help="measure answers of so many too")
    parser.add_argument("--output_file", type=Path, help="JSON with the numbers of the tables")
    args = parser.parse_args()
    if args.chat_template is None and args.model_path == MODEL:
        args.chat_template = TEMPLATE
    return args


def main() -> None:
    args = arguments()
    installed = importlib.util.find_spec("lm_eval") is not None
    if not installed:
        print("without lm-evaluation-harness: pip install -c constraints.txt -e '.[harness]'")

    import torch
    import transformers

    from sft.common.data import load_split
    from sft.common.models import dtype_on, load_model, load_tokenizer

    dtype = dtype_on("cuda" if torch.cuda.is_available() else "cpu", args.dtype)
    tokenizer = load_tokenizer(str(args.model_path), args.chat_template and str(args.chat_template))
    model, _ = load_model(str(args.model_path), dtype, tokenizer)
    result: dict = {"likelihood": [], "generation": []}
    with tempfile.TemporaryDirectory() as folder:
        for answer_format in ("as prepared",) if args.prepared else ("letter", "text"):
            data = args.prepared or prepared(args.dataset_path, answer_format, Path(folder))
            questions = load_split(str(data), args.split).to_list()[: args.num_samples]
            task = harness_task(data, args.split, answer_format, tokenizer.eos_token) if installed else None
            for size in args.batch_size:
                row = {"answer": answer_format, "batch": size}
                try:
                    row |= measured(model, tokenizer, questions, task, size, args.rounds)
                except torch.OutOfMemoryError as error:
                    row["failed"] = first_line(error)
                result["likelihood"].append(row)
                write(args.output_file, result)
        for size in args.batch_size if args.generate else ():
            row = {"batch": size}
            try:
                row |= generated(model, tokenizer, questions, size, args.generate)
            except torch.OutOfMemoryError as error:
                row["failed"] = first_line(error)
            result["generation"].append(row)
            write(args.output_file, result)
    print(f"\n{len(questions)} questions, {args.model_path.name}, {dtype}, {model.device.type}, ", end="")
    print(f"{args.rounds} rounds; torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("\n".join(markdown(result)))


def write(file: Path | None, result: dict) -> None:
    """Write the numbers so far, if they are to be kept."""
    if file:
        write_json(file, result)


if __name__ == "__main__":
    run(main)
