"""What a run measures and shows while it trains: accuracy on dev questions, log lines, history.json and loss.png."""

import time
from numbers import Real
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import TrainerCallback

from sft.common.command import atomic_write, write_json
from sft.common.data import draw
from sft.common.display import duration
from sft.common.prompts import LETTERS
from sft.evaluation.metrics import wilson_interval
from sft.inference.likelihood import most_likely, option_log_likelihoods

PRINTED_ANSWERS = 3  # at each evaluation


class DevAccuracyCallback(TrainerCallback):
    """Answers `samples` dev questions by option likelihood at every evaluation; the draw depends on the seed alone.

    `eval_mcq_accuracy` and its 95 % interval (Wilson) stand beside the losses, where `metric_for_best_model` finds it.
    """

    def __init__(self, trainer: Any, tokenizer: Any, dev: Any, samples: int):
        self.questions = draw(dev, samples, trainer.args.seed)
        self.trainer, self.tokenizer = trainer, tokenizer
        self.answers: list[int] = []  # of the last evaluation

    def scores(self, questions: list[dict]) -> list[list[float]]:
        """Log-likelihood of every option of every question, the same on all processes.

        Every process makes equally many passes, because under ZeRO-3 and FSDP each pass needs all of them.
        """
        trainer, accelerator = self.trainer, self.trainer.accelerator
        hidden = not trainer.is_world_process_zero() or trainer.args.disable_tqdm
        numbered = list(enumerate(questions))
        with accelerator.split_between_processes(numbered, apply_padding=True) as mine, accelerator.autocast():
            numbers, asked = zip(*mine, strict=True)
            batch = trainer.args.per_device_eval_batch_size
            scored = option_log_likelihoods(trainer.model, self.tokenizer, asked, batch)
            bar = tqdm(scored, total=len(mine), desc="Dev questions", leave=False, disable=hidden)
            scores = dict(gather_object([(numbers[place], values) for place, values in bar]))
        return [scores[number] for number, _ in numbered]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict | None = None, **_: Any) -> None:
        answers = self.answers = most_likely(self.scores(self.questions))
        right = sum(answer == question["gold"] for answer, question in zip(answers, self.questions, strict=True))
        low, high = wilson_interval(right, len(answers))
        measured = {
            "eval_mcq_accuracy": right / len(answers),
            "eval_mcq_accuracy_low": low,
            "eval_mcq_accuracy_high": high,
            "eval_mcq_questions": len(answers),
        }
        if metrics is not None:
            metrics.update(measured)
        self.trainer.log(measured)
        if state.is_world_process_zero:
            for question, answer in list(zip(self.questions, answers, strict=True))[:PRINTED_ANSWERS]:
                verdict = "right" if answer == question["gold"] else f"wrong, gold {LETTERS[question['gold']]}"
                chosen = f"{LETTERS[answer]}. {question['choices'][answer][:40]}"
                tqdm.write(f"  dev: {question['question'][:70]} -> {chosen} ({verdict})")


class LogLinesCallback(TrainerCallback):
    """Prints what is logged as one line with the step and the time, for a log file, where a bar is unreadable."""

    # The step and the time at the beginning of the line stand for these.
    LEFT_OUT = ("epoch", "num_tokens", "total_flos", "_runtime", "_per_second", "entropy")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.since, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        values = [
            f"{name} {value:.4g}" if isinstance(value, Real) else f"{name} {value}"
            for name, value in logs.items()
            if not name.endswith(self.LEFT_OUT)
        ]
        if not state.is_world_process_zero or not values:
            return
        spent, done = time.monotonic() - self.since, state.global_step - self.first
        left = f", {duration(spent / done * (state.max_steps - state.global_step))} left" if done else ""
        print(f"step {state.global_step}/{state.max_steps} ({duration(spent)}{left}): {', '.join(values)}", flush=True)


class HistoryCallback(TrainerCallback):
    """Keeps history.json (every logged line) and loss.png in the output folder up to date."""

    running = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write both for the last time: what is evaluated later is the best model, not the last step."""
        self.on_evaluate(args, state, control)
        self.running = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.running and state.is_world_process_zero:
            folder = Path(args.output_dir)
            write_json(folder / "history.json", state.log_history)
            plot(state.log_history, folder / "loss.png")


def plot(history: list[dict], file: Path) -> None:
    """Draw the losses over the steps, and below them, where it was measured, dev accuracy with its interval."""
    from matplotlib.figure import Figure

    def curve(key: str) -> tuple[list, list]:
        rows = [row for row in history if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    steps, accuracies = curve("eval_mcq_accuracy")
    rows = 2 if steps else 1
    figure = Figure(figsize=(8, 2 + 2 * rows), layout="constrained")
    axes = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
    axes[0].set_ylabel("loss (nats a token)")
    for key, label, style in (("loss", "training", ".-"), ("eval_loss", "dev", "o-")):
        if curve(key)[0]:
            axes[0].plot(*curve(key), style, label=label, markersize=4)
            axes[0].legend()
    if steps:
        axes[1].plot(steps, accuracies, "o-", color="tab:green", markersize=4)
        low, high = curve("eval_mcq_accuracy_low")[1], curve("eval_mcq_accuracy_high")[1]
        axes[1].fill_between(steps, low, high, color="tab:green", alpha=0.2, label="95 % interval")
        axes[1].set(ylabel="dev accuracy", ylim=(0, 1))
        axes[1].legend()
    axes[-1].set_xlabel("step")
    for axis in axes:
        axis.grid(alpha=0.3)
    with atomic_write(file) as temporary:
        # Without the date and version that matplotlib would add: the same history gives the same bytes.
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
