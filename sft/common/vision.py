"""What a model that sees reads of a question: the prompt with its figures, as the model's processor makes it.

The processor is called as TRL's collator calls it in training, so that a question is asked as it was trained.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.common.command import UserError, first_line, read_json, write_json
from sft.common.figures import Figures
from sft.common.hub import loading_errors, pinned, repo_file
from sft.common.models import base_of, load_config, model_class
from sft.common.prompts import prompt_messages

# Files of a processor beside those of its tokenizer.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# What processors return of every token; everything else is of the figures.
TOKEN_TYPES = {"token_type_ids", "mm_token_type_ids"}
GREY = (128, 128, 128)


def sees(config: Any) -> bool:
    """Whether a configuration's model reads figures beside text. Raises as `model_class`."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return type(config) in mapping and model_class(config) is mapping[type(config)]


def processor_class(config: Any) -> type:
    """The class of a model's processor, without its part for videos where torchvision, which that needs, is missing.

    Raises `UserError` for a model without a processor.
    """
    from transformers import ProcessorMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    of_model = PROCESSOR_MAPPING[type(config)]
    if not (isinstance(of_model, type) and issubclass(of_model, ProcessorMixin)):
        raise UserError(f"models of type {config.model_type} have no processor for figures in transformers")
    parts = [part for part in of_model.get_attributes() if part != "video_processor"]
    if is_torchvision_available() or len(parts) == len(of_model.get_attributes()):
        return of_model
    # Of the same name, which is written into the files.
    return type(of_model.__name__, (of_model,), {"get_attributes": classmethod(lambda cls: parts)})


def load_vision(model_path: str, tokenizer: Any, figures: Figures) -> None:
    """Give `tokenizer`, one of `load_tokenizer`, the processor of a model that sees, as its `vision`.

    An adapter's own processor, as it was trained with, else that of its base. Raises `UserError` if there is none, or
    if the chat template has no place for a figure.
    """
    where = model_path if any(repo_file(model_path, name) for name in PROCESSOR_FILES) else base_of(model_path)
    name, revision = pinned(where)
    with loading_errors(f"the processor of {where} cannot be loaded", also=Exception):
        processor = processor_class(load_config(model_path)).from_pretrained(name, revision=revision or "main")
    processor.tokenizer, processor.chat_template = tokenizer, tokenizer.chat_template
    tokenizer.vision = VisionInputs(processor, figures, where)
    image = getattr(processor, "image_token", "<image>")
    message = [{"role": "user", "content": "Which?"}]
    try:
        (text,) = tokenizer.apply_chat_template([with_figures(message, 1)], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever the template's own code raises
        raise UserError(f"chat template: {first_line(error)}, in a message with a figure") from error
    if text.count(image) != 1 or "Which?" not in text:
        raise UserError(
            f"chat template ({tokenizer.template_source}) has no place for a figure, which is {image} to this model: "
            "name one that has, with chat_template_path in a recipe, --chat_template elsewhere"
        )


def vision_of(tokenizer: Any) -> "VisionInputs | None":
    """How the model of this tokenizer is shown figures, or None where it reads text alone."""
    return getattr(tokenizer, "vision", None)


def with_figures(messages: list[dict], count: int) -> list[dict]:
    """A conversation in parts, with places for `count` figures before its first question, as TRL writes it."""
    from trl.data_utils import prepare_multimodal_messages

    turns = prepare_multimodal_messages(messages, images=[None] * count)
    # A key `image` without one would be a figure to some templates.
    return [
        {**turn, "content": [{k: v for k, v in part.items() if v is not None} for part in turn["content"]]}
        for turn in turns
    ]


def in_parts(tokenizer: Any, messages: list[dict], figures: int = 0) -> list[dict]:
    """A conversation as the model of this tokenizer takes it: in parts, with its figures, if it is one that sees."""
    return with_figures(messages, figures) if vision_of(tokenizer) else messages


def conversation_of(tokenizer: Any, question: dict) -> list[dict]:
    """The prompt of a row of a prepared data set, as the model of this tokenizer takes it."""
    messages = prompt_messages(question["question"], question["choices"], question["answer_format"])
    return in_parts(tokenizer, messages, len(question.get("images") or ()))


class VisionInputs:
    """Makes a model's inputs of prompts and figures: its processor, where that is from, and the data sets' figures."""

    def __init__(self, processor: Any, figures: Figures, source: str):
        self.processor, self.figures, self.source = processor, figures, source
        self._tokens: dict[tuple[int, int], int] = {}

    @property
    def image_token(self) -> str:
        """What stands for a figure in a rendered prompt."""
        return self.processor.image_token

    def prompt(self, question: dict, text: str, tokens: int) -> dict[str, Any]:
        """What `read` takes of a row whose rendered prompt `text` has so many tokens without its figures' own."""
        names = question.get("images") or []
        length = tokens + self.tokens(names) - len(names)
        return {"text": text, "images": names, "blank": question.get("blank", False), "length": length}

    def pictures(self, names: Sequence[str], blank: bool = False) -> list[Any]:
        """The figures of a question; with `blank`, grey ones of the same sizes."""
        from PIL import Image

        if blank:
            return [Image.new("RGB", self.figures.size(name), GREY) for name in names]
        return self.figures.read(names)

    def tokens(self, names: Sequence[str]) -> int:
        """How many tokens the figures of these names take in a prompt, their places included."""
        return sum(self._tokens_of(self.figures.size(name)) for name in names)

    def _tokens_of(self, size: tuple[int, int]) -> int:
        from PIL import Image

        if size not in self._tokens:  # counted by the processor itself, on a figure of this size
            made = self.processor(text=[self.image_token], images=[Image.new("RGB", size)], add_special_tokens=False)
            self._tokens[size] = len(made["input_ids"][0])
        return self._tokens[size]

    def read(self, prompts: Sequence[dict], side: str) -> dict[str, Any]:
        """The model's inputs of a batch of prompts, padded on one side: ids and mask, and what is of the figures.

        Each prompt is ``{"text": rendered, "images": names, "blank": whether the figures are to be grey}``.
        """
        images = [self.pictures(prompt["images"], prompt["blank"]) for prompt in prompts]
        return dict(
            self.processor(
                text=[prompt["text"] for prompt in prompts],
                images=images if any(images) else None,  # as TRL's collator does
                padding=True,
                padding_side=side,
                return_tensors="pt",
                add_special_tokens=False,
            )
        )

    def settings(self) -> dict[str, Any]:
        """How figures become numbers: sizes, means and the like, without the names of the classes that do it."""
        values = json.loads(json.dumps(self.processor.image_processor.to_dict(), default=str))
        return {key: value for key, value in sorted(values.items()) if not key.endswith(("_type", "_class"))}

    def fingerprint(self) -> str:
        """Fingerprint of what a figure becomes: the settings, and what makes the pixels (PIL or torchvision)."""
        maker = type(self.processor.image_processor).__name__
        return f"{maker} {hashlib.sha256(json.dumps(self.settings()).encode()).hexdigest()[:16]}"

    def complete(self, folder: Path) -> None:
        """Give the saved processor in `folder` the part for videos of the one that was loaded, if it lacks it.

        Where torchvision is installed, transformers would not open it without.
        """
        if hasattr(self.processor, "video_processor"):
            return
        if file := repo_file(self.source, "video_preprocessor_config.json"):
            write_json(folder / file.name, read_json(file))
        elif (file := repo_file(self.source, "processor_config.json")) and "video_processor" in (
            own := read_json(file)
        ):
            saved = read_json(folder / file.name)
            write_json(folder / file.name, saved | {"video_processor": own["video_processor"]})


def with_other_figures(questions: Sequence[dict], seed: int = 0) -> list[dict]:
    """The questions, each with the figures of one of another article; which one depends on the seed and all articles.

    Raises `UserError` if all questions are of one article.
    """
    articles = [q.get("article") or "".join(q["images"]) for q in questions]
    largest = max(Counter(articles).values(), default=0)
    if largest == len(questions):
        raise UserError("the questions are all of one article, so that none can get a figure of another one")
    # Articles one behind the other in a random order: a step as long as the largest leads into another one.
    drawn = {article: hashlib.sha256(f"{seed}:{article}".encode()).digest() for article in articles}
    order = sorted(range(len(questions)), key=lambda i: (drawn[articles[i]], i))
    other = [{}] * len(questions)
    for place, index in enumerate(order):
        behind = (order[(place + step) % len(order)] for step in range(largest, largest + len(order)))
        giver = next(i for i in behind if articles[i] != articles[index])
        other[index] = questions[index] | {"images": questions[giver]["images"]}
    return other
