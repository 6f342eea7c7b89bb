"""Keep the thinking that led a model to the right option: rationales for `prepare.py --add_reasoning`.

    python sft/evaluate.py --model_path MODEL --dataset_path PMC-VQA-Processed --split train \\
        --method generation --generation_seeds 1 2 3 4 --name thinking
    python data_prep/rationales.py --answers outputs/eval/thinking --dataset_path PMC-VQA-Processed \\
        --output_file why.jsonl

In:  a finished evaluation by generation, of a model here or on a server, and the prepared data set that it asked.
Out: OUTPUT_FILE, one JSON object a line with id and reasoning, and beside it NAME.report.json and NAME.report.html:
     how many samples of each question are right, why samples are left out, and ten of those kept.

This is rejection sampling as in STaR (arXiv 2203.14465) and in DeepSeek-R1's distillation (arXiv 2501.12948): nothing
is generated here, and no answer is shown to the model. docs/reasoning.md tells the complete way.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.rationale_checks import Sample, why_unfit
from sft.common.chat_template import split_thinking
from sft.common.command import UserError, atomic_write, read_json, run, write_json
from sft.common.data import load_split
from sft.common.display import render
from sft.common.prompts import user_message

TEMPLATE = Path(__file__).with_name("templates") / "rationales.html"
NEEDED = ("id", "prompt_id", "generation_texts", "generation_answers", "generation_outcomes", "generation_tokens")
SHOWN = 10  # rationales on the page
KEPT = "kept"
KEEP = ("shortest", "first", "all")


class Answered(NamedTuple):
    """A question, a row of the prepared data set, and its samples in the order of the seeds."""

    question: dict
    samples: list[Sample]

    @property
    def right(self) -> int:
        """Samples that state the right option."""
        return sum(sample.answer == self.question["gold"] for sample in self.samples)

    @property
    def agreement(self) -> float:
        """Share of the samples that state the option that most of them state."""
        stated = Counter(sample.answer for sample in self.samples if sample.answer is not None)
        return max(stated.values(), default=0) / len(self.samples)


def arguments() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="folder of an evaluation by generation")
    parser.add_argument("--dataset_path", required=True, help="the prepared data set that it asked: folder or Hub id")
    parser.add_argument("--output_file", type=Path, default=Path("why.jsonl"))
    parser.add_argument("--overwrite", action="store_true", help="replace the file and its report")
    kept = parser.add_argument_group("what is kept")
    kept.add_argument("--keep", choices=KEEP, default="shortest", help="which of a question's fit rationales")
    kept.add_argument("--max_tokens", type=int, help="longest answer, thinking included, in the model's tokens")
    kept.add_argument(
        *("--self_consistency",),
        **{"type": float, "default": 0.0, "metavar": "SHARE"},
        help="leave questions out of whose samples fewer than this share state the same option",
    )
    kept.add_argument(
        *("--hardness",),
        **{"type": float, "default": 0.0, "metavar": "POWER"},
        help="keep a question with the probability (1 - r/(N+1)) ** POWER, of r right samples of N",
    )
    kept.add_argument("--seed", type=int, default=42, help="of the draw of --hardness")
    args = parser.parse_args()
    if args.max_tokens is not None and args.max_tokens < 1:
        raise UserError(f"--max_tokens {args.max_tokens}: give a positive number")
    if not 0 <= args.self_consistency <= 1:
        raise UserError(f"--self_consistency {args.self_consistency}: give a share from 0 to 1")
    if not 0 <= args.hardness < float("inf"):
        raise UserError(f"--hardness {args.hardness}: give 0 (all questions alike) or a positive power")
    if args.output_file.suffix != ".jsonl":
        raise UserError(f"--output_file {args.output_file}: give a name that ends in .jsonl")
    for file in (args.output_file, *report_files(args.output_file)):
        if file.exists() and not args.overwrite:
            raise UserError(f"{file} exists: pass --overwrite to replace it, or choose another --output_file")
    return args


def report_files(output_file: Path) -> tuple[Path, Path]:
    """The files of the report that belong to a file of rationales: JSON, and the page."""
    return output_file.with_suffix(".report.json"), output_file.with_suffix(".report.html")


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a finished evaluation by generation; raises `UserError` for anything else."""
    file = folder / "results.json"
    if not file.is_file() or not (folder / "predictions.parquet").is_file():
        advice = "give the command of sft/evaluate.py again: it continues where it stopped"
        raise UserError(f"--answers {folder} is not a finished evaluation: {advice}")
    results = read_json(file)
    if not isinstance(results, dict) or "generation" not in results.get("scores", {}):
        raise UserError(f"--answers {folder} has no generated answers: evaluate with --method generation")
    return results


def answered(folder: Path, rows: Any, where: str) -> Iterator[Answered]:
    """Yield the questions of an evaluation, in its order, with their samples.

    `rows` is the split that was asked. Raises `UserError` if it has other questions than the evaluation.
    """
    import pyarrow.parquet as pq

    place = {id: number for number, id in enumerate(rows["id"])}
    advice = f"name the data set that was asked; {folder}/results.json names it"
    file = pq.ParquetFile(folder / "predictions.parquet")
    if missing := set(NEEDED) - set(file.schema_arrow.names):
        raise UserError(f"--answers {folder}: predictions.parquet lacks the column {min(missing)}: evaluate it again")
    for batch in file.iter_batches(1000, columns=[*NEEDED]):
        for answer in batch.to_pylist():
            if answer["id"] not in place:
                raise UserError(f"{where} has no question {answer['id']}, which {folder} answers: {advice}")
            question = rows[place[answer["id"]]]
            prompt = user_message(question["question"], question["choices"], question["answer_format"])
            if sha256(prompt.encode()).hexdigest()[:16] != answer["prompt_id"]:
                raise UserError(f"{where} words the question {answer['id']} otherwise than {folder}: {advice}")
            columns = (answer[f"generation_{name}"] for name in ("texts", "answers", "outcomes", "tokens"))
            samples = [
                Sample(split_thinking(text)[0], option, outcome, tokens)
                for text, option, outcome, tokens in zip(*columns, strict=True)
            ]
            yield Answered(question, samples)


def fit_rationales(each: Answered, args: argparse.Namespace, sighted: bool) -> tuple[list[Sample], Counter]:
    """(samples of a question that may be trained on, each text once; all its samples by reason, or `KEPT`)."""
    fit, texts, reasons = [], set(), Counter()
    for sample in each.samples:
        reason = why_unfit(sample, each.question, args.max_tokens, sighted)
        text = " ".join(sample.reasoning.split()).casefold()
        if reason is None and text in texts:
            reason = "says the same as another"
        if reason is None:
            texts.add(text)
            fit.append(sample)
        reasons[reason or KEPT] += 1
    return fit, reasons


def left_out(each: Answered, fit: Sequence[Sample], args: argparse.Namespace) -> str | None:
    """Why a question gets no rationale, or None."""
    if not fit:
        return "no fit rationale"
    if each.agreement < args.self_consistency:
        return "its samples disagree (--self_consistency)"
    # Seeded by the question, so that no other question matters.
    draw = random.Random(f"{args.seed}:{each.question['id']}").random()  # noqa: S311
    if draw >= (1 - each.right / (len(each.samples) + 1)) ** args.hardness:
        return "too often right (--hardness)"
    return None


def chosen(fit: list[Sample], keep: str) -> list[Sample]:
    """The shortest of a question's fit rationales, the first, or all."""
    if keep == "all":
        return fit
    return [min(fit, key=lambda sample: sample.tokens) if keep == "shortest" else fit[0]]


class Yield:
    """What is counted on the way through the questions."""

    def __init__(self) -> None:
        self.questions, self.samples, self.most = 0, 0, 0
        self.reasons: Counter = Counter()  # of samples
        self.left_out: Counter = Counter()  # questions, by why
        self.by_right: dict[int, Counter] = {}  # right samples: questions and kept questions
        self.tokens: list[int] = []  # of the rationales that are kept
        self.shown: list[dict] = []

    def count(self, each: Answered, reasons: Counter, why: str | None, texts: Sequence[Sample]) -> None:
        """Count a question, and the rationales of it that are kept."""
        self.questions += 1
        self.samples += len(each.samples)
        self.most = max(self.most, len(each.samples))
        self.reasons += reasons
        row = self.by_right.setdefault(each.right, Counter())
        row["questions"] += 1
        if why:
            self.left_out[why] += 1
            return
        row["kept"] += 1
        self.tokens += [sample.tokens for sample in texts]
        if len(self.shown) < SHOWN:
            question = {key: each.question[key] for key in ("id", "question", "choices", "gold")}
            self.shown.append({**question, "right": each.right, "of": len(each.samples), "text": texts[0].reasoning})

    def report(self) -> dict[str, Any]:
        """The numbers of the report."""
        tokens = sorted(self.tokens)
        rows = [
            {"right": right, "questions": counts["questions"], "kept": counts["kept"]}
            for right, counts in sorted(self.by_right.items())
        ]
        kept = sum(row["kept"] for row in rows)
        always = self.by_right.get(self.most, Counter())
        never = self.by_right.get(0, Counter())
        return {
            "questions": self.questions,
            "samples": self.samples,
            "questions_kept": kept,
            "rationales": len(tokens),
            "right_samples": rows,
            "always_right": always["questions"] / self.questions,
            "never_right": never["questions"] / self.questions,
            "kept_of_always_right": always["kept"] / kept if kept else None,
            "samples_by_reason": dict(self.reasons.most_common()),
            "questions_left_out": dict(self.left_out.most_common()),
            "tokens": {
                "median": tokens[len(tokens) // 2],
                "p95": tokens[min(len(tokens) - 1, len(tokens) * 95 // 100)],
                "longest": tokens[-1],
                "sum": sum(tokens),
            }
            if tokens
            else None,
        }


def write_rationales(args: argparse.Namespace, results: dict[str, Any], rows: Any) -> Yield:
    """Write the file of rationales, atomically; raises `UserError` if no rationale is fit."""
    from tqdm import tqdm

    counted = Yield()
    where = f"split {results['split']} of {args.dataset_path}"
    sighted = "figures" in results  # the model was shown the figures
    with atomic_write(args.output_file) as temporary, temporary.open("w", encoding="utf-8") as file:
        for each in tqdm(answered(args.answers, rows, where), "Reading", results["n"], unit=" questions"):
            fit, reasons = fit_rationales(each, args, sighted)
            why = left_out(each, fit, args)
            texts = [] if why else chosen(fit, args.keep)
            counted.count(each, reasons, why, texts)
            if texts:
                reasoning = [sample.reasoning for sample in texts]
                id = each.question["id"].partition("#")[0]
                line = {"id": id, "reasoning": reasoning if args.keep == "all" else reasoning[0]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not counted.tokens:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in counted.reasons.most_common(3))
            raise UserError(f"--answers {args.answers}: no rationale is left of {counted.samples} samples: {reasons}")
    return counted


def main() -> None:
    args = arguments()
    results = read_results(args.answers)
    rows = load_split(args.dataset_path, results["split"])
    counted = write_rationales(args, results, rows)
    options = ("keep", "max_tokens", "self_consistency", "hardness", "seed")
    about = {"model": results["model"], "dataset": results["dataset"], "split": results["split"]}
    sampling = results["scores"]["generation"]["sampling"]
    report = {
        **about,
        "sampling": {**sampling, "seeds": [seed["seed"] for seed in results["scores"]["generation"]["seeds"]]},
        "options": {name: getattr(args, name) for name in options},
        **counted.report(),
    }
    data, page = report_files(args.output_file)
    write_json(data, report)
    with atomic_write(page) as temporary:
        temporary.write_text(render(TEMPLATE, **report, shown=counted.shown), encoding="utf-8")
    print_report(report)
    print(f"Wrote {args.output_file}, {data.name} and {page.name}")


def print_report(report: dict[str, Any]) -> None:
    """The numbers of the report, for the terminal."""
    print(f"{report['questions']:,} questions, {report['samples']:,} samples of {report['model']}")
    print(f"  {'right samples':<16}{'questions':>10}{'kept':>8}")
    for row in report["right_samples"]:
        print(f"  {row['right']:<16}{row['questions']:>10,}{row['kept']:>8,}")
    print("  samples: " + ", ".join(f"{reason} {count:,}" for reason, count in report["samples_by_reason"].items()))
    for why, count in report["questions_left_out"].items():
        print(f"  {count:,} questions without a rationale: {why}")
    tokens = report["tokens"]
    print(
        f"  kept: {report['rationales']:,} rationales of {report['questions_kept']:,} questions, "
        f"{report['kept_of_always_right']:.1%} of them always right; tokens: median {tokens['median']:,}, "
        f"95 % at most {tokens['p95']:,}, longest {tokens['longest']:,}"
    )


if __name__ == "__main__":
    run(main)
