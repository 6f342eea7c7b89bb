"""Which questions have their figure: the others are rejected, and equal pictures are told by their content."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.figure_files import base_name, find_figures
from data_prep.figures import FIGURE_PIXELS, UNNAMED, Figure, write_figures
from data_prep.reading import Reading, check_rejected
from data_prep.sources import Source
from data_prep.splits import LEFT_OUT, PICTURE


def read_figures(
    reading: Reading,
    outside: Any,
    sources: list[Source],
    file: Path,
    folder: Path,
    apply: Callable,
    args: argparse.Namespace,
) -> dict[str, Figure]:
    """Write figures.zip into `folder`, and reject the rows in `file` whose figure cannot be had.

    `outside` marks rows that --max_samples did not draw, whose figures nobody needs. A question whose source has no
    column of figures is meant without one. Changes `reading`; returns what became of the figures, by file name. Raises
    `UserError` if more than --max_rejected of the rows are rejected.
    """
    import numpy as np
    import pyarrow as pa

    with pa.memory_map(str(file)) as content:
        table = pa.ipc.open_file(content).read_all().select(["source", "row", "split", "figure", "question"])
        rows = table.to_pydict()
    meant = {source.name: bool(source.format.figure) for source in sources}
    names = [base_name(name) for name in rows["figure"]]
    used = np.flatnonzero((reading.split_of != LEFT_OUT) & ~outside)
    wanted = [names[i] for i in used if names[i]]
    places = find_figures(args.figures)
    figures = write_figures(wanted, places, args.figure_pixels or FIGURE_PIXELS, args.output_dir, folder, apply)
    pictures = np.zeros(len(names), np.uint64)
    for i in used.tolist():
        figure = figures.get(names[i])
        reason = figure.reason if figure else UNNAMED if meant[rows["source"][i]] else None
        if reason:
            cells = {name: rows[name][i] for name in ("figure", "question")}
            reading.rejected.append((rows["source"][i], rows["row"][i], reason, cells))
            reading.by_source[rows["source"][i], rows["split"][i]] -= 1
            reading.by_source[rows["source"][i], "rejected"] += 1
            reading.split_of[i] = LEFT_OUT
            reading.kept -= 1
        elif figure:
            pictures[i] = int(figure.sha256[:16], 16)
    reading.hashes |= dict.fromkeys(PICTURE.values(), pictures)
    # The same words about another picture are another question.
    reading.hashes["question_hash"] = reading.hashes["question_hash"] ^ pictures
    place = {source.name: number for number, source in enumerate(sources)}
    reading.rejected.sort(key=lambda row: (place[row[0]], row[1]))
    check_rejected(reading, args.max_rejected)
    return figures
