"""Option likelihood: log p(completion | prompt) of every option, by the completion that training would have used.

In the letter formats ("letter", "letter_text") the options differ in their first token, the letter, and only it is
scored, not the option's text behind it. In the others every token from where the options differ is scored, the
end of the turn included, without length normalisation.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from sft.common.chat_template import common_prefix, render, split_completions, stop_tokens
from sft.common.prompts import answer_text, completion_messages
from sft.common.vision import TOKEN_TYPES, conversation_of, in_parts, vision_of


def option_tokens(tokenizer: Any, questions: Sequence[dict]) -> list[dict]:
    """``{"shared": ids, "options": [ids, ...], "length"}`` of each row of a prepared data set.

    The prompt and what all completions begin with, of each completion the tokens that are scored, and the tokens of
    the shared part. For a model that is shown figures also what `VisionInputs.read` takes.
    """
    vision, asked = vision_of(tokenizer), [conversation_of(tokenizer, q) for q in questions]
    texts = iter(render(tokenizer, asked, add_generation_prompt=True) if vision else ())
    prompts, completions = [], []
    for q, prompt in zip(questions, asked, strict=True):
        prompts += [prompt] * len(q["choices"])
        answers = [answer_text(q["choices"], index, q["answer_format"]) for index in range(len(q["choices"]))]
        completions += [in_parts(tokenizer, completion_messages(answer)) for answer in answers]
    # A letter is scored without the end of its turn, which a base model may not know.
    to_stop = not all(q["answer_format"].startswith("letter") for q in questions)
    rows = iter(split_completions(tokenizer, prompts, completions, to_stop))
    tokens = []
    for q in questions:
        own = list(islice(rows, len(q["choices"])))
        # Each keeps its last token, so that options of the same text have one to be scored by.
        prefix = common_prefix([row["completion_ids"][:-1] for row in own])
        end = len(prefix) + 1 if q["answer_format"].startswith("letter") else None
        options = [row["completion_ids"][len(prefix) : end] for row in own]
        shared = own[0]["prompt_ids"] + prefix
        prompt = vision.prompt(q, next(texts) + tokenizer.decode(prefix), len(shared)) if vision else {}
        tokens.append({"shared": shared, "options": options, "length": len(shared), **prompt})
    return tokens


def pad(model: Any, tokenizer: Any, sequences: Sequence[Sequence[int]], side: str) -> tuple[Any, Any]:
    """(ids, mask) where the model is, both of shape (sequences, longest), padded on one side, "left" or "right"."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    token = min(stop_tokens(tokenizer), default=0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = pad_sequence(rows, batch_first=True, padding_value=token, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return ids.to(model.device), mask.to(model.device)


def prompt_inputs(model: Any, tokenizer: Any, prompts: Sequence[dict], side: str) -> dict[str, Any]:
    """The model's inputs of a batch of prompts, padded on one side, from their ids (``shared``) and their figures."""
    if vision := vision_of(tokenizer):
        return {name: tensor.to(model.device) for name, tensor in vision.read(prompts, side).items()}
    ids, mask = pad(model, tokenizer, [prompt["shared"] for prompt in prompts], side)
    return {"input_ids": ids, "attention_mask": mask}


def batch_log_likelihoods(model: Any, tokenizer: Any, batch: Sequence[dict]) -> list[list[float]]:
    """Log-likelihood of each option in nats, one list a question, for a batch of `option_tokens`.

    The shared part of each question is computed once; its key/value cache is then continued by each of its options,
    where the cache allows it. Where every option is a single token, the first pass suffices.
    """
    import torch

    options = [option for question in batch for option in question["options"]]
    single_tokens = max(map(len, options)) == 1
    owner = torch.tensor([index for index, q in enumerate(batch) for _ in q["options"]], device=model.device)
    # Padded on the right, where causal attention never looks: no mask is needed, and padding changes no score.
    inputs = prompt_inputs(model, tokenizer, batch, "right")
    mask = inputs.pop("attention_mask")
    last, place = (mask.sum(-1) - 1).unique(return_inverse=True)
    with torch.no_grad():  # not inference_mode: under ZeRO-3 the gathered weights would stay unusable for training
        start = model(**inputs, use_cache=not single_tokens, logits_to_keep=last)
        logits = start.logits[torch.arange(len(batch), device=model.device), place]
        first = torch.tensor([option[0] for option in options], device=model.device)
        scores = logits.float().log_softmax(-1)[owner, first]
        if not single_tokens:
            cache = getattr(start, "past_key_values", None)
            # The last token of an option is predicted, never read: ids[:, :-1] predicts ids[:, 1:].
            ids, option_mask = pad(model, tokenizer, options, "right")
            read = option_mask[:, :-1]
            places = mask.sum(-1)[owner, None] + torch.arange(read.shape[1], device=model.device)
            if _can_be_continued(cache, mask.shape[1] + read.shape[1]):
                cache.batch_select_indices(owner)
                logits = model(
                    input_ids=ids[:, :-1],
                    attention_mask=torch.cat([mask[owner], read], dim=1),
                    position_ids=places + _shift_behind_figures(model, owner) if "pixel_values" in inputs else places,
                    past_key_values=cache,
                    use_cache=True,
                ).logits
            else:
                whole = whole_inputs(model, tokenizer, batch)
                first_place = int(places.min())
                kept = whole["input_ids"].shape[1] - first_place
                logits = model(**whole, use_cache=False, logits_to_keep=kept).logits
                index = (places - first_place).clamp(max=logits.shape[1] - 1)
                logits = logits[torch.arange(len(options), device=model.device)[:, None], index]
            each = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            scores = scores + (each * option_mask[:, 1:]).sum(-1)
    return [part.tolist() for part in scores.split([len(question["options"]) for question in batch])]


def _shift_behind_figures(model: Any, owner: Any) -> Any:
    """What the positions of tokens behind figures are more than their number of tokens, for each option: (options, 1).

    Families whose positions have several axes (Qwen-VL and others) keep it of the last pass; for others it is 0.
    """
    kept = (getattr(module, "rope_deltas", None) for module in model.modules())
    shift = next((each for each in kept if each is not None), None)
    return 0 if shift is None else shift[owner]


def whole_inputs(model: Any, tokenizer: Any, batch: Sequence[dict]) -> dict[str, Any]:
    """The model's inputs of a batch of `option_tokens`, a row for each option, padded on the right."""
    import torch

    rows = [(question, option) for question in batch for option in question["options"]]
    inputs = prompt_inputs(model, tokenizer, [question for question, _ in rows], "right")
    prompts = zip(inputs["input_ids"].tolist(), inputs.pop("attention_mask").sum(-1).tolist(), strict=True)
    whole = [ids[:length] + option for (ids, length), (_, option) in zip(prompts, rows, strict=True)]
    longer = max(map(len, whole)) - inputs["input_ids"].shape[1]
    for name in TOKEN_TYPES & inputs.keys():
        inputs[name] = torch.nn.functional.pad(inputs[name], (0, longer))
    return {**inputs, "input_ids": pad(model, tokenizer, whole, "right")[0]}


def _can_be_continued(cache: Any, length: int) -> bool:
    """Whether a cache still holds every token of each question after a pass over questions padded on the right.

    A sliding window that is shorter than `length`, in tokens, keeps padding in their place, and the state of a layer
    of linear attention has read it.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None) or [None]
    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > length)
        for layer in layers
    )


def longest_first(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of indices, longest first: each holds similar lengths, and memory that is too small fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def option_log_likelihoods(model: Any, tokenizer: Any, questions: Sequence[dict], batch_size: int) -> Iterator[tuple]:
    """Yield (index, log-likelihood of each option in nats) of rows of a prepared data set, the longest first."""
    tokens = option_tokens(tokenizer, questions)
    model.eval()
    for indices in longest_first([t["length"] for t in tokens], batch_size):
        yield from zip(indices, batch_log_likelihoods(model, tokenizer, [tokens[i] for i in indices]), strict=True)


def most_likely(scores: Sequence[Sequence[float]]) -> list[int]:
    """The option that each question's log-likelihoods answer it with."""
    return [max(range(len(values)), key=values.__getitem__) for values in scores]


def softmax(scores: Sequence[float]) -> list[float]:
    """Probabilities of the options from their log-likelihoods."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]
