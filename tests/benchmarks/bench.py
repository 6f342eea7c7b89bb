"""The programs that are compared: how each is started on the same model and rows, and what one run of it shows.

A CONTENDER is
    trl             `trl sft` with its own defaults
    plain           transformers' Trainer: rows padded together, loss on the whole sequence, activation checkpointing,
                    batch 4 (tests/benchmarks/plain_trainer.py)
    llamafactory    LLaMA-Factory with its own defaults, in an environment of its own
    "[NAME=VALUE ...] [words of accelerate launch] recipes/X.yaml [--key value ...]"
                    sft/run.py with this recipe, started as its first lines say or as the words before it do
"""

import dataclasses
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

# For the files beside this one; last, because one of them is called as a package that others import.
sys.path.append(str(Path(__file__).parent))

from inputs import HERE, ROOT
from running import run_limited, why_failed

from sft.common.command import UserError, read_json, write_json
from sft.common.models import cpu_has_bf16
from sft.training.base_model import for_base_model
from sft.training.checks import check_all, for_this_cpu
from sft.training.config import read_recipe, resolve
from sft.training.hardware import Hardware
from sft.training.launch import read_launch_file
from sft.training.plan import plan_memory

# The first steps of a run, which warm up kernels and allocators.
WARM_UP = 2
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
    """The contenders, on the inputs in a folder (`inputs.write_inputs`); `start` runs a command."""

    shares_cache = False

    def __init__(
        self, work: Path, recipe: str | Path, llamafactory: Path | None = None, start: Callable = run_limited
    ) -> None:
        if read_recipe(Path(recipe)).get("use_cpu"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for all contenders
        self.work, self.recipe, self.llamafactory, self.start, self.runs = work, recipe, llamafactory, start, 0
        self.settings = resolve([str(recipe)])
        self.model, self.data, self.held_out = work / "model", work / "data", work / "held_out.json"
        self.flops: tuple[float, float] = tuple(read_json(work / "flops.json"))
        template = (self.model / "chat_template.jinja").read_text(encoding="utf-8")
        self.llamafactory_template = "deepseekr1" if "<｜Assistant｜>" in template else "smollm2"
        # On a CPU as ours, which ON_CPU or sft/run.py decides.
        self.precision, self.dtype = self.settings.precision, self.settings.dtype
        if not has_gpu() and self.precision != "no":
            self.precision, self.dtype = ("bf16", "bfloat16") if cpu_has_bf16() else ("no", "float32")

    def environment(self, out: Path) -> dict[str, str]:
        """The variables of a command that writes into `out`."""
        variables = {**os.environ, "HELD_OUT": str(self.held_out), "HF_HUB_OFFLINE": "1"}
        if not self.shares_cache:  # what one contender prepared would be there for the next
            variables["HF_HOME"] = str(out.with_name(f"{out.name}-home"))
            for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
                variables.pop(name, None)
        # Launchers differ in how many they give.
        variables.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        return variables

    def command(self, contender: str, out: Path, result: Path) -> tuple[list[str], dict[str, str]]:
        """(words, environment) that train `contender` and leave `result`."""
        watched = [str(HERE / "measured.py"), str(result)]
        environment = self.environment(out)
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        name, *more = contender.split()
        if name in ("trl", "plain"):
            launcher += launch_of(self.recipe)
            program = "trl.scripts.sft" if name == "trl" else str(HERE / "plain_trainer.py")
            return [*launcher, *watched, program, *self.words_of_trl(name, out), *more], environment
        if contender == "llamafactory":
            config = self.write_llamafactory(out)
            return [str(self.llamafactory), *watched, "llamafactory.launcher", str(config)], environment
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

        if self.llamafactory is None:
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

    def plan(self, contender: str, hardware: Hardware) -> float | None:
        """GiB that the preflight estimates for a recipe on `hardware`, None for an architecture that it cannot count.

        Raises `UserError` for what the preflight refuses.
        """
        words, _ = self.command(contender, self.work / "planned", self.work / "planned.json")
        file = words[words.index("--config_file") + 1]
        count = int(words[words.index("--num_processes") + 1]) if "--num_processes" in words else 1
        launch = dataclasses.replace(read_launch_file(ROOT / file), processes=count)
        launch = launch if count > 1 or launch.kind != "ddp" else dataclasses.replace(launch, kind="none")
        settings = resolve(words[words.index("sft/run.py") + 1 :]).for_world_size(count)
        settings = for_this_cpu(settings, launch)
        check_all(settings, launch, hardware)
        longest = max(len(ids) for ids, _ in read_json(self.held_out))
        return plan_memory(for_base_model(settings, launch), launch, hardware, longest).peak

    def measure(self, contender: str, seconds: float | None = None, log: Path | None = None) -> dict:
        """Run one contender once; what measured.py wrote, or {"failed": why}, with None for too few `seconds`."""
        self.runs += 1
        out, result = self.work / f"out-{self.runs}", self.work / f"result-{self.runs}.json"
        log = log or out.with_suffix(".log")
        result.unlink(missing_ok=True)
        words, environment = self.command(contender, out, result)
        environment["STARTED"] = str(time.time())
        try:
            code = self.start(words, environment, log, seconds)
        finally:
            shutil.rmtree(out, ignore_errors=True)
        if code is None or not result.is_file():
            return {"failed": None if code is None else why_failed(log, code)}
        measured = read_json(result)
        estimated = re.search(r"Peak memory, estimated: ([\d.]+) GiB", log.read_text(encoding="utf-8"))
        measured["devices"] = measured["processes"] if has_gpu() else 1
        measured["estimated_gib"] = float(estimated[1]) if estimated and has_gpu() else None
        attention = re.search(r"^Attention: (\S+)", log.read_text(encoding="utf-8"), re.MULTILINE)
        measured["attention"] = attention and attention[1]
        if every := re.search(r'"every_n_layers": (\d+)', contender):
            measured["checkpointing"] /= int(every[1])  # the share of layers that are recomputed
        if (steps := len(measured["steps"])) <= WARM_UP:
            return {"failed": f"{steps} steps, none after {WARM_UP} to warm up: more --rows"}
        return measured


def has_gpu() -> bool:
    """Whether contenders train on a GPU."""
    import torch

    return torch.cuda.is_available()


def launch_of(recipe: str | Path) -> list[str]:
    """The words of `accelerate launch` in the first lines of `recipe`; without a GPU, one process for FSDP."""
    from memory import named_launch

    file, launch = named_launch(ROOT / recipe)
    if not has_gpu() and launch.kind in ("none", "fsdp"):
        return ["--config_file", "accelerate_configs/cpu.yaml"]
    return ["--config_file", str(file), "--num_processes", str(launch.processes)]


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
