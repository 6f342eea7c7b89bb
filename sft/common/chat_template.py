"""The tokens that a chat template makes, and the proof on every row that training and inference see the same ones.

Architecture rule: the tokens before the first trained token are exactly the tokens before the first generated one.
A template that breaks it trains a model on prompts other than those that it will get.
"""

import contextlib
import functools
import hashlib
import re
from collections.abc import Sequence
from itertools import count, takewhile
from typing import Any

from sft.common.command import UserError, first_line, shipped_folder

# What a template may look for in a text, so that it does not just copy it.
_MARKUP = re.compile(r"[<>{}\[\]|\ue000]")
# Stands around the number of a text that is to be filled in: a character that no text of ours holds.
SLOT = "\ue000"
# A conversation of which every family writes the same parts: what is found out about a template is found out with it.
SAMPLE_PROMPT = [{"role": "user", "content": "Which?"}]
SAMPLE_ANSWERS = [[{"role": "assistant", "content": letter, "reasoning_content": ""}] for letter in "AB"]
# The loss of PyTorch and transformers leaves this label out.
IGNORED = -100


@functools.cache
def _copying_templates() -> list[str]:
    """The texts of recipes/templates/, which copy what they are given (tests/common/test_chat_template.py)."""
    files = (shipped_folder() / "recipes/templates").glob("*.jinja")
    return [file.read_text(encoding="utf-8") for file in files]


def token_ids(tokenizer: Any, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[list[int]]:
    """Token ids of each conversation, rendered by the tokenizer's chat template."""
    options = {"add_generation_prompt": add_generation_prompt, "return_dict": True}
    return tokenizer.apply_chat_template(conversations, **options)["input_ids"]


def render(tokenizer: Any, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[str]:
    """The text that the chat template makes of each conversation.

    Our own templates copy the text of a turn unless it holds markup, and Jinja takes longer than the tokenizer. So a
    shape (roles, and which texts are not empty) is rendered once, with placeholders that are then filled in. Texts
    with markup or outer white space go through the template, and so does everything under another template.
    """

    def by_template(some: list[list[dict]]) -> list[str]:
        options = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
        try:
            return tokenizer.apply_chat_template(some, **options) if some else []
        except Exception as error:  # whatever the template's own code raises
            raise UserError(f"chat template: {first_line(error)}") from error

    filled: dict[int, str] = {}
    patterns: dict[tuple, str] = {}
    for index, turns in enumerate(conversations if tokenizer.chat_template in _copying_templates() else ()):
        values = [text for turn in turns for key, text in turn.items() if key != "role" and text]
        if any(not isinstance(text, str) or _MARKUP.search(text) or text != text.strip() for text in values):
            continue
        shape = tuple((key, text if key == "role" else bool(text)) for turn in turns for key, text in turn.items())
        if shape not in patterns:
            slots = (f"{SLOT}{number}{SLOT}" for number in count())
            marked = [{k: next(slots) if k != "role" and text else text for k, text in turn.items()} for turn in turns]
            pattern = by_template([marked])[0].replace("{", "{{").replace("}", "}}")
            patterns[shape] = re.sub(f"{SLOT}(\\d+){SLOT}", r"{\1}", pattern)
        filled[index] = patterns[shape].format(*values)
    rest = [i for i in range(len(conversations)) if i not in filled]
    filled.update(zip(rest, by_template([conversations[i] for i in rest]), strict=True))
    return [filled[i] for i in range(len(conversations))]


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of rendered texts: nothing added, nothing cut, as TRL encodes them."""
    if not tokenizer.is_fast:
        return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    # The tokenizer proper: the wrapper around it spends as long again on masks and conversions.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def last_added_token(tokenizer: Any, prompt: str) -> str | None:
    """The last token in the rendered `prompt` at which tokenizers cut any text before they look at the rest.

    What stands before such an added token is encoded alike whatever follows, so it need not be encoded twice.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # DeepSeek's normalizer is an empty sequence; one that changes text could blur the cut.
    normalizes = str(getattr(backend, "normalizer", None)) not in ("None", "Sequence(normalizers=[])")
    places = {
        prompt.rfind(token.content): token.content
        for token in tokenizer.added_tokens_decoder.values()
        if not (token.lstrip or token.single_word or (token.normalized and normalizes))
    }
    return places[max(places)] if places and max(places) >= 0 else None


def words_of(message: dict) -> str:
    """The text of a message, which may be in parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def split_completions(
    tokenizer: Any, prompts: list[list[dict]], completions: list[list[dict]], to_stop: bool = True
) -> list[dict]:
    """``{"prompt_ids", "completion_ids"}`` of each row, cut where generation would start.

    Raises `UserError` if in some row the prompt's tokens are not a prefix of the row's tokens, a text is left out, the
    begin-of-text token stands twice, the completion is empty, or the row does not end where generation stops. Without
    `to_stop` that end is neither demanded nor cut at.
    """
    prompt_texts = render(tokenizer, prompts, add_generation_prompt=True)
    full_texts = render(tokenizer, [p + c for p, c in zip(prompts, completions, strict=True)])
    cut_at = last_added_token(tokenizer, prompt_texts[0]) if prompt_texts else None
    # Each text is cut into a head, encoded once, and a rest that begins with the end of the prompt.
    cuts = [max(0, text.rfind(cut_at)) if cut_at else 0 for text in prompt_texts]
    heads = encode(tokenizer, [text[:cut] for text, cut in zip(prompt_texts, cuts, strict=True)])
    ends = encode(tokenizer, [text[cut:] for text, cut in zip(prompt_texts, cuts, strict=True)])
    rests = encode(tokenizer, [text[cut:] for text, cut in zip(full_texts, cuts, strict=True)])

    rows = []
    columns = (prompts, completions, prompt_texts, full_texts, heads, ends, rests)
    for prompt, completion, prompt_text, full_text, head, end, rest in zip(*columns, strict=True):
        asked, answered = words_of(prompt[-1]), words_of(completion[-1])
        row = f"the row that asks {asked[:60]!r}"
        if not full_text.startswith(prompt_text) or rest[: len(end)] != end:
            prompt_ids, full_ids = encode(tokenizer, [prompt_text, full_text])
            same = len(common_prefix([prompt_ids, full_ids]))
            raise UserError(
                f"chat template breaks parity in {row}: inference ends its prompt with "
                f"{tokenizer.decode(prompt_ids[same:])!r}, training continues with "
                f"{tokenizer.decode(full_ids[same : same + 8])!r}. {_advice(tokenizer, prompt_text, completion)}"
            )
        for text in (asked, answered, completion[-1].get("reasoning_content") or ""):
            if text.strip() not in full_text:
                advice = "use another template"
                if text == completion[-1].get("reasoning_content"):
                    advice = "train this model without rationales, or another one, which thinks"
                raise UserError(f"chat template leaves out {text.strip()[:60]!r} of {row}: {advice}")
        prompt_ids, completion_ids = head + end, rest[len(end) :]
        if prompt_ids[:2] == [tokenizer.bos_token_id] * 2:
            raise UserError(f"chat template writes the begin-of-text token twice in {row}")
        if not completion_ids:
            raise UserError(f"the completion is empty in {row}: nothing would be trained")
        if to_stop:
            completion_ids = up_to_end_of_turn(tokenizer, completion_ids, row)
        rows.append({"prompt_ids": prompt_ids, "completion_ids": completion_ids})
    return rows


def tokenize(tokenizer: Any, prompts: list[list[dict]], completions: list[list[dict]]) -> dict[str, list[list[int]]]:
    """``{"input_ids", "labels"}`` of the rows, as SFTTrainer makes them; raises as `split_completions`."""
    rows = split_completions(tokenizer, prompts, completions)
    return {
        "input_ids": [row["prompt_ids"] + row["completion_ids"] for row in rows],
        "labels": [[IGNORED] * len(row["prompt_ids"]) + row["completion_ids"] for row in rows],
    }


def _advice(tokenizer: Any, prompt: str, completion: list[dict]) -> str:
    """What to do about a row whose tokens part from those of the rendered `prompt`."""
    _, opened, rest = prompt.rpartition("<think>")
    reasoned = bool(completion[-1].get("reasoning_content"))
    remedy = "train it without rationales" if reasoned else "train it with rationales"
    if "enable_thinking" in str(tokenizer.chat_template):
        value = str(reasoned).lower()
        remedy += f", or set chat_template_kwargs: {{enable_thinking: {value}}} in the recipe"
        remedy += f" (elsewhere --chat_template_kwargs '{{\"enable_thinking\": {value}}}')"
    if opened and reasoned and "</think>" in rest:
        return f"The prompt closes the think block before the row's rationale: {remedy}"
    if opened and not reasoned and "</think>" not in rest and "<｜Assistant｜>" not in prompt:
        return f"The prompt opens a think block, and the row has no rationale: {remedy}"
    family = "recipes/templates/deepseek_r1.jinja" if "<｜Assistant｜>" in prompt else "one that writes both alike"
    return f"Name another template, {family}: chat_template_path in a recipe, --chat_template elsewhere"


def stop_tokens(tokenizer: Any) -> set[int]:
    """Tokens at which generation stops: the tokenizer's, and the model's, which `load_tokenizer` keeps on it."""
    return {tokenizer.eos_token_id, *getattr(tokenizer, "generation_stops", ())} - {None}


def up_to_end_of_turn(tokenizer: Any, ids: list[int], row: str) -> list[int]:
    """The ids up to the first token at which generation stops and behind which nothing else matters.

    Many templates write white space behind the end of a turn, some (Phi-3) the end of the text as well. Raises
    `UserError` if the ids do not end so: the model would not learn to stop where generation stops.
    """
    stops = stop_tokens(tokenizer)
    for place, token in enumerate(ids):
        if token in stops:
            behind = [other for other in ids[place + 1 :] if other not in stops]
            if not behind or not tokenizer.decode(behind).strip():
                return ids[: place + 1]
    names = " and ".join(repr(tokenizer.decode([stop])) for stop in sorted(stops)) or "no token"
    last = next((token for token in ids[::-1] if tokenizer.decode([token]).strip()), None)
    ends_turn = last in tokenizer.added_tokens_decoder
    raise UserError(
        f"chat template ends {row} with {tokenizer.decode(ids[-8:])!r}, and generation stops at {names}: the model "
        "would not learn to stop. "
        + (f"Set eos_token: {tokenizer.decode([last])!r} in the recipe, or use" if ends_turn else "Use")
        + " the template of the model's family (chat_template_path in a recipe, --chat_template elsewhere)"
    )


def check_generation_stops(tokenizer: Any) -> None:
    """Raise `UserError` if a turn does not end where generation stops: generated answers would not end.

    As of base models that have the template of the chat model, but stop at the end of a text.
    """
    ids = encode(tokenizer, render(tokenizer, [SAMPLE_PROMPT + SAMPLE_ANSWERS[0]]))[0]
    try:
        up_to_end_of_turn(tokenizer, ids, "a turn")
    except UserError as error:
        fault = str(error).split(": ")[0]
        raise UserError(
            f"{fault}: generated answers would not end. Before training, evaluate by --method likelihood alone "
            "(answer format letter or letter_text)"
        ) from error


def closed_think_ids(tokenizer: Any) -> list[int]:
    """Token ids between a prompt and an answer without thinking: a closed think block; none for other families."""
    rows = split_completions(tokenizer, [SAMPLE_PROMPT, SAMPLE_PROMPT], SAMPLE_ANSWERS)
    return common_prefix([row["completion_ids"] for row in rows])


def common_prefix(sequences: Sequence[Sequence[int]]) -> list[int]:
    """The leading items that all sequences share."""
    return [items[0] for items in takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False))]


def open_think_prefix(tokenizer: Any) -> str:
    """The part of a think block that the prompt opens already: ``<think>`` and a newline, or nothing."""
    (prompt,) = render(tokenizer, [SAMPLE_PROMPT], add_generation_prompt=True)
    _, tag, rest = prompt.rpartition("<think>")
    return tag + rest if tag and "</think>" not in rest else ""


def think_marks(tokenizer: Any) -> tuple[str, str, tuple[str, ...]] | None:
    """What a family writes before reasoning, behind it, and before direct answers, if not a think block.

    As in gpt-oss, which has channels; None for families without reasoning, or with a think block.
    """
    why, what = "Because.", "blue"
    turns = [[{"role": "assistant", "content": what, "reasoning_content": reasoning}] for reasoning in (why, "")]
    try:
        rows = split_completions(tokenizer, [SAMPLE_PROMPT] * 2, turns)
    except UserError:  # one of the two is refused
        return None
    reasoned, direct = (tokenizer.decode(row["completion_ids"]) for row in rows)
    before, _, rest = reasoned.partition(why)
    behind = rest.partition(what)[0].strip()
    if "think>" in before + behind or not (before.strip() and behind):
        return None
    # A channel of answers, which follows the channel of reasoning as a turn of its own, may also begin the turn.
    (prompt,) = render(tokenizer, [SAMPLE_PROMPT], add_generation_prompt=True)
    begins_turn = prompt[prompt.rfind(last_added_token(tokenizer, prompt) or prompt) :]
    alone = behind.rpartition(begins_turn)[2] if begins_turn in behind else ""
    return before.strip(), behind, tuple(filter(None, (direct.partition(what)[0], alone)))


def with_think_block(marks: tuple[str, str, tuple[str, ...]] | None, turn: str) -> str:
    """A turn in which the family's own marks, as `think_marks` found them, are those of a think block."""
    if not marks:
        return turn
    before, behind, direct = marks
    turn = turn.replace(before, "<think>\n", 1).replace(behind, "\n</think>\n\n", 1)
    return turn.removeprefix(next((mark for mark in direct if turn.startswith(mark)), ""))


def split_thinking(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a turn: the text in its think blocks, and the text behind the last one."""
    before, closed, after = text.rpartition("</think>")
    if not closed and "<think>" in text:
        before, after = text, ""
    return re.sub("</?think>", "", before).strip(), after.strip()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Fingerprint of all that decides a row's tokens: vocabulary, its rules, chat template, and a turn's own end."""
    if tokenizer.is_fast:  # without its truncation and padding, which depend on the last call
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        backend = tokenizer.backend_tokenizer.to_str()
    else:
        backend = str(sorted(tokenizer.get_vocab().items()))
    end = ""
    with contextlib.suppress(UserError):  # a template that is refused makes no tokens
        (row,) = split_completions(tokenizer, [SAMPLE_PROMPT], SAMPLE_ANSWERS[:1])
        end = "" if row["completion_ids"][-1] == tokenizer.eos_token_id else f"\n{row['completion_ids'][-1]}"
    return hashlib.sha256(f"{backend}\n{tokenizer.chat_template}{end}".encode()).hexdigest()[:16]


def explain(tokenizer: Any, prompt: list[dict], completion: list[dict]) -> dict[str, Any]:
    """``{"text", "input_ids", "loss_mask", "tokens"}`` of a row: what the model reads, and where it is trained (1)."""
    (row,) = split_completions(tokenizer, [prompt], [completion])
    ids = row["prompt_ids"] + row["completion_ids"]
    mask = [0] * len(row["prompt_ids"]) + [1] * len(row["completion_ids"])
    return {"text": tokenizer.decode(ids), "input_ids": ids, "loss_mask": mask, "tokens": len(ids)}
