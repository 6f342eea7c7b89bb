"""Run any training program that uses transformers' Trainer, and note what it takes.

    python tests/benchmarks/measured.py RESULT.json PROGRAM [word ...]

PROGRAM is a script (`sft/run.py`) or a module (`trl.scripts.sft`); it runs in this process as it is, and its own words
follow. Two hooks note the rest: a callback that every Trainer takes, and one on import that times a few functions of
the libraries. Nothing of this project is imported, so that programs of other environments can be measured too.

RESULT.json, written when training ends:
    seconds        from the start of the command (STARTED in the environment) to the end of the first step, by stage
    together       all of these seconds, by the clock on the wall
    steps          of each: [its end in seconds, examples, tokens read, tokens without padding, tokens with a label]
    peak_gib       of the training steps: allocated on the GPU, or else resident in memory at any time
    reserved_gib   on the GPU, of the training steps: what the allocator holds, allocated or not
    loading_gib    on the GPU, before the first step: the peak of loading, where weights are quantised
    processes      that train together; steps and memory are those of the first
    checkpointing  whether activations are recomputed
    losses         as the Trainer logged them
    grad_norms     likewise
    held_out       mean loss of a completion's tokens on the rows of HELD_OUT, the same measure for every program
"""

import importlib._bootstrap as imports
import json
import os
import runpy
import sys
import threading
import time
from functools import wraps
from pathlib import Path

BEGAN = time.time()

# What is timed: {module: {function: stage}}. A stage stops the clock of the one around it, and an import that of any.
TIMED = {
    "datasets.load": {"load_dataset": "data"},
    "sft.training.plan": {"load_and_check_data": "data", "plan_memory": "memory estimate"},
    "transformers.modeling_utils": {"PreTrainedModel.from_pretrained": "model"},
    "peft.mapping_func": {"get_peft_model": "model"},
    "trl.trainer.sft_trainer": {"SFTTrainer._prepare_dataset": "preparation"},
}


class Stopwatch:
    """Seconds by stage; time inside a stage inside another counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stages, self.since = ["other"], time.perf_counter()

    def begin(self, stage: str) -> None:
        """Stop the clock of the stage around and start this one's."""
        self._note()
        self.stages.append(stage)

    def end(self) -> None:
        """Go back to the stage around."""
        self._note()
        self.stages.pop()

    def _note(self) -> None:
        now = time.perf_counter()
        self.seconds[self.stages[-1]] = self.seconds.get(self.stages[-1], 0.0) + now - self.since
        self.since = now

    def timed(self, function, stage: str):
        """`function`, its time noted as `stage`."""

        @wraps(function)
        def wrapper(*words, **options):
            self.begin(stage)
            try:
                return function(*words, **options)
            finally:
                self.end()

        return wrapper


def watch_imports(stopwatch: Stopwatch, out: Path) -> None:
    """Time imports, and what `TIMED` names as soon as its module is there; give every Trainer the callback."""
    load = stopwatch.timed(imports._find_and_load, "imports")

    def find_and_load(name, import_):
        module = load(name, import_)
        watch(name, module)
        return module

    def watch(name, module):
        # Another import may ask for a module that is half loaded: what is missing then is wrapped the next time.
        for function, stage in list(TIMED.get(name, {}).items()):
            holder = module
            *path, last = function.split(".")
            for part in path:
                holder = getattr(holder, part, None)
            plain = vars(holder).get(last) if holder is not None else None
            if plain is None:
                continue
            del TIMED[name][function]
            if isinstance(plain, classmethod):
                setattr(holder, last, classmethod(stopwatch.timed(plain.__func__, stage)))
            else:
                setattr(holder, last, stopwatch.timed(plain, stage))
        if name == "transformers.models.llama.modeling_llama" and os.environ.get("LIGER"):
            use_liger_kernels()
        if name == "transformers.trainer" and len(getattr(module, "DEFAULT_CALLBACKS", ())) == 1:
            module.DEFAULT_CALLBACKS.append(observer(stopwatch, out))

    imports._find_and_load = find_and_load
    for name in (*TIMED, "transformers.trainer"):  # in a fork they are there already
        if name in sys.modules:
            watch(name, sys.modules[name])


def use_liger_kernels() -> None:
    """Liger's kernels for rotation, norms and gates of a Llama; the loss stays TRL's, of labelled positions alone."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False)


def end_with_owner() -> None:
    """End this process when the benchmark that started it is gone, however that ended: it would hold the GPU."""
    owner = Path("/proc", os.environ.get("BENCHMARK_OWNER", "self"))

    def watch():
        while owner.exists():
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def observer(stopwatch: Stopwatch, out: Path):
    """The class of the callback that counts, looks at the clock and writes `out`."""
    import torch
    from transformers import TrainerCallback

    gpu = torch.cuda.is_available()

    class Observer(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_):
            self.checkpointing = bool(getattr(model, "is_gradient_checkpointing", False))
            self.counts, self.steps, self.first = [], [], None
            self.loading = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            self.hook = model.register_forward_pre_hook(self.count, with_kwargs=True)

        @torch.compiler.disable
        def count(self, model, words, inputs):
            ids, labels = inputs["input_ids"], inputs.get("labels")
            mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
            packed = positions is not None and mask is None
            # Numbers stay on their device until the end of the run: to look at them now would make the GPU wait.
            examples = (positions == 0).sum() if packed else ids.shape[0]
            self.counts.append(
                [examples, ids.numel(), ids.numel() if mask is None else (mask != 0).sum(), (labels != -100).sum()]
            )

        def on_step_begin(self, args, state, control, **_):
            if self.first is None:
                stopwatch.begin("first step")

        def on_step_end(self, args, state, control, **_):
            if gpu:
                torch.cuda.synchronize()
            self.steps.append((time.perf_counter(), len(self.counts)))
            if self.first is None:
                stopwatch.end()
                self.together = time.time() - float(os.environ["STARTED"])
                self.first = {"launcher": BEGAN - float(os.environ["STARTED"]), **stopwatch.seconds}

        def on_train_end(self, args, state, control, model=None, **_):
            self.hook.remove()
            peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else resident_peak()
            reserved = torch.cuda.max_memory_reserved() / 2**30 if gpu else None
            held_out = held_out_loss(model, args)
            if not state.is_world_process_zero:
                return
            steps, done = [], 0
            for end, upto in self.steps:
                totals = [sum(map(int, column)) for column in zip(*self.counts[done:upto], strict=True)]
                steps.append([end - self.steps[0][0], *totals])
                done = upto
            logged = {key: [row[key] for row in state.log_history if key in row] for key in ("loss", "grad_norm")}
            result = {"seconds": self.first, "together": self.together, "steps": steps, "peak_gib": peak}
            result |= {"processes": args.world_size, "checkpointing": self.checkpointing}
            result |= {"reserved_gib": reserved, "loading_gib": self.loading, "held_out": held_out}
            result |= {"losses": logged["loss"], "grad_norms": logged["grad_norm"]}
            out.write_text(json.dumps(result), encoding="utf-8")

    return Observer


def resident_peak() -> float:
    """GiB that this process had in memory at most; a child's getrusage would begin with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def held_out_loss(model, args) -> float:
    """Mean negative log-likelihood of a completion's token in HELD_OUT: [[token ids, tokens of the prompt], ...]."""
    import torch

    rows = json.loads(Path(os.environ["HELD_OUT"]).read_text(encoding="utf-8"))
    device, total, count = args.device, 0.0, 0
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, dtype=half, enabled=half is not None):
        for ids, prompt in rows:
            # One at a time: no padding, and no program's own idea of it.
            tensor = torch.tensor([ids], device=device)
            logits = model(input_ids=tensor, attention_mask=torch.ones_like(tensor), use_cache=False).logits
            likelihoods = logits[0, prompt - 1 : -1].float().log_softmax(-1)
            total -= likelihoods.gather(-1, tensor[0, prompt:, None]).sum().item()
            count += len(ids) - prompt
    return total / count


def main() -> None:
    if len(sys.argv) < 3 or "STARTED" not in os.environ or "HELD_OUT" not in os.environ:
        print(f"error: {Path(__file__).name} is started by tests/benchmarks/bench.py", file=sys.stderr)
        sys.exit(2)
    out, program, *words = sys.argv[1:]
    sys.argv = [program, *words]
    end_with_owner()
    watch_imports(Stopwatch(), Path(out))
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path.pop(0)
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
