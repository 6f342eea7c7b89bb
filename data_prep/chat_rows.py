"""From questions to the rows of the prepared data set: messages, and token ids with --pretokenize.

The columns are the contract with `sft/`; docs/data.md describes them.
"""

import random
from collections.abc import Iterator
from itertools import permutations, product
from math import factorial
from typing import Any

from sft.common.prompts import answer_text, can_be_shuffled, completion_messages, prompt_messages

# All orders of five options. Each is a row: six options in all of theirs would make a data set 720 times as large.
MAX_ORDERS = 120
LISTED = 6  # options; the arrangements of more are drawn, as there are up to 9! of them


def choice_orders(id: str, gold: int, count: int, orders: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield `orders` different orders of `count` options, or all where there are not so many.

    They are seeded by the row's id, so that no other row matters. Each run of `count` orders puts the right option at
    every letter once.
    """
    rng = random.Random(f"{seed}:{id}")  # noqa: S311
    orders = min(orders, factorial(count))
    wrong = [index for index in range(count) if index != gold]
    arrangements = list(permutations(wrong)) if count <= LISTED else []
    rng.shuffle(arrangements)
    while len(arrangements) * count < orders:
        if (drawn := tuple(rng.sample(wrong, len(wrong)))) not in arrangements:
            arrangements.append(drawn)
    places = rng.sample(range(count), count)
    for number in range(orders):
        arrangement, place = arrangements[number // count], places[number % count]
        yield (*arrangement[:place], gold, *arrangement[place:])


def is_answered_directly(question: dict[str, Any], direct_share: float, seed: int) -> bool:
    """Whether a question with rationales is one of the share that is trained without; no other question matters."""
    draw = random.Random(f"{seed}:direct:{question['id']}").random()  # noqa: S311
    return bool(question["reasoning"]) and draw < direct_share


def chat_rows(
    question: dict[str, Any], answer_format: str, orders: int = 0, seed: int = 0, direct_share: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a question (fields of `Question`).

    That is one, or one for each of `orders` orders of its options, or for each of its rationales.
    """
    reasoning = question["reasoning"]
    shuffled = orders > 0 and can_be_shuffled(question["question"], question["choices"], "\n".join(reasoning))
    count = len(question["choices"])
    used = choice_orders(question["id"], question["gold"], count, orders, seed) if shuffled else [range(count)]
    texts = [""] if not reasoning or is_answered_directly(question, direct_share, seed) else reasoning
    several = shuffled or len(texts) > 1
    for number, (order, text) in enumerate(product(used, texts), start=1):
        choices = [question["choices"][index] for index in order]
        gold = order.index(question["gold"])
        yield {
            "id": f"{question['id']}#{number}" if several else question["id"],
            "prompt": prompt_messages(question["question"], choices, answer_format),
            "completion": completion_messages(answer_text(choices, gold, answer_format), text),
            "choices": choices,
            "gold": gold,
            "answer_format": answer_format,
            **{name: question[name] for name in ("question", "article", "figure", "caption", "source")},
            **{name: question[name] for name in ("images", "figure_sha256") if name in question},
        }


def schema(tokenized: bool, figures: bool = False) -> Any:
    """The `pyarrow` schema of the prepared rows."""
    import pyarrow as pa

    text, ids = pa.string(), pa.list_(pa.int32())
    turn = [("role", text), ("content", text)]
    columns = [
        ("id", text),
        ("prompt", pa.list_(pa.struct(turn))),
        ("completion", pa.list_(pa.struct([*turn, ("reasoning_content", text)]))),
        ("question", text),
        ("choices", pa.list_(text)),
        ("gold", pa.int32()),
        *((name, text) for name in ("answer_format", "article", "figure", "caption", "source")),
    ]
    columns += [("images", pa.list_(text)), ("figure_sha256", text)] * figures
    return pa.schema(columns + [("input_ids", ids), ("labels", ids), ("tokenized_for", text)] * tokenized)
