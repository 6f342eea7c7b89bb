"""Training on figures: the rows as TRL's collator takes them, and the proof that the model sees what is asked about.

A model can be trained on questions about figures without seeing them, with a loss that falls as it should. So what the
collator makes is compared with what evaluation and inference read, and figures are exchanged: before the first step
some logit must move, later some answers.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sft.common import chat_template
from sft.common.chat_template import IGNORED, render, split_completions, up_to_end_of_turn
from sft.common.command import UserError, sha256
from sft.common.vision import conversation_of, in_parts, vision_of, with_other_figures
from sft.inference.likelihood import most_likely, prompt_inputs
from sft.training.callbacks import DevAccuracyCallback
from sft.training.tokens import check_lengths, mapped

COLUMNS = ["prompt", "completion", "images"]
CHECKED_ROWS = 4
# Fewer dev answers than this share that change with other figures are those of a model that does not look: vision
# towers trained at the rate of an adapter came to 1 to 2 %, models that look to 69 % and more. Of fewer questions the
# share says too little.
SMALLEST_CHANGE, QUESTIONS = 0.05, 40
SPREAD_FIGURES = 16
ADVICE = "freeze the vision tower (lora_target_modules on the language model alone), or lower learning_rate"


@dataclass
class FigureCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator, with the end of the turn as the last token that is trained, as in rows of text."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch, tokenizer = super().torch_call(examples), self.processor.tokenizer
        for labels in batch["labels"]:
            (places,) = (labels != IGNORED).nonzero(as_tuple=True)
            kept = len(up_to_end_of_turn(tokenizer, labels[places].tolist(), "a row"))
            labels[places[kept:]] = IGNORED
        return batch


def check_figures(rows: Any, tokenizer: Any, name: str, data_sets: str) -> None:
    """Raise `UserError` if no row has figures, or if one has a figure that the archives do not hold."""
    advice = "prepare the data set with --figures, or train this model on the text alone with figures: false"
    if "images" not in rows.column_names or not any(rows["images"]):
        raise UserError(f"the {name} rows of {data_sets} have no figures, and the model sees: {advice}")
    figures = vision_of(tokenizer).figures
    missing = [figure for images in rows["images"] for figure in images if figure not in figures]
    if missing:
        raise UserError(f"figures.zip of {data_sets} lacks {missing[0]}, which a {name} row names: prepare it again")


def checked_lengths(rows: Any, tokenizer: Any, name: str, max_length: int | None, num_proc: int | None) -> list[int]:
    """Tokens of each row, its figures' included; each row is checked as rows of text are.

    Raises `UserError` if a row breaks parity, writes the mark of a figure as text, or is longer than `max_length`.
    """
    parts = (rows._fingerprint, chat_template.tokenizer_fingerprint(tokenizer), vision_of(tokenizer).fingerprint())
    parts += (sha256(Path(chat_template.__file__)), sha256(Path(__file__)))
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    lengths = mapped(rows.select_columns(COLUMNS), _lengths, tokenizer, digest, num_proc, f"Checking {name} rows")
    check_lengths(lengths["length"], max_length, name)
    return lengths["length"]


def _lengths(batch: dict[str, list], tokenizer: Any) -> dict[str, list]:
    vision = vision_of(tokenizer)
    mark = tokenizer.convert_tokens_to_ids(vision.image_token)
    prompts = [
        in_parts(tokenizer, prompt, len(names)) for prompt, names in zip(batch["prompt"], batch["images"], strict=True)
    ]
    rows = split_completions(tokenizer, prompts, [in_parts(tokenizer, turn) for turn in batch["completion"]])
    lengths = []
    for row, prompt, names in zip(rows, batch["prompt"], batch["images"], strict=True):
        ids = row["prompt_ids"] + row["completion_ids"]
        if ids.count(mark) != len(names):
            asked = prompt[-1]["content"][:60]
            raise UserError(
                f"the row that asks {asked!r} has {len(names)} figures, and the mark of a figure, "
                f"{vision.image_token}, stands in it {ids.count(mark)} times: take the mark out of its text"
            )
        lengths.append(len(ids) + vision.tokens(names) - len(names))
    return {"length": lengths}


def with_pictures(rows: Any, tokenizer: Any) -> Any:
    """The rows as TRL's collator takes them; each process opens the figures as it needs them."""
    figures = vision_of(tokenizer).figures

    def show(batch: dict[str, list]) -> dict[str, list]:
        return {**batch, "images": [figures.read(names) for names in batch["images"]]}

    return rows.select_columns(COLUMNS).with_transform(show)


def check_collated(trainer: Any, tokenizer: Any, rows: Any) -> None:
    """Compare what the collator makes of some rows with what evaluation and inference read, id by id.

    Raises `UserError` if the tokens before the first trained one, or the figures, differ.
    """
    chosen = rows.select(range(min(CHECKED_ROWS, len(rows)))).to_list()
    batch = trainer.data_collator(list(with_pictures(rows.select(range(len(chosen))), tokenizer)))
    inputs = vision_of(tokenizer).read(prompts_of(tokenizer, chosen), "right")
    lengths = inputs["attention_mask"].sum(-1).tolist()
    for index, length in enumerate(lengths):
        ids, labels = batch["input_ids"][index], batch["labels"][index]
        trained = (labels != IGNORED).nonzero()
        prompt = (
            ids[: trained[0, 0]] if trainer.args.completion_only_loss is not False and len(trained) else ids[:length]
        )
        if not torch.equal(prompt, inputs["input_ids"][index, :length]):
            raise UserError(
                f"the row that asks {chosen[index]['question'][:60]!r} is trained behind other tokens than "
                "evaluation and inference write: use another chat template (chat_template_path)"
            )
    for name in inputs.keys() - {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}:
        if not torch.equal(batch[name], inputs[name]):
            raise UserError(f"{name} of the trained rows are not those of evaluation and inference: please report it")


def prompts_of(tokenizer: Any, questions: list[dict]) -> list[dict]:
    """What `VisionInputs.read` takes of rows of a prepared data set."""
    texts = render(tokenizer, [conversation_of(tokenizer, q) for q in questions], add_generation_prompt=True)
    return [vision_of(tokenizer).prompt(q, text, 0) for q, text in zip(questions, texts, strict=True)]


def check_sighted(model: Any, tokenizer: Any, rows: Any) -> None:
    """Exchange the figures of a few questions; raises `UserError` if no logit moves."""
    shown = [row for row in rows.select(range(min(100, len(rows)))).to_list() if row["images"]][:CHECKED_ROWS]
    other = [q | {"images": p["images"]} for q, p in zip(shown, [*shown[1:], *shown[:1]], strict=True)]
    if all(q["images"] == p["images"] for q, p in zip(shown, other, strict=True)):  # of one figure
        other = [q | {"blank": True} for q in shown]
    training = model.training
    model.eval()
    with torch.no_grad():
        # One by one, because figures may differ in their numbers of tokens.
        moved = any(
            not torch.equal(*(last_logits(model, tokenizer, question) for question in pair))
            for pair in zip(shown, other, strict=True)
        )
    model.train(training)
    if not moved:
        raise UserError(
            "the model is blind: no logit moves when the figures of questions are exchanged. Does the model read the "
            "figures that its processor makes (model_name_or_path)?"
        )


def last_logits(model: Any, tokenizer: Any, question: dict) -> Any:
    """The logits behind a question's prompt."""
    inputs = prompt_inputs(model, tokenizer, prompts_of(tokenizer, [question]), "right")
    return model(**inputs, logits_to_keep=1).logits[0, -1]


def token_spread(model: Any, tokenizer: Any, questions: list[dict]) -> float:
    """How much the tokens of figures differ from one another, as a share of their size: 0 of a tower that collapsed.

    The standard deviation over figures of each number of the mean token, by the root mean square of these numbers.
    """
    vision = vision_of(tokenizer)
    means = []
    for names in {tuple(q["images"]): None for q in questions if q["images"]}:
        inputs = vision.processor.image_processor(vision.pictures(names), return_tensors="pt").to(model.device)
        tower = model.get_base_model() if hasattr(model, "get_base_model") else model
        with torch.no_grad():
            features = tower.get_image_features(**inputs)
        features = getattr(features, "pooler_output", features)
        means.append(torch.cat([part.flatten(0, -2) for part in features]).float().mean(0))
    means = torch.stack(means)
    return (means.std(0).square().mean() / means.square().mean()).sqrt().item()


class VisionCallback(TrainerCallback):
    """Makes sure that the model sees: `check_collated` and `check_sighted` before the first step, and at evaluations.

    At every evaluation `eval_answers_changed` is the share of the dev questions whose answer is another one with the
    figures of another article, and `eval_figure_spread` is `token_spread`.
    """

    def __init__(self, trainer: Any, tokenizer: Any, rows: Any, accuracy: DevAccuracyCallback | None):
        """`rows` are those of training; `accuracy` has the dev questions, where there are any."""
        self.trainer, self.tokenizer, self.rows, self.accuracy = trainer, tokenizer, rows, accuracy
        self.exchanged = with_other_figures(accuracy.questions, trainer.args.seed) if accuracy else []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        check_collated(self.trainer, self.tokenizer, self.rows)
        with self.trainer.accelerator.autocast():
            check_sighted(self.trainer.model, self.tokenizer, self.rows)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict | None = None, **_: Any) -> None:
        """Raises `UserError` if, once something was trained, so few answers change that the model does not look."""
        if not self.accuracy:
            return
        questions = self.accuracy.questions
        answers = most_likely(self.accuracy.scores(self.exchanged))
        right = sum(answer == q["gold"] for answer, q in zip(answers, questions, strict=True))
        changed = sum(a != b for a, b in zip(answers, self.accuracy.answers, strict=True))
        share, model = changed / len(questions), self.trainer.model
        with self.trainer.accelerator.autocast():
            spread = token_spread(model, self.tokenizer, questions[:SPREAD_FIGURES])
        measured = {"eval_mcq_accuracy_shuffled": right / len(questions), "eval_answers_changed": share}
        measured["eval_figure_spread"] = spread
        if metrics is not None:
            metrics.update(measured)
        self.trainer.log(measured)
        if state.global_step and len(questions) >= QUESTIONS and share < SMALLEST_CHANGE:
            raise UserError(
                f"the model has become blind: of {len(questions)} dev answers {changed} change with the figures of "
                f"other articles, after step {state.global_step}: {ADVICE}"
            )
