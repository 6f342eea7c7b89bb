"""Generate answers: in batches, or word by word for someone who waits."""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from sft.common.chat_template import (
    closed_think_ids,
    open_think_prefix,
    stop_tokens,
    think_marks,
    with_think_block,
)
from sft.common.command import UserError
from sft.common.vision import vision_of
from sft.inference.likelihood import pad

Ids = list[list[int]]  # token ids of each sequence of a batch
Prompts = Ids | list[dict]  # token ids, or what `VisionInputs.read` takes


@dataclass(frozen=True)
class Sampling:
    """How text is sampled, by default as DeepSeek advises for its R1 models; raises `UserError` for a wrong number."""

    max_new_tokens: int = 2048
    temperature: float = 0.6  # 0 takes the likeliest token every time
    top_p: float = 0.95
    seed: int = 42
    thinking: bool = True  # False closes the think block at once, in models that have one

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens {self.max_new_tokens}: give a positive number")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature {self.temperature}: give 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p {self.top_p}: give a share above 0, at most 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed}: give a number from 0 to {2**32 - 1}")


class Generated(NamedTuple):
    """A model's turn, with the think block that the prompt opened, and the number of tokens that it wrote."""

    text: str
    tokens: int
    hit_limit: bool


def check_context(context: int | None, prompt: int, new: int, where: str) -> None:
    """Raise `UserError` if a prompt and what may follow, in tokens, do not fit into the context (None: no limit)."""
    if context is not None and prompt + new > context:
        advice = f"lower --max_new_tokens to {context - prompt}" if prompt < context else "shorten it"
        raise UserError(f"{where} has {prompt} tokens, {new} more may follow, and the model reads {context}: {advice}")


def generate_ids(model: Any, tokenizer: Any, prompts: Prompts, sampling: Sampling, streamer: Any = None) -> Ids:
    """The tokens that a model writes behind each prompt, to the limit or the end of its turn, as the seed decides."""
    import torch
    from transformers import set_seed

    if vision := vision_of(tokenizer):
        inputs = {name: tensor.to(model.device) for name, tensor in vision.read(prompts, "left").items()}
    else:
        inputs = dict(zip(("input_ids", "attention_mask"), pad(model, tokenizer, prompts, "left"), strict=True))
    ends = stop_tokens(tokenizer)
    if not ends:
        raise UserError("neither the tokenizer nor the model names a token at which generation stops")
    # Padding stands behind the end of a turn, where rows are cut, so any token will do.
    options = {"max_new_tokens": sampling.max_new_tokens, "eos_token_id": sorted(ends), "pad_token_id": min(ends)}
    # top_k is 50 by default in transformers, which DeepSeek's advice does not know.
    sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    options |= {"do_sample": sampling.temperature > 0} | (sampled if sampling.temperature else dict.fromkeys(sampled))
    set_seed(sampling.seed)
    with torch.inference_mode():
        output = model.generate(**inputs, streamer=streamer, **options)
    rows = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


def generate(
    model: Any, tokenizer: Any, prompts: Prompts, sampling: Sampling, streamer: Any = None
) -> list[Generated]:
    """Continue a batch of prompts as `generate_ids` does. `streamer` is one of transformers, for a batch of one."""
    opening = open_think_prefix(tokenizer)
    if not sampling.thinking:
        closed = closed_think_ids(tokenizer)
        text = tokenizer.decode(closed)
        shown = vision_of(tokenizer)
        prompts = [{**p, "text": p["text"] + text} if shown else [*p, *closed] for p in prompts]
        opening += text
    ends, marks, turns = stop_tokens(tokenizer), think_marks(tokenizer), []
    for row in generate_ids(model, tokenizer, prompts, sampling, streamer):
        hit_limit = row[-1] not in ends
        text = tokenizer.decode(row if hit_limit else row[:-1])
        turns.append(Generated(with_think_block(marks, opening + text), len(row), hit_limit))
    return turns


def batch_seed(seed: int, batch: int) -> int:
    """A seed for one batch of many, so that rows of different batches are not drawn alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{batch}".encode()).digest()[:4], "big")
