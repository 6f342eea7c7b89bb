"""From a model and questions to the log-likelihood of every option, and from answers to numbers with intervals."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.prompts import answer_text, completion_messages, prompt_messages
from data_prep.questions import longest_option
from sft.chat import split_completions


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Number of leading items that all sequences share."""
    return next((i for i, column in enumerate(zip(*sequences, strict=False)) if len(set(column)) > 1), 0)


def option_tokens(tokenizer: Any, question: str, choices: Sequence[str], answer_format: str) -> dict:
    """``{"shared": ids, "options": [ids, ...]}``: what is asked, up to where the options differ, and what differs.

    Each option is the very completion that training would have used for it, end-of-text token included.
    """
    prompt = prompt_messages(question, choices, answer_format)
    completions = [completion_messages(answer_text(choices, i, answer_format)) for i in range(len(choices))]
    rows = split_completions(tokenizer, [prompt] * len(choices), completions)
    options = [row["completion_ids"] for row in rows]
    cut = common_prefix(options)
    return {"shared": rows[0]["prompt_ids"] + options[0][:cut], "options": [option[cut:] for option in options]}


def pad(sequences: Sequence[Sequence[int]], token: int, left: bool) -> tuple[Any, Any]:
    """(ids, mask), both of shape (sequences, longest), padded with `token` on one side."""
    import torch

    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), token)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence, dtype=ids.dtype)
        mask[row, place] = 1
    return ids, mask


def batch_log_likelihoods(
    model: Any, pad_token: int, batch: Sequence[dict], first_token_only: bool
) -> list[list[float]]:
    """log p(option | question) in nats, one list a question, for a batch of `option_tokens`.

    The shared part of each question is computed once; its key/value cache is then continued by each of its options.
    With `first_token_only` (letter formats, where the options differ in their first token) the first pass suffices.
    """
    import torch

    options = [option for question in batch for option in question["options"]]
    owners = [index for index, question in enumerate(batch) for _ in question["options"]]
    shared, mask = (t.to(model.device) for t in pad([q["shared"] for q in batch], pad_token, left=True))
    owner = torch.tensor(owners, device=model.device)
    with torch.no_grad():  # not inference_mode: under ZeRO-3 the gathered weights would stay unusable for training
        start = model(
            input_ids=shared,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=not first_token_only,
            logits_to_keep=1,
        )
        first = torch.tensor([option[0] for option in options], device=model.device)
        scores = start.logits[:, -1].float().log_softmax(-1)[owner, first]
        if not first_token_only and max(map(len, options)) > 1:
            cache = start.past_key_values
            cache.batch_select_indices(owner)
            # The last token of an option is predicted, never read: ids[:, :-1] predicts ids[:, 1:].
            ids, option_mask = (t.to(model.device) for t in pad(options, pad_token, left=False))
            read = option_mask[:, :-1]
            logits = model(
                input_ids=ids[:, :-1],
                attention_mask=torch.cat([mask[owner], read], dim=1),
                position_ids=mask.sum(-1)[owner, None] + torch.arange(read.shape[1], device=model.device),
                past_key_values=cache,
                use_cache=True,
            ).logits
            each = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            scores = scores + (each * option_mask[:, 1:]).sum(-1)
    result: list[list[float]] = [[] for _ in batch]
    for index, score in zip(owners, scores.tolist(), strict=True):
        result[index].append(score)
    return result


def option_log_likelihoods(
    model: Any, tokenizer: Any, questions: Sequence[dict], batch_size: int
) -> Iterator[tuple[int, list[float]]]:
    """Yield (index of the question, log-likelihood of each of its options in nats), longest questions first.

    `questions` are rows of a prepared data set. Longest first, so that a batch that does not fit fails at once.
    """
    tokens = [option_tokens(tokenizer, q["question"], q["choices"], q["answer_format"]) for q in questions]
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]["shared"]))
    pad_token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # Rows of one file share their answer format; were they mixed, the whole completion is right for all.
    letters = all(q["answer_format"].startswith("letter") for q in questions)
    model.eval()
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        scores = batch_log_likelihoods(model, pad_token, [tokens[i] for i in indices], first_token_only=letters)
        yield from zip(indices, scores, strict=True)


def most_likely(scores: Sequence[Sequence[float]]) -> list[int]:
    """The option that each question's log-likelihoods answer it with."""
    return [max(range(len(values)), key=values.__getitem__) for values in scores]


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927), which holds near 0 and 1 where the normal one fails."""
    p = correct / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value, from the questions that one run alone answered rightly.

    Under the null hypothesis each such question is a fair coin. Integers throughout, so exact for any number.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    term, tail = 1, 0
    for i in range(k + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return min(1.0, 2 * tail / 2**n) if n else 1.0


def floors(questions: Sequence[dict]) -> dict[str, float]:
    """Accuracy without reading the question: always the commonest gold letter; always the longest option."""
    n = len(questions)
    golds = [q["gold"] for q in questions]
    longest = sum(longest_option(q["choices"]) == q["gold"] for q in questions)
    return {"majority_letter": max(map(golds.count, set(golds))) / n, "longest_option": longest / n}
