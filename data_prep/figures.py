"""Figures for models that see: each is decoded once, made small enough, and written into figures.zip.

In:  the pictures of `find_figures`, and the names that rows give.
Out: figures.zip (JPEG, RGB, stored, sorted by name, with fixed dates: same input, same bytes), and what became of
     each figure.

Work goes in chunks over all cores. A chunk that is done stays in a folder beside the output until all are, so that a
preparation that was stopped continues there.
"""

import hashlib
import io
import os
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.figure_files import Place, read_figure
from data_prep.questions import RejectedRow
from sft.common.command import UserError, read_json, write_json
from sft.common.figures import ARCHIVE

FIGURE_PIXELS = 262_144  # at most 256 image tokens of Qwen3-VL
SMALLEST, LONGEST = 28, 200  # pixels a side, and length by width: beyond these, Qwen-VL's processors fail
MOST_PIXELS = 100_000_000
QUALITY = 90
# Those alone: PIL would run other programs for some of the rest (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
BITS_PER_SAMPLE = 258  # a tag of TIFF
BOMB = "figure has over 100 million pixels"
CHUNK = 200  # figures
FIXED_DATE = (1980, 1, 1, 0, 0, 0)
VERSION = 1  # of what is done to a figure: chunks of another are made anew
MISSING, UNNAMED = "figure is missing", "no figure is named"


class Figure(NamedTuple):
    """What became of a figure: its name in figures.zip, SHA-256, mode and sizes before and after; or `reason`."""

    name: str
    reason: str | None = None
    stored: str = ""
    sha256: str = ""
    mode: str = ""
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    size: int = 0


def encode(data: bytes, most: int) -> tuple[bytes, str, tuple[int, int], tuple[int, int]]:
    """(JPEG in RGB of at most `most` pixels, mode, width and height before, the same after).

    Transparent pixels become white, a picture that EXIF turns is turned, and all metadata go. Raises `RejectedRow`.
    """
    from PIL import Image, ImageOps

    Image.init()  # PIL knows some of the formats only then
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that are refused below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise RejectedRow(BOMB) from None
    except (OSError, SyntaxError, ValueError):
        raise RejectedRow("figure is not a picture, or is damaged") from None
    before, mode = image.size, image.mode
    scale = min(1.0, (most / (before[0] * before[1])) ** 0.5)
    target = tuple(int(side * scale) for side in before)
    if before[0] * before[1] > MOST_PIXELS:
        raise RejectedRow(BOMB)
    if max(before) > LONGEST * min(before):
        raise RejectedRow(f"figure is over {LONGEST} times as long as wide")
    if min(target) < SMALLEST:
        raise RejectedRow(f"figure is smaller than {SMALLEST} pixels on a side")
    if is_deep(image, data):  # PIL would clip it to white, or drop the finer half
        raise RejectedRow("figure has 16 bits or more a channel")
    try:
        image.draft(None, target)  # a JPEG can be decoded smaller, which is several times faster
        image.load()
        if (factor := int(min(image.size) / min(target) / 2)) > 1 and mode != "P":
            image = image.reduce(factor)  # before it is copied: the largest has 100 million pixels
        upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError):
        raise RejectedRow("figure is damaged") from None
    if (upright.size[0] > upright.size[1]) != (image.size[0] > image.size[1]):
        target = target[::-1]
    image = upright
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if image.size != target:
        image = image.resize(target, Image.Resampling.BICUBIC)
    image.info = {}
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=QUALITY)
    return jpeg.getvalue(), mode, before, image.size


def is_deep(image: Any, data: bytes) -> bool:
    """Whether a channel of a picture has more than 8 bits, also where PIL opens it as RGB of 8."""
    if image.format == "PNG" and data[24:25] == b"\x10":
        return True
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (8,)) if image.format == "TIFF" else (8,)
    return image.mode == "F" or image.mode.startswith("I") or max(bits) > 8


def stored_name(name: str) -> str:
    """The name in figures.zip: a picture of another kind becomes a JPEG too."""
    return name if name.lower().endswith((".jpg", ".jpeg")) else f"{name}.jpg"


def encode_chunk(piece: tuple[Path, list[tuple[str, Place | None]], int]) -> list[Figure]:
    """Encode the figures of a chunk into its ZIP file, written under a temporary name, and what became of them."""
    file, items, most = piece
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    figures = []
    with zipfile.ZipFile(temporary, "w") as archive:
        for name, place in items:
            try:
                if place is None:
                    raise RejectedRow(MISSING)
                jpeg, mode, before, after = encode(read_figure(place), most)
            except RejectedRow as reason:
                figures.append(Figure(name, str(reason)))
                continue
            stored = stored_name(name)
            archive.writestr(zipfile.ZipInfo(stored, FIXED_DATE), jpeg)
            digest = hashlib.sha256(jpeg).hexdigest()
            figures.append(Figure(name, None, stored, digest, mode, before, after, len(jpeg)))
    write_json(file.with_suffix(".json"), [list(figure) for figure in figures])
    temporary.rename(file)  # last: where it is, the chunk is done
    return figures


def encoded_before(file: Path) -> list[Figure] | None:
    """What became of the figures of a chunk that an earlier preparation has done, or None."""
    if not file.exists():
        return None
    return [
        Figure(*(tuple(v) if isinstance(v, list) else v for v in row)) for row in read_json(file.with_suffix(".json"))
    ]


def write_figures(
    names: Iterable[str], places: dict[str, Place], most: int, output_dir: Path, folder: Path, apply: Callable
) -> dict[str, Figure]:
    """Write figures.zip into `folder`; returns what became of each figure, by name.

    Chunks stay beside `output_dir` until the archive is complete.
    """
    from tqdm import tqdm

    items = [(name, places.get(name)) for name in sorted(set(names))]
    [(stored, times)] = Counter(stored_name(name) for name, _ in items).most_common(1) or [("", 1)]
    if times > 1:
        raise UserError(f"--figures: two figures would be called {stored} in {ARCHIVE}: rename one")
    partial = output_dir.resolve().with_name(f".{output_dir.name}.figures")
    key = hashlib.sha256(repr((VERSION, most, items)).encode()).hexdigest()
    if partial.exists() and not (partial / f"{key}.key").exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / f"{key}.key").touch()
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    files = [partial / f"{number:06}.zip" for number in range(len(chunks))]
    done = [encoded_before(file) for file in files]
    found = sum(len(figures) for figures in done if figures)
    if found:
        print(f"Continuing: {found:,} of {len(items):,} figures are there", flush=True)
    missing = [number for number, figures in enumerate(done) if figures is None]
    pieces = ((files[number], chunks[number], most) for number in missing)
    with tqdm(total=len(items), initial=found, desc="Figures", unit=" figures") as progress:
        for number, figures in zip(missing, apply(encode_chunk, pieces), strict=True):
            done[number] = figures
            progress.update(len(figures))
    stored = sorted(
        (figure.stored, file)
        for figures, file in zip(done, files, strict=True)
        for figure in figures
        if not figure.reason
    )
    with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
        for file, group in groupby(stored, key=itemgetter(1)):
            with zipfile.ZipFile(file) as chunk:
                for name, _ in group:
                    archive.writestr(zipfile.ZipInfo(name, FIXED_DATE), chunk.read(name))
    shutil.rmtree(partial)
    return {figure.name: figure for figures in done for figure in figures}


def facts_of_figures(figures: Iterable[Figure]) -> dict[str, Any]:
    """What the report tells of them: how many, their modes, sizes before and after, and why some were rejected."""
    import numpy as np

    figures = list(figures)
    kept = [figure for figure in figures if not figure.reason]
    sides = {"before": [figure.before for figure in kept], "after": [figure.after for figure in kept]}
    pixels = {when: [width * height for width, height in sizes] for when, sizes in sides.items()}
    quantiles = {"smallest": 0.0, "median": 0.5, "p95": 0.95, "largest": 1.0}
    return {
        "written": len(kept),
        "bytes": sum(figure.size for figure in kept),
        "made_smaller": sum(figure.after != figure.before for figure in kept),
        "modes": dict(Counter(figure.mode for figure in kept).most_common()),
        "pixels": {
            when: dict(
                zip(quantiles, np.quantile(values, [*quantiles.values()], method="inverted_cdf").tolist(), strict=True)
            )
            for when, values in pixels.items()
            if values
        },
        "rejected": dict(Counter(figure.reason for figure in figures if figure.reason).most_common()),
    }
