"""Time and memory of preparation on a full-size synthetic PMC-VQA, against a plain row-by-row script, in one run.

    python tests/benchmarks/prepare.py --tokenizer MODEL [--chat_template FILE] [--start] [--overlap]
        [--times 10 --skip_plain]
    python tests/benchmarks/prepare.py --figures 2000

In:  nothing but a seed: 176,948 training and 50,000 test rows (PMC-VQA version 1), or `--times` as many.
Out: a table on the terminal. Memory is the peak of the proportional set size, summed over all processes of a run.

The plain script does what most repositories do: `pandas.read_csv`, one `apply_chat_template` a row inside
`Dataset.map`, `save_to_disk`. The last line is the tokenizer by itself.
Timings of a shared machine are noisy: compare the ratio, not the seconds.
"""

import argparse
import csv
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from sft.common.command import UserError, run

ROWS = {"train": 176_948, "test": 50_000}
ROOT = Path(__file__).parents[2]

PLAIN = """
import sys
import pandas as pd
from datasets import Dataset
from transformers import AutoTokenizer
folder, model, template, out, tokens = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
if template:
    tokenizer.chat_template = open(template, encoding="utf-8").read()
def row(r):
    options = [r[f"Choice {l}"].strip() for l in "ABCD"]
    messages = [
        {"role": "user", "content": r["Question"].strip() + "\\n" + "\\n".join(options)},
        {"role": "assistant", "content": r["Answer_label"] + ". " + r["Answer"], "reasoning_content": ""},
    ]
    if tokens == "tokens":
        return {"input_ids": tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]}
    return {"text": tokenizer.apply_chat_template(messages, tokenize=False)}
for split in ("train", "test"):
    frame = pd.read_csv(f"{folder}/{split}.csv", dtype=str, keep_default_na=False)
    Dataset.from_pandas(frame).map(row).save_to_disk(f"{out}/{split}")
"""

# What no preparation can do without: every text once through the tokenizer, on all cores.
TOKENIZER_ALONE = """
import glob, sys, time
import pyarrow.parquet as pq
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1]).backend_tokenizer
texts = [
    prompt[0]["content"] + completion[0]["content"]
    for file in glob.glob(sys.argv[2])
    for row in pq.read_table(file, columns=["prompt", "completion"]).to_pylist()
    for prompt, completion in [(row["prompt"], row["completion"])]
]
start = time.perf_counter()
tokenizer.encode_batch_fast(texts, add_special_tokens=False)
print(f"tokenizer {time.perf_counter() - start:>10.1f} s   (every text once, {len(texts):,} texts)")
"""


def write_synthetic(folder: Path, rows: dict[str, int], seed: int = 0) -> None:
    """Write SPLIT.csv with so many rows, as long as PMC-VQA's.

    With DeepSeek's vocabulary and template, 250 real rows have 48 to 190 tokens, 69 on average, half of them 57 to 74;
    a thousand of these have 48 to 184, 67 on average, half of them 58 to 72 (prepare.py --tokenizer tells).
    """
    from data_prep.sample_rows import V1_HEADER, load_facts, written_choice
    from sft.common.prompts import LETTERS

    rng = random.Random(seed)  # noqa: S311
    facts = [fact for group in load_facts() for fact in group["facts"]]
    words = sorted({word.strip(".,?") for fact in facts for word in fact["statement"].split()})
    questions = [phrasing for fact in facts for phrasing in fact["phrasings"]]
    total = 0
    for split, size in rows.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(V1_HEADER)
            for _ in range(size):
                total += 1
                # Two questions a figure, three figures an article, as in the real files.
                figure = f"PMC{90_000_000 + total // 6}_F{total // 2 % 3 + 1}.jpg"
                last_word = rng.choice(words)
                question = f" {rng.choice(questions)[:-1]} {last_word}? "
                # A question's options are about as long as one another: mostly two or three words, sometimes twenty.
                length = min(20, rng.lognormvariate(0.72, 0.7))
                drawn = rng.sample([word for word in words if word != last_word], 4)
                gold = rng.randrange(4)
                # Something to learn: the right option ends as the question does. And no two are the same.
                drawn[gold] = last_word
                lengths = [max(0, round(length - 1 + rng.uniform(-1, 1))) for _ in drawn]
                options = [" ".join([*rng.sample(words, n), last]) for n, last in zip(lengths, drawn, strict=True)]
                cells = [written_choice(letter, text, rng) for letter, text in zip(LETTERS, options, strict=False)]
                writer.writerow([figure, question, options[gold], *cells, LETTERS[gold]])


def write_tiny_model(folder: Path, tokenizer_path: str, chat_template: str) -> None:
    """A random Llama of two layers with the given tokenizer, so that a training step costs next to nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from sft.common.models import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path, chat_template or None)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def peak_and_seconds(words: list[str], **variables: str) -> tuple[float, float]:
    """(GiB, seconds) of a command and all its children; stops the benchmark if the command fails."""
    import psutil

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", **variables}
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)
        me = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            for one in (me, *me.children(recursive=True)):
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:  # it has just ended
                    continue
            peak = max(peak, total)
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            sys.exit(log.read().decode()[-2000:])
    return peak / 2**30, seconds


def start_of_training(work: Path, tokenizer: str, folder: str) -> float:
    """Seconds of sft/run.py on the prepared `folder`, up to one step and out again; printed with its memory."""
    words = ["sft/run.py", "recipes/pmcvqa.yaml", "--use_cpu", "yes", "--model_name_or_path", tokenizer]
    words += ["--dataset_name", str(work / folder), "--output_dir", str(work / "out"), "--max_steps", "1"]
    words += [
        "--chat_template_path",
        str(work / "tiny/chat_template.jinja"),
        "--eval_strategy",
        "no",
        "--eval_on_start",
        "no",
    ]
    words += ["--save_strategy", "no", "--load_best_model_at_end", "no", "--mcq_eval_samples", "0"]
    memory, seconds = peak_and_seconds([sys.executable, *words], HF_HOME=str(work / "cache"))
    shutil.rmtree(work / "out")
    print(f"sft/run.py, one step from {folder:<8}{seconds:>8.1f} s {memory:>7.2f} GiB", flush=True)
    return seconds


def time_overlap(work: Path, rows: int) -> None:
    """Time data_prep/overlap.py: so many other training rows against the dev and test rows of the folder `text`."""
    (work / "other").mkdir()
    write_synthetic(work / "other", {"train": rows}, seed=1)
    words = ["--dataset_path", str(work / "other"), "--output_dir", str(work / "train"), "--dev_size", "0"]
    peak_and_seconds([sys.executable, "data_prep/prepare.py", *words])
    words = [str(work / "train"), "--against", str(work / "text")]
    memory, seconds = peak_and_seconds([sys.executable, "data_prep/overlap.py", *words])
    print(f"{'overlap':<10}{seconds:>10.1f} s {memory:>7.2f} GiB", flush=True)


def time_figures(work: Path, count: int) -> None:
    """Time preparation with so many figures of 0.6 megapixels and about 130 kB, as those of PMC-VQA are."""
    import numpy as np
    from PIL import Image

    work.mkdir(exist_ok=True)
    (work / "images").mkdir()
    write_synthetic(work, {"train": count})
    with open(work / "train.csv", newline="", encoding="utf-8") as file:
        names = sorted({row["Figure_path"] for row in csv.DictReader(file)})
    numbers = np.random.default_rng(0)
    for name in names:
        coarse = numbers.integers(0, 256, (90, 120, 3), np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((900, 675), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (picture + numbers.integers(-6, 7, picture.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(work / "images" / name, "JPEG", quality=76)
    size = sum(file.stat().st_size for file in (work / "images").iterdir()) / len(names)
    words = ["--dataset_path", str(work), "--figures", str(work / "images"), "--output_dir", str(work / "out")]
    before = os.times()
    memory, seconds = peak_and_seconds([sys.executable, "data_prep/prepare.py", *words])
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    print(
        f"{len(names):,} figures of {size / 1000:.0f} kB: {seconds:.1f} s, {len(names) / seconds:.0f} a second, ",
        end="",
    )
    print(f"{1000 * spent / len(names):.1f} ms of a core each, peak {memory:.2f} GiB", flush=True)


def tokenizer_alone(tokenizer: str, files: str) -> float:
    """Seconds of the tokenizer on every text of these Parquet files, on all cores."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", TOKENIZER_ALONE, tokenizer, files]
    shown = subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    print(shown, end="", flush=True)
    return float(shown.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=int, help="time so many figures alone")
    parser.add_argument("--tokenizer", help="folder or Hub id of the model whose tokens are made")
    parser.add_argument("--chat_template", default="")
    parser.add_argument("--times", type=int, default=1, help="multiple of PMC-VQA's size")
    parser.add_argument("--start", action="store_true", help="also time sft/run.py up to its first step")
    parser.add_argument("--overlap", action="store_true", help="also time data_prep/overlap.py against as many rows")
    parser.add_argument("--skip_plain", action="store_true", help="leave the plain script out")
    args = parser.parse_args()
    if args.times < 1:
        raise UserError(f"--times {args.times}: give a positive number")
    if args.figures:
        with tempfile.TemporaryDirectory() as name:
            return time_figures(Path(name), args.figures)
    if not args.tokenizer:
        raise UserError("--tokenizer is not given: name the model whose tokens are made")

    from sft.common.models import load_tokenizer

    load_tokenizer(args.tokenizer, args.chat_template or None)  # refused now rather than after the first runs

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "in").mkdir()
        sizes = {split: size * args.times for split, size in ROWS.items()}
        write_synthetic(work / "in", sizes)
        size = sum(file.stat().st_size for file in (work / "in").iterdir()) / 2**20
        print(f"{sum(sizes.values()):,} rows, {size:.0f} MiB of CSV", flush=True)
        if args.start:
            write_tiny_model(work / "tiny", args.tokenizer, args.chat_template)
            args.tokenizer, args.chat_template = str(work / "tiny"), ""
        template = ["--chat_template", args.chat_template] if args.chat_template else []
        ours = [sys.executable, "data_prep/prepare.py", "--dataset_path", str(work / "in"), "--output_dir"]
        plain = [sys.executable, "-c", PLAIN, str(work / "in"), args.tokenizer, args.chat_template]
        runs = {"text": [], "tokens": ["--pretokenize", args.tokenizer, *template]}
        print(f"{'':<10}{'prepare.py':>24}{'plain script':>24}{'ratio':>8}")
        for what, options in runs.items():
            memory, seconds = peak_and_seconds([*ours, str(work / what), *options])
            line = f"{what:<10}{seconds:>10.1f} s {memory:>7.2f} GiB"
            if not args.skip_plain:
                plain_memory, plain_seconds = peak_and_seconds([*plain, str(work / f"plain-{what}"), what])
                line += f"{plain_seconds:>12.1f} s {plain_memory:>7.2f} GiB{plain_seconds / seconds:>8.1f}"
            print(line, flush=True)
        if args.overlap:
            time_overlap(work, sum(sizes.values()))
        if args.start:
            peak_and_seconds([*ours, str(work / "few"), "--max_samples", "500"])
            start_up, first, again, _ = (
                start_of_training(work, args.tokenizer, folder) for folder in ("few", "text", "text", "tokens")
            )
            alone = tokenizer_alone(args.tokenizer, str(work / "text/train/*.parquet"))
            print(
                f"beyond start-up: {first - start_up:.1f} s the first time, {(first - start_up) / alone:.2f} x the ",
                end="",
            )
            print(f"tokenizer alone; {again - start_up:.1f} s the next")
        elif args.times == 1:
            tokenizer_alone(args.tokenizer, str(work / "text/*/*.parquet"))
    names = ("datasets", "pyarrow", "tokenizers", "transformers")
    print(f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in names))


if __name__ == "__main__":
    run(main)
