"""Drawn figures of stained cells whose content no text tells: the embedded data of the vision quickstart.

A figure shows one to four cells of one colour and one shape in one quarter of a noisy ground. The embedded vision
tower learns from such figures (sft/embedded_vlm.py), and the questions of the embedded sample ask about others
(data_prep/sample.py --figures).
"""

import math
import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 64  # pixels a side: four patches of 16 in each direction

COLOURS = {
    "purple": (125, 50, 160),
    "green": (40, 140, 60),
    "red": (200, 40, 45),
    "blue": (45, 80, 200),
    "orange": (235, 140, 30),
    "brown": (110, 70, 35),
    "black": (20, 20, 20),
    "pink": (240, 120, 170),
}
# What a figure can show, by the property that a question asks about.
VALUES = {
    "colour": tuple(COLOURS),
    "shape": ("round", "rod", "star", "ring", "triangle", "cross"),
    "number": ("one", "two", "three", "four"),
    "place": ("upper left", "upper right", "lower left", "lower right"),
}


class Facts(NamedTuple):
    """What a figure shows: one of `VALUES` for each property."""

    colour: str
    shape: str
    number: str
    place: str


def random_facts(rng: random.Random) -> Facts:
    """Each property at random, independent of the others."""
    return Facts(*(rng.choice(values) for values in VALUES.values()))


def polygon(x: float, y: float, radii: list[float], angle: float) -> list[tuple[float, float]]:
    """Corners at the given distances from (x, y), in equal steps around it."""
    steps = [angle + corner * 2 * math.pi / len(radii) for corner in range(len(radii))]
    return [(x + r * math.cos(step), y + r * math.sin(step)) for r, step in zip(radii, steps, strict=True)]


def draw_cell(draw, shape: str, x: float, y: float, radius: float, colour: tuple, rng: random.Random) -> None:
    """One cell, turned at random."""
    angle = rng.uniform(0, math.pi)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "round":
        draw.ellipse(box, fill=colour)
    elif shape == "ring":
        draw.ellipse(box, outline=colour, width=max(2, round(radius * 0.45)))
    elif shape == "triangle":
        draw.polygon(polygon(x, y, [radius * 1.2] * 3, angle), fill=colour)
    elif shape == "star":
        draw.polygon(polygon(x, y, [radius * 1.3, radius * 0.5] * 5, angle), fill=colour)
    else:
        length, width, turns = (1.5, 0.7, [0]) if shape == "rod" else (1.2, 0.6, [0, math.pi / 2])
        for turn in turns:
            line = polygon(x, y, [radius * length] * 2, angle + turn)
            draw.line(line, fill=colour, width=max(3, round(radius * width)))


def draw(facts: Facts, rng: random.Random) -> "Image":
    """An RGB image of SIZE x SIZE pixels that shows `facts`; ground, tint, size, turn and noise are random."""
    import numpy as np
    from PIL import Image, ImageDraw

    side = 2 * SIZE  # drawn at twice the size, because PIL draws without smooth edges
    image = Image.new("RGB", (side, side), tuple(rng.randrange(205, 250) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(12):  # pale spots, as of tissue
        x, y, radius, grey = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(2, 6), rng.randrange(180, 225)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(grey, grey, grey - 8))
    colour = tuple(min(255, max(0, value + rng.randrange(-18, 19))) for value in COLOURS[facts.colour])
    cell = side / 4
    left, top = ((side / 2 if word in facts.place else 0) for word in ("right", "lower"))
    corners = rng.sample([(0, 0), (1, 0), (0, 1), (1, 1)], 1 + VALUES["number"].index(facts.number))
    for column, row in corners:
        x, y = (start + (step + 0.5) * cell + rng.uniform(-2, 2) for start, step in ((left, column), (top, row)))
        draw_cell(pen, facts.shape, x, y, cell * rng.uniform(0.27, 0.34), colour, rng)
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)).astype(np.int16)
    noise = np.random.default_rng(rng.randrange(1 << 30)).integers(-9, 10, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
