"""What stands where, the words for it, and the picture.

A scene is one to three things on a 3 x 3 grid, one per cell:

  Scene((Thing(0, "small", "red", "circle"), Thing(4, "large", "blue", "square")))   key 0src-4lbs
"""

from __future__ import annotations

import dataclasses
import random

from PIL import Image, ImageDraw

SIZES = ("small", "large")
COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 160, 60),
    "blue": (30, 70, 230),
    "yellow": (255, 200, 0),
}
SHAPES = ("circle", "square", "triangle")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
POSITIONS = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
NUMBERS = ("zero", "one", "two", "three")
YESNO = ("yes", "no")

CELL = 16  # pixels; no thing straddles a cell
SIDE = 3 * CELL
BACKGROUND = (255, 255, 255)
RADIUS = {"small": 4, "large": 7}  # pixels from the cell's centre to a side
_OVERSAMPLE = 8  # drawn larger and averaged down, for smooth edges


@dataclasses.dataclass(frozen=True, order=True)
class Thing:
    """One coloured shape; in what a response says of it, None stands for what it leaves open."""

    cell: int | None  # 0..8, row by row
    size: str | None
    colour: str | None
    shape: str

    @property
    def position(self) -> str | None:
        return None if self.cell is None else POSITIONS[self.cell]


@dataclasses.dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]  # in reading order, one per cell at most

    @property
    def key(self) -> str:
        """'0sre-4lbs': cell, size, colour and shape of each thing; the picture's file name."""
        return "-".join(f"{t.cell}{t.size[0]}{t.colour[0]}{t.shape[0]}" for t in self.things)


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, SIDE x SIDE pixels."""
    image = Image.new("RGB", (SIDE * _OVERSAMPLE,) * 2, BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        r = RADIUS[thing.size] * _OVERSAMPLE
        y, x = ((2 * i + 1) * CELL * _OVERSAMPLE // 2 for i in divmod(thing.cell, 3))
        # Pillow's boxes include their last pixel.
        box = (x - r, y - r, x + r - 1, y + r - 1)
        if thing.shape == "circle":
            canvas.ellipse(box, fill=COLOURS[thing.colour])
        elif thing.shape == "square":
            canvas.rectangle(box, fill=COLOURS[thing.colour])
        else:
            corners = [(x, y - r), (x + r - 1, y + r - 1), (x - r, y + r - 1)]
            canvas.polygon(corners, fill=COLOURS[thing.colour])
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def random_scene(rng: random.Random) -> Scene:
    cells = sorted(rng.sample(range(9), rng.randint(1, 3)))
    return Scene(tuple(random_thing(rng, cell) for cell in cells))


def random_thing(rng: random.Random, cell: int) -> Thing:
    return Thing(cell, rng.choice(SIZES), rng.choice(tuple(COLOURS)), rng.choice(SHAPES))
