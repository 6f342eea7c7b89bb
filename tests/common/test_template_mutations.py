"""Whatever a chat template holds: its tokens are those that inference would see, or one line says why not."""

import copy
import random
import re
from pathlib import Path

import pytest

from sft.common.chat_template import IGNORED, tokenize
from sft.common.command import UserError
from sft.common.template_choice import set_chat_template

ROOT = Path(__file__).parents[2]
QUESTIONS = [
    ("Which stain shows iron?\nA. Congo red\nB. Prussian blue", "B. Prussian blue"),
    ("What does <|this|> {arrow} [show]?", "A tumour, 3 < 4."),
    ("Wo liegt die Läsion: links?", "Ja"),
]
MARKUP = [
    "\n",
    " ",
    "\ufeff",
    "'",
    "{#",
    "{% if x %}",
    "{% endif %}",
    *["<|im_start|>", "<|im_end|>", "<|user|>", "[INST]"],
]


def mutated(template: str, rng: random.Random) -> str:
    """The template with one to three pieces deleted, doubled, moved, replaced or put in."""
    pieces = re.split(r"(?<=[}%#>|\s'])", template)
    for _ in range(rng.randint(1, 3)):
        place, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        match rng.randrange(5):
            case 0:
                del pieces[place]
            case 1:
                pieces.insert(place, pieces[place])
            case 2:
                pieces[place], pieces[other] = pieces[other], pieces[place]
            case 3:
                pieces[place] = rng.choice(MARKUP)
            case _:
                pieces.insert(place, rng.choice(MARKUP))
    return "".join(pieces)


def as_inference_reads(tokenizer, row) -> tuple[list[int], list[int]]:
    """(tokens of the prompt, of prompt and answer up to the end of the turn), by transformers alone."""
    question, answer, reasoning = row
    prompt = [{"role": "user", "content": question}]
    completion = [{"role": "assistant", "content": answer, "reasoning_content": reasoning}]
    options = {"return_dict": True}
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)["input_ids"]
    every = tokenizer.apply_chat_template(prompt + completion, **options)["input_ids"]
    # Generation stops at the first of several, and behind it stands white space.
    ends = [place for place, token in enumerate(every) if token == tokenizer.eos_token_id and place >= len(before)]
    behind = (tokenizer.decode(every[end:]).replace(tokenizer.eos_token, "").strip() for end in ends)
    return before, every[: next(end for end, text in zip(ends, behind, strict=True) if not text) + 1]


@pytest.mark.parametrize("name", ["deepseek_r1", "smollm2"])
def test_a_mutated_template_gives_the_tokens_of_inference_or_one_line(name, request, tmp_path):
    original = request.getfixturevalue({"deepseek_r1": "short_tokenizer", "smollm2": "smollm2_tokenizer"}[name])
    source = (ROOT / f"recipes/templates/{name}.jinja").read_text(encoding="utf-8")
    conversations = [(*row, "The margin is irregular." if name == "deepseek_r1" else "") for row in QUESTIONS]
    prompts = [[{"role": "user", "content": question}] for question, _, _ in conversations]
    completions = [[{"role": "assistant", "content": a, "reasoning_content": r}] for _, a, r in conversations]
    rng, file = random.Random(0), tmp_path / "template.jinja"  # noqa: S311
    accepted = 0
    for _ in range(500):
        tokenizer = copy.copy(original)
        file.write_text(mutated(source, rng), encoding="utf-8")
        try:
            set_chat_template(tokenizer, file)
            rows = tokenize(tokenizer, prompts, completions)
        except UserError as error:
            assert "\n" not in str(error).strip()
            continue
        accepted += 1
        for row, ids, labels in zip(conversations, rows["input_ids"], rows["labels"], strict=True):
            before, every = as_inference_reads(tokenizer, row)
            assert ids == every
            assert labels == [IGNORED] * len(before) + every[len(before) :]
            assert ids[: len(before)] == before
    assert 50 < accepted < 450  # both happen
