"""Which question goes where: duplicates, the held-out dev split, and what splits have in common.

Everything here works on 64-bit hashes, one array entry a question, so that millions of questions fit in memory. Among
2.3 million questions the chance that any two different ones share a hash is below 2 in 10 million.
"""

import hashlib
import random
from collections.abc import Mapping
from itertools import combinations
from typing import Any

SPLITS = ("train", "dev", "test", "test_clean")
LEFT_OUT = -1
MAX_DEV_SHARE = 0.1  # of the training questions, whatever --dev_size says

# What two splits can share, and the hash column that shows it.
OVERLAPS = {"article": "article_hash", "figure": "figure_hash", "question and options": "question_hash"}
# And where figures were read: pictures that are equal, whatever their names.
PICTURE = {"picture": "picture_hash"}


def hash64(text: str) -> int:
    """64 bits of SHA-256, the same in every process; 0 for "", which stands for unknown."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") if text else 0


def first_occurrences(hashes: Any) -> Any:
    """Boolean array: is this the first entry of its value?"""
    import numpy as np

    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    return first


def not_drawn(split_of: Any, size: int | None, seed: int) -> Any:
    """Boolean array: is this question outside a random sample of `size` questions of its split (None: all)?"""
    import numpy as np

    if size is None:
        return np.zeros(len(split_of), dtype=bool)
    outside = split_of != LEFT_OUT
    for code in range(len(SPLITS)):
        indices = np.flatnonzero(split_of == code)
        drawn = random.Random(seed).sample(range(len(indices)), min(size, len(indices)))  # noqa: S311
        outside[indices[drawn]] = False
    return outside


def held_out(group_hashes: Any, dev_size: int) -> Any:
    """Boolean array, true for dev: groups in the order of their hash, until dev holds `dev_size` (or `MAX_DEV_SHARE`).

    A group is an article, or one question of unknown article; one that would exceed that size is passed over.
    """
    import numpy as np

    wanted = min(dev_size, int(MAX_DEV_SHARE * len(group_hashes)))
    groups, inverse, sizes = np.unique(group_hashes, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(groups), dtype=bool)
    for group, size in enumerate(sizes.tolist()):
        if wanted <= 0:
            break
        if size <= wanted:
            chosen[group] = True
            wanted -= size
    return chosen[inverse]


def why_none_held_out(questions: int, dev_size: int) -> str:
    """Why `held_out` holds out none of so many training questions."""
    most = min(dev_size, int(MAX_DEV_SHARE * questions))
    if not dev_size:
        return "--dev_size is 0"
    if not most:
        return f"it takes at most a tenth of train, which has {questions} questions"
    return f"it takes complete articles with at most {most} questions, and every article of train has more"


def overlap_table(split_of: Any, hashes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each pair of splits shares: ``{"splits", "by", "shared", "rows"}``.

    `shared` counts the different articles (figures, questions) that stand in both, `rows` the questions of the first
    and of the second split that they touch. Unknown articles and figures count as shared with none.
    """
    import numpy as np

    present = [code for code in range(len(SPLITS)) if (split_of == code).any()]
    table = []
    for first, second in combinations(present, 2):
        for by, column in (OVERLAPS | PICTURE).items():
            if column not in hashes:
                continue
            a, b = hashes[column][split_of == first], hashes[column][split_of == second]
            shared = np.setdiff1d(np.intersect1d(a, b), [0])
            touched = [int(np.isin(side, shared).sum()) for side in (a, b)]
            table.append({"splits": [SPLITS[first], SPLITS[second]], "by": by, "shared": len(shared), "rows": touched})
    return table


def leaked(split_of: Any, hashes: Mapping[str, Any]) -> Any:
    """Boolean array: does this training question share an article, a figure or its text with another split?"""
    import numpy as np

    train = split_of == SPLITS.index("train")
    others = (split_of != LEFT_OUT) & ~train
    leaks = np.zeros(len(split_of), dtype=bool)
    for column in {*OVERLAPS.values(), *PICTURE.values()} & hashes.keys():
        leaks |= np.isin(hashes[column], np.setdiff1d(hashes[column][others], [0]))
    return leaks & train
