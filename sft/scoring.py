"""From a model to its answer, in two ways: the log-likelihood of every option, or a text that is parsed.

Both are strict. An option is scored by the very completion that training would have used; a text that does not state
one option is no answer. sft/metrics.py makes numbers of the answers.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from data_prep.prompts import LETTERS, answer_text, completion_messages, prompt_messages
from data_prep.questions import comparable
from sft.chat import common_prefix, split_completions


def option_tokens(tokenizer: Any, questions: Sequence[dict]) -> list[dict]:
    """``{"shared": ids, "options": [ids, ...], "first_token_only"}`` of each row of a prepared data set.

    What is asked, up to where the options differ, and what differs. Each option is the very completion that training
    would have used for it, end-of-text token included.
    """
    prompts, completions = [], []
    for q in questions:
        prompts += [prompt_messages(q["question"], q["choices"], q["answer_format"])] * len(q["choices"])
        answers = [answer_text(q["choices"], index, q["answer_format"]) for index in range(len(q["choices"]))]
        completions += [completion_messages(answer) for answer in answers]
    rows = iter(split_completions(tokenizer, prompts, completions))
    found = []
    for q in questions:
        own = list(islice(rows, len(q["choices"])))
        options = [row["completion_ids"] for row in own]
        cut = common_prefix(options)
        found.append(
            {
                "shared": own[0]["prompt_ids"] + options[0][:cut],
                "options": [option[cut:] for option in options],
                "first_token_only": q["answer_format"].startswith("letter"),
            }
        )
    return found


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


def batch_log_likelihoods(model: Any, tokenizer: Any, batch: Sequence[dict]) -> list[list[float]]:
    """log p(option | question) in nats, one list a question, for a batch of `option_tokens`.

    The shared part of each question is computed once; its key/value cache is then continued by each of its options.
    In letter formats, where the options differ in their first token, the first pass suffices.
    """
    import torch

    pad_token = padding(tokenizer)
    first_token_only = all(question["first_token_only"] for question in batch)

    options = [option for question in batch for option in question["options"]]
    owners = [index for index, question in enumerate(batch) for _ in question["options"]]
    # Padded on the right, where causal attention never looks: no mask is needed, and padding changes no score.
    shared, mask = (t.to(model.device) for t in pad([q["shared"] for q in batch], pad_token, left=False))
    owner = torch.tensor(owners, device=model.device)
    last, place = (mask.sum(-1) - 1).unique(return_inverse=True)
    with torch.no_grad():  # not inference_mode: under ZeRO-3 the gathered weights would stay unusable for training
        start = model(input_ids=shared, use_cache=not first_token_only, logits_to_keep=last)
        logits = start.logits[torch.arange(len(batch), device=model.device), place]
        first = torch.tensor([option[0] for option in options], device=model.device)
        scores = logits.float().log_softmax(-1)[owner, first]
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


def longest_first(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of indices, longest first: each holds like lengths, and one that does not fit fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padding(tokenizer: Any) -> int:
    """The token to pad with; what stands there is masked."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def option_log_likelihoods(
    model: Any, tokenizer: Any, questions: Sequence[dict], batch_size: int
) -> Iterator[tuple[int, list[float]]]:
    """Yield (index of the question, log-likelihood of each of its options in nats), longest questions first.

    `questions` are rows of a prepared data set.
    """
    tokens = option_tokens(tokenizer, questions)
    model.eval()
    for indices in longest_first([len(t["shared"]) for t in tokens], batch_size):
        yield from zip(indices, batch_log_likelihoods(model, tokenizer, [tokens[i] for i in indices]), strict=True)


def most_likely(scores: Sequence[Sequence[float]]) -> list[int]:
    """The option that each question's log-likelihoods answer it with."""
    return [max(range(len(values)), key=values.__getitem__) for values in scores]


class ParsedAnswer(NamedTuple):
    """What a generated text answers: the index of the option if one is stated, else why there is none."""

    index: int | None
    outcome: Literal["answered", "unparsed", "truncated"]


UNPARSED = ParsedAnswer(None, "unparsed")
TRUNCATED = ParsedAnswer(None, "truncated")

_MARKDOWN = re.compile(r"[*_`$]|^[ \t]*(?:#+|>|[-•])[ \t]+|\\(?:text|textbf|mathrm|mathbf)\b", re.MULTILINE)
_BOXED = re.compile(r"\\boxed\s*\{+([^{}]*)\}+")
# Words before an answer that say nothing of it.
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence|well|sure|okay|ok|i (?:think|believe|choose|pick|select)|i would (?:say|choose)"
    r"|i['’]d (?:say|choose|go with)|it is|it['’]s|this is|that is|it (?:must|should|would|has to) be|most likely"
    r"|probably|possibly|the|correct|option|choice|letter|answer|ans)\b[\s,:!.]*)+",
    re.IGNORECASE,
)
# "B", "(b)", "B)", "b.": a capital letter, or a small one that is marked as an option or stands alone.
_LETTER = re.compile(r"[\"'“‘(\[]*(?:([A-D])(?!\w|['’]\w|-)|([a-d])(?=\s*[).:\]]|\W*$))(?P<mark>[\"'”’)\].:]*)")
# What may follow a letter without a mark. Otherwise it begins a term: "A blood clot", "B cell lymphoma".
_FOLLOWS = re.compile(
    r"[^\w?]*$|\s*[,;!—–(]|\s*[-/&]\s|\s*/|\s+(?:because|since|as|is|was|and|or|for|due|which|with|but|not|rather)\b",
    re.IGNORECASE,
)
# "A is wrong": the letter is named to be denied.
_DENIED = re.compile(
    r"\s*(?:is|was|are|can|could|would|does|isn['’]t|seems)\s*(?:clearly |also |be )*"
    r"(?:not|n['’]t|never|incorrect|wrong|false|unlikely|ruled|less)\b|\s+isn['’]t\b|\s*\?",
    re.IGNORECASE,
)
_JOINED = re.compile(r"\s*(?:,\s*(?:and|or)?|/|&|\band\b|\bor\b)\s*(?:option\s+)?(?=[(\[]?[A-Da-d]\b)", re.IGNORECASE)
_NEGATED = re.compile(
    r"\s*(?:not|never|neither|n['’]t)\b.*?(?:\b(?:but|rather|instead|it is|it['’]s)\b|$)", re.IGNORECASE
)
_DECLARED = re.compile(
    r"(?P<final>\bfinal\s+)?\b(?:answer|choice|option|response)\b(?:\s+[a-z]+){0,4}?\s*"
    r"(?:\b(?:is|was|would be|should be|must be)(?P<not>\s+not\b|n['’]t\b)?|:|=|→)\s*:?",
    re.IGNORECASE,
)
_CALLED_RIGHT = re.compile(
    r"(?:^|[\s(\"'])([A-D])[)\].\"']*\s+(?:is|would be)\s+(?:clearly\s+|the\s+)*(?:correct|right|best|answer)\b"
)
_OPTION = re.compile(r"\b(?:option|choice)\s+(?=[(\[]?[A-Da-d]\b)", re.IGNORECASE)
# In `comparable` text, right before or behind a mention of an option.
_NOT_BEFORE = re.compile(
    r"\b(?:not|isn t|never|no|nor|neither|rather than|instead of|unlike|except|rules? out|ruled out|without)"
    r"(?: (?:the|an?|be|option|choice|[a-d]))* $"
)
_NOT_BEHIND = re.compile(
    r"^ (?:is|are|was|were|would be|seems?) (?:not|incorrect|wrong|unlikely|false|ruled out)\b|^ (?:isn|aren|wasn) t\b"
)


def _options_named(text: str, choices: Sequence[str], anywhere: bool) -> set[int]:
    """Options whose text stands in `text`, or begins it, and is not denied; of one inside another, the longer."""
    plain = f" {comparable(text)} "
    found: list[tuple[int, int, int]] = []
    wanted = [(f" {comparable(choice)} ", index) for index, choice in enumerate(choices)]
    for choice, index in sorted(wanted, key=lambda pair: -len(pair[0])):
        if len(choice) < 4 and choice[1:-1].isalpha():  # a single letter is no name
            continue
        start = plain.find(choice) if anywhere or plain.startswith(choice) else -1
        while start >= 0:
            end = start + len(choice)
            inside = any(low <= start and end <= high for low, high, _ in found)
            if not inside:
                found.append((start, end, index))
            start = plain.find(choice, end - 1) if anywhere else -1
    return {
        index
        for start, end, index in found
        if not (_NOT_BEFORE.search(plain[: start + 1]) or _NOT_BEHIND.search(plain[end - 1 :]))
    }


def _letters(text: str, choices: Sequence[str]) -> set[int]:
    """Options that `text` begins with naming by letter: one, several ("B or C"), or none.

    Where the text of another option follows the letter, both are named: the answer contradicts itself.
    """
    found: set[int] = set()
    while letter := _LETTER.match(text):
        rest = text[letter.end() :]
        index = LETTERS.index((letter.group(1) or letter.group(2)).upper())
        named = _options_named(rest, choices, anywhere=False)
        if index >= len(choices) or not (letter.group("mark").strip("\"'“‘") or named or _FOLLOWS.match(rest)):
            break
        if _DENIED.match(rest):
            break
        # "A: B" names two.
        other = re.fullmatch(r"\s*([A-D])\W*", rest)
        found |= {index} | named | ({LETTERS.index(other[1])} if other and other[1] != choices[index] else set())
        joined = _JOINED.match(rest)
        if not joined:
            break
        text = rest[joined.end() :]
    return found


def _leading(text: str, choices: Sequence[str]) -> set[int]:
    """Options that `text` begins with naming by letter, words before them left out that say nothing."""
    lead = _LEAD.match(text)
    return _letters(text, choices) or (_letters(text[lead.end() :], choices) if lead else set())


def _statement(text: str, choices: Sequence[str]) -> set[int]:
    """Options that a statement such as "not B but C", "(b)" or "Prussian blue, because ..." names."""
    text = _NEGATED.sub("", text, count=1).strip()
    return _leading(text, choices) or _options_named(text, choices, anywhere=True)


def parse_answer(text: str, choices: Sequence[str], hit_limit: bool = False) -> ParsedAnswer:
    """The option that a generated text answers with, without kindness: no nearest string, no last character.

    Only what stands behind the last ``</think>`` is read, in this order; the first that names an option decides, and
    naming two is no answer: boxed (``\\boxed{B}``), declared ("the answer is ...", "B is correct"; a final answer
    before others), marked by a letter at the start of a line ("B. ..."), and last the text of one option alone that
    stands there and is not denied.

    Args:
        text: the assistant's whole turn, its opening think tag included if there is one.
        choices: the options, in the order of their letters.
        hit_limit: whether generation ended at its token limit. Then the answer is truncated, whatever stands there.
    """
    if hit_limit or "<think>" in text.split("</think>")[-1]:
        return TRUNCATED
    answer = _MARKDOWN.sub("", text.split("</think>")[-1]).strip()

    def boxed() -> set[int]:
        return set().union(*(_statement(content, choices) for content in _BOXED.findall(answer)))

    def declared() -> set[int]:
        every = list(_DECLARED.finditer(answer))
        ends = [match.start() for match in every[1:]] + [len(answer)]
        found = set()
        for match, end in zip(every, ends, strict=False):
            if match["final"] or not any(other["final"] for other in every):
                stated = answer[match.end() : end].split("\n")[0]
                found |= _statement(f"not {stated}" if match["not"] else stated, choices)
        if not any(match["final"] for match in every):
            found |= {LETTERS.index(letter) for letter in _CALLED_RIGHT.findall(answer)} & set(range(len(choices)))
        return found

    def marked() -> set[int]:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        if len(lines) > 1 and _LEAD.fullmatch(f"{lines[0]} "):  # a heading
            del lines[0]
        letters = [_leading(line, choices) for line in lines[:1]]
        letters += [
            _letters(line, choices) for line in lines[1:] if _LETTER.match(line) and _LETTER.match(line)["mark"]
        ]
        # An answer that is nothing but an option which looks like a letter could mean either.
        same = {index for index, choice in enumerate(choices) if choice.strip() == answer}
        return set().union(*letters, same if letters and letters[0] else set())

    def mentioned() -> set[int]:
        found = _options_named(answer, choices, anywhere=True)
        for match in _OPTION.finditer(answer):
            if not _NOT_BEFORE.search(f" {comparable(answer[: match.start()])} "):
                found |= _letters(answer[match.end() :], choices)
        return found

    for rule in (boxed, declared, marked, mentioned):
        if found := rule():
            return ParsedAnswer(found.pop(), "answered") if len(found) == 1 else UNPARSED
    return UNPARSED
