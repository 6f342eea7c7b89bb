"""Measure how often a model picks the right option, with an interval and a comparison.

Method: option likelihood. Each option is scored by log p(the completion that training would have used | question);
the most likely option is the model's answer. No text is generated and nothing has to be parsed.

In:  --model_path, a base model, an adapter folder or a merged model (folder or Hub id); --dataset_path, a folder
     written by data_prep/prepare.py.
Out: OUTPUT_DIR/NAME.json (accuracy, n, ci95, floors, paired comparison) and OUTPUT_DIR/NAME.parquet (one row a
     question: id, gold, predicted, log-likelihood of each option).
"""

import argparse
import time
from pathlib import Path
from typing import Any

from data_prep.command import UserError, run, write_json
from data_prep.prompts import OPEN


def read_results(file: Path) -> tuple[dict, dict[str, bool]]:
    """(results, {question id: answered rightly}) of an earlier run.

    Raises:
        UserError: not the JSON file of an evaluation, or its Parquet file is not beside it.
    """
    import json

    import pyarrow.parquet as pq

    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        rows = pq.read_table(file.with_name(results["predictions"])).to_pylist()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--baseline {file}: not the results of an earlier sft/evaluate.py run ({type(error).__name__}): give the "
            ".json file, with the .parquet file beside it"
        ) from error
    return results, {row["id"]: row["predicted"] == row["gold"] for row in rows}


def compare(right: dict[str, bool], baseline: dict, baseline_right: dict[str, bool]) -> dict[str, Any]:
    """Paired comparison of two runs over the same questions: difference of accuracies and exact McNemar test.

    Raises:
        UserError: the two runs did not answer the same questions.
    """
    from sft.scoring import mcnemar_p

    if right.keys() != baseline_right.keys():
        raise UserError(
            f"--baseline answered {len(baseline_right)} questions, this run {len(right)}, and not the same ones: use "
            "the same --dataset_path, --split, --num_samples and --seed for both"
        )
    only_this = sum(right[id] and not baseline_right[id] for id in right)
    only_baseline = sum(baseline_right[id] and not right[id] for id in right)
    return {
        "baseline": baseline["name"],
        "baseline_accuracy": baseline["accuracy"],
        "difference": (only_this - only_baseline) / len(right),
        "only_this_right": only_this,
        "only_baseline_right": only_baseline,
        "mcnemar_p": mcnemar_p(only_baseline, only_this),
    }


def table(results: dict) -> str:
    """The results as a few lines for the terminal."""
    low, high = results["ci95"]
    lines = [
        f"{results['name']}: {results['n']} questions of {results['split']}, option likelihood",
        f"  accuracy         {results['accuracy']:.3f}   95 % interval {low:.3f} to {high:.3f} (Wilson)",
        *(f"  floor            {value:.3f}   {name.replace('_', ' ')}" for name, value in results["floors"].items()),
    ]
    if "paired" in results:
        paired = results["paired"]
        lines.append(
            f"  against {paired['baseline']:<8} {paired['difference']:+.3f}   McNemar p = {paired['mcnemar_p']:.2g} "
            f"({paired['only_this_right']} won, {paired['only_baseline_right']} lost)"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="base model, adapter or merged model: folder or Hub id")
    parser.add_argument("--dataset_path", required=True, help="prepared data set: folder or Hub id")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_samples", type=int, help="draw this many questions (seeded) instead of all")
    parser.add_argument("--baseline", type=Path, help="results JSON of another run, to compare question by question")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/eval"))
    parser.add_argument("--name", help="name of the output files (default: the model folder's name)")
    parser.add_argument(
        "--chat_template", help="Jinja file; a model tuned here brings its own, a base model needs one"
    )
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto")
    parser.add_argument("--batch_size", type=int, default=16, help="questions a forward pass")
    parser.add_argument("--seed", type=int, default=42, help="of the draw of --num_samples")
    args = parser.parse_args()
    for option in ("num_samples", "batch_size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: give a positive number")

    from sft.data import draw, load_split
    from sft.models import check_model_folder, load_model, prompt_format
    from sft.scoring import floors, most_likely, option_log_likelihoods, wilson_interval

    # What can be refused is refused before the model loads.
    check_model_folder(args.model_path)
    baseline = read_results(args.baseline) if args.baseline else None
    rows = load_split(args.dataset_path, args.split)
    questions = draw(rows, args.num_samples or len(rows), args.seed)
    asked, trained = questions[0]["answer_format"], prompt_format(args.model_path)
    if trained not in (None, asked):
        raise UserError(
            f"{args.model_path} was trained to answer with {trained}, the questions of {args.dataset_path} ask for "
            f"{asked}: prepare them with {'--no_choices' if trained == OPEN else f'--answer_format {trained}'}"
        )

    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm import tqdm

    model, tokenizer = load_model(args.model_path, args.dtype, args.chat_template)
    start = time.perf_counter()
    scores: list[list[float]] = [[] for _ in questions]
    scored = option_log_likelihoods(model, tokenizer, questions, args.batch_size)
    for index, values in tqdm(scored, total=len(questions), desc="Scoring", unit=" questions"):
        scores[index] = values
    seconds = time.perf_counter() - start

    predicted = most_likely(scores)
    right = {q["id"]: index == q["gold"] for q, index in zip(questions, predicted, strict=True)}
    name = args.name or Path(args.model_path).name
    results = {
        "name": name,
        "model": args.model_path,
        "split": args.split,
        "method": "option_likelihood",
        "answer_format": asked,
        "n": len(questions),
        "accuracy": sum(right.values()) / len(right),
        "ci95": wilson_interval(sum(right.values()), len(right)),
        "floors": floors(questions),
        "questions_per_second": len(questions) / seconds,
        "predictions": f"{name}.parquet",
    }
    if baseline:
        results["paired"] = compare(right, *baseline)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    predictions = {
        "id": [q["id"] for q in questions],
        "gold": [q["gold"] for q in questions],
        "predicted": predicted,
        "log_likelihoods": scores,
    }
    temporary = args.output_dir / f".{name}.parquet.tmp"
    pq.write_table(pa.table(predictions), temporary)
    temporary.rename(args.output_dir / results["predictions"])
    write_json(args.output_dir / f"{name}.json", results)
    print(table(results))
    print(f"Wrote {args.output_dir / name}.json")


if __name__ == "__main__":
    run(main)
