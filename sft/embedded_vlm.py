"""Give the embedded model a vision tower, trained here on drawn figures: the model of the vision quickstart.

In: the unpacked SmolLM2-135M-Instruct (sft/embedded_model.py). Out: OUTPUT_DIR, a LLaVA model with the same language
model, a small SigLIP tower, the projector, and the processor, which `from_pretrained` opens offline.
The tower and the projector are taught to say, in the language model's own word embeddings, what a figure shows. They
see no question, and the language model is not trained.
"""

import argparse
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sft.common.command import UserError, atomic_folder, run
from sft.common.drawn_figures import SIZE, VALUES, Facts, draw, random_facts

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

MODEL_FOLDER = Path("outputs/models/SmolLM2-135M-Instruct")  # written by sft/embedded_model.py
VLM_FOLDER = Path("outputs/models/SmolLM2-135M-Vision")
TEMPLATE = Path(__file__).parents[1] / "recipes/templates/smollm2_vision.jinja"
# One of SmolLM2's special tokens that its chats never use: so no token is added, and the embeddings stay tied.
IMAGE_TOKEN = "<jupyter_output>"  # noqa: S105 (not a password)
PATCH = 16
IMAGE_TOKENS = (SIZE // PATCH) ** 2
FIGURES, HELD_OUT, STEPS, BATCH = 6000, 300, 300, 64
LEARNING_RATE, WARMUP = 1.5e-3, 30


def said(facts: Facts) -> list[str]:
    """The word that each of the 16 image tokens has to say."""
    row, column = facts.place.split()
    return [*[facts.colour] * 4, *[facts.shape] * 4, *[facts.number] * 4, *[row] * 2, *[column] * 2]


def with_untrained_tower(folder: Path) -> tuple["LlavaForConditionalGeneration", "LlavaProcessor"]:
    """The language model of `folder` in a LLaVA model whose tower and projector are random; and its processor."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    language_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    strategy = {"vision_feature_select_strategy": "full"}  # SigLIP has no class token to leave out
    config = LlavaConfig(
        text_config=language_model.config,
        vision_config=SiglipVisionConfig(
            **{"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
            **{"image_size": SIZE, "patch_size": PATCH, "vision_use_head": False},
        ),
        **{"image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), "image_seq_length": IMAGE_TOKENS},
        **{"vision_feature_layer": -1, "tie_word_embeddings": True, **strategy},
    )
    model = LlavaForConditionalGeneration(config).float()
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.tie_weights()
    model.generation_config = language_model.generation_config
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_convert_rgb=True),
        *(tokenizer,),
        **{"patch_size": PATCH, "image_token": IMAGE_TOKEN, **strategy},
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )
    return model, processor


def teach(model: "LlavaForConditionalGeneration", processor: "LlavaProcessor", steps: int = STEPS) -> dict[str, float]:
    """Train tower and projector in place; returns the share of held-out figures whose words are right, by property.

    The loss is the cross-entropy over the words that figures can need, plus the squared distance to the embedding of
    the right one, so that the language model reads a figure as it reads words.
    """
    import torch
    from torch.nn.functional import cross_entropy

    rng = random.Random(1)  # noqa: S311 (no secret depends on it)
    facts = [random_facts(rng) for _ in range(FIGURES)]
    images = [draw(each, rng) for each in facts]
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    words = sorted({word for values in VALUES.values() for value in values for word in value.split()})
    targets = torch.tensor([[words.index(word) for word in said(each)] for each in facts])
    first_tokens = [processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words]
    embeddings = model.get_input_embeddings().weight.detach()
    scale, lexicon = embeddings.std() ** 2, embeddings[first_tokens]
    mean = lexicon.mean(0)

    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    optimizer = torch.optim.AdamW([*tower.parameters(), *projector.parameters()], weight_decay=0.01)
    seen = FIGURES - HELD_OUT
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * max(0.02, 1 - step / steps)
        batch = torch.randint(0, seen, (BATCH,))
        tokens, right = image_tokens(model, pixels[batch]), targets[batch]
        logits = (tokens - mean) @ (lexicon - mean).T / scale / 20
        distance = ((tokens - lexicon[right]) ** 2).mean() / scale
        loss = cross_entropy(logits.flatten(0, 1), right.flatten()) + 0.5 * distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"  step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        tokens = image_tokens(model, pixels[seen:])
    nearest = torch.cdist(tokens.flatten(0, 1), lexicon).argmin(-1).view(-1, IMAGE_TOKENS)
    right = (nearest == targets[seen:]).float().mean(0)
    return {name: right[4 * index : 4 * index + 4].mean().item() for index, name in enumerate(VALUES)}


def image_tokens(model: "LlavaForConditionalGeneration", pixels: "torch.Tensor") -> "torch.Tensor":
    """What the language model is given for figures: (figures, 16, hidden size)."""
    return model.model.multi_modal_projector(model.model.vision_tower(pixels).last_hidden_state)


def build(output_dir: Path = VLM_FOLDER, steps: int = STEPS) -> None:
    """Raises `UserError` if the embedded model is not unpacked, or if the folder exists."""
    if not MODEL_FOLDER.is_dir():
        raise UserError(f"{MODEL_FOLDER} does not exist: run `make quickstart-vision`, which unpacks it first")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    print("Training a small vision tower on drawn figures, once (one to three minutes) ...", flush=True)
    started = time.perf_counter()
    with atomic_folder(output_dir) as folder:
        model, processor = with_untrained_tower(MODEL_FOLDER)
        right = teach(model, processor, steps)
        model.to(torch.bfloat16).save_pretrained(folder)  # as the language model's own weights are
        processor.save_pretrained(folder)
    shares = ", ".join(f"{name} {share:.3f}" for name, share in right.items())
    print(
        f"Wrote {output_dir} in {time.perf_counter() - started:.0f} s; words right on {HELD_OUT} new figures: {shares}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=VLM_FOLDER)
    build(parser.parse_args().output_dir)


if __name__ == "__main__":
    run(main)
