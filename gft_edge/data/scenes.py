"""A task where it matters which patches are kept: name the one letter in a scene of other signs, shapes and strokes.

The mark is a letter of a confusable family in one of sixteen typefaces. It covers 1.5 % of the image; texture, signs and
colours carry no information on its class. The position of the mark is known, so it can be seen whether its patches are kept.
Images are drawn from a seed, without a download.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.config.reader import load_dataclass, parse_scalar
from gft_edge.data.canvas import (
    FIGURES,
    Mask,
    backdrop,
    figure,
    glyph,
    noise,
    photographs_in,
    stored_glyph,
    texture,
    texture_count,
)
from gft_edge.data.splits import SPLITS, Split
from gft_edge.data.typefaces import FACES, split_of
from gft_edge.errors import ConfigError, DataError

LABELS: tuple[str, ...] = tuple("CGOQBEFPRHKNMWVY")
"""The classes: letters of similar outline, some of which differ in one stroke."""
SIGNS = "234579+=#%&?@*"
"""Signs of the distractors; 0, 6, 8 and round signs are missing, which read as O, G and B."""

SHARE, DISTRACTORS = 0.015, 6
MIN_SIDE, MIN_SIZE = 6, 64
"""Pixels that a letter needs to be read, and of the smallest canvas."""
LARGEST = 0.5
"""Side of a mark as a part of the canvas's side, at most."""
MAX_DISTRACTORS = 200
LONGEST = 4 / 3
"""Longer side of a mark as a part of a square of its share, at most: a narrow or wide letter."""
MARGIN = 2
"""Pixels between the mark and other ink."""
CONTRAST = 80
"""Levels of brightness between ink and the mean of what it covers, at least."""

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""


@dataclass(frozen=True)
class Scenes:
    """A split of the scenes task as a sequence of (image, label).

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; no letter stands in the same typeface at the same place in two of them, and
            they share no texture and no photograph.
        num_images: length; classes alternate, so any multiple of 16 is balanced.
        size: pixels of the square images.
        seed: for everything that is drawn.
        share: of the image that the box of the mark covers, at most.
        distractors: number of other signs, shapes and strokes.
        scale: factor of the mark's side, 1 for the task itself; a curriculum begins with more.
        photographs: files of photographs for the background instead of textures, those of this split.

    Raises:
        ConfigError: unknown split, bad size or number, or a mark that is too small to be read or too large for the canvas.
    """

    split: Split
    num_images: int
    size: int = 192
    seed: int = 0
    share: float = SHARE
    distractors: int = DISTRACTORS
    scale: float = 1.0
    photographs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"scenes: split must be one of {', '.join(SPLITS)}, found {self.split!r}")
        if self.num_images < 1 or self.size < MIN_SIZE:
            raise ConfigError(
                f"scenes: needs one image or more of at least {MIN_SIZE} px, found {self.num_images} of {self.size} px"
            )
        if not 0 <= self.distractors <= MAX_DISTRACTORS:
            raise ConfigError(f"scenes: distractors must be 0 to {MAX_DISTRACTORS}, found {self.distractors}")
        if not (0 < self.share < math.inf and 0 < self.scale < math.inf):
            raise ConfigError(
                f"scenes: share and scale must be above 0 and finite, found {self.share:g} and {self.scale:g}"
            )
        side = self._side * self.scale
        # A letter is up to a third longer (LONGEST); with less room, no place might be of the split.
        if side > LARGEST * self.size:
            raise ConfigError(
                f"scenes: a mark of {side:.0f} px (share {self.share:g}, scale {self.scale:g}) is too large for a canvas of "
                f"{self.size} px, which takes {LARGEST * self.size:.0f} px; lower share or scale"
            )
        if side < MIN_SIDE:
            raise ConfigError(
                f"scenes: a mark of {side:.1f} px (share {self.share:g} of {self.size} px) cannot be read, needs "
                f"{MIN_SIDE} px; raise share or the image size"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names: letters."""
        return LABELS

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the backgrounds come from, if they are photographs."""
        count = len(self.photographs)
        return (f"scenes {self.split}: {count} photographs as backgrounds",) if count else ()

    @property
    def rendered_split(self) -> Split | None:
        """The split that is drawn."""
        return self.split

    @property
    def longest_mark(self) -> float:
        """Pixels of the longer side of a mark, at most."""
        return LONGEST * self._side * self.scale

    @property
    def _side(self) -> float:
        """Side of a square of the mark's share, in pixels."""
        return math.sqrt(self.share) * self.size

    def name(self, index: int) -> str:
        """Returns for example ``scenes test 12``."""
        return f"scenes {self.split} {index}"

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image."""
        return [index % len(LABELS) for index in range(len(self))]

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        """Returns image (size, size, 3) uint8 RGB and class number; raises DataError if a photograph cannot be read."""
        return self.drawn(index), index % len(LABELS)

    def marks(self, index: int) -> npt.NDArray[np.bool_]:
        """Returns which pixels of an image have ink of the mark, (size, size) bool."""
        mask, left, top = self._mark(index)
        found = np.zeros((self.size, self.size), dtype=np.bool_)
        found[top : top + mask.shape[0], left : left + mask.shape[1]] = mask > 0
        return found

    def mark_box(self, index: int) -> Box:
        """Returns the box of the mark of an image, in pixels."""
        mask, left, top = self._mark(index)
        return left, top, left + mask.shape[1], top + mask.shape[0]

    def drawn(self, index: int, with_mark: bool = True) -> Pixels:
        """Returns the image (size, size, 3) uint8 RGB, or the same image without its mark."""
        mask, left, top = self._mark(index)
        box = (left - MARGIN, top - MARGIN, left + mask.shape[1] + MARGIN, top + mask.shape[0] + MARGIN)
        rng, others = self._rng(index, 1), self._rng(index, 2)  # what else is there does not depend on the mark
        pixels = self._background(rng)
        for _ in range(self.distractors):
            other = self._distractor(others)
            _stamp(pixels, other, _place_beside(rng, box, other, self.size), rng)
        if with_mark:
            _stamp(pixels, mask, (left, top), rng)
        return pixels

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        if not 0 <= index < self.num_images:
            raise IndexError(index)
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, purpose])

    def _mark(self, index: int) -> tuple[Mask, int, int]:
        """Draws the mask of a mark and its place, left and top."""
        rng = self._rng(index, 0)
        letter = LABELS[index % len(LABELS)]
        face = int(rng.integers(len(FACES)))
        area = (self._side * self.scale) ** 2 * rng.uniform(0.7, 1.0)
        mask = glyph(FACES[face][1], letter, area, rng.uniform(-10, 10))
        height, width = mask.shape
        while True:
            left = int(rng.integers(0, max(1, self.size - width + 1)))
            top = int(rng.integers(0, max(1, self.size - height + 1)))
            if split_of(f"{letter} {face} {left} {top}") == self.split:
                return mask, left, top

    def _distractor(self, rng: np.random.Generator) -> Mask:
        """Draws a sign (every second one), a shape or a stroke of about the size of a mark of scale 1."""
        kind, number, sign, face, step, turn = (
            int(v) for v in rng.integers((2, FIGURES, len(SIGNS), len(FACES), 3, 3))
        )
        if kind:
            return figure(number, min(self._side, self.size / 10))
        return stored_glyph(FACES[face][1], SIGNS[sign], self._side**2 * (0.6 + 0.3 * step), 8.0 * turn - 8)

    def _background(self, rng: np.random.Generator) -> Pixels:
        """Draws the texture or the photograph, its crop, colours and noise."""
        size, side = self.size, self.size * 3 // 2
        left, top, turn = (int(v) for v in rng.integers((side - size + 1, side - size + 1, 8)))
        if self.photographs:
            whole = backdrop(self.photographs[int(rng.integers(len(self.photographs)))], side)
            pixels = whole[top : top + size, left : left + size, :].astype(np.int16)
            softer = (pixels[:, :: 1 if turn & 1 else -1] * 5 >> 3) + 48  # else no ink stands out from dark and light
            return np.clip(softer + _grains(rng, self.seed, size)[..., None], 0, 255).astype(np.uint8)
        number = int(rng.integers(texture_count()))
        grey = texture(self.seed, SPLITS.index(self.split), number, side)[top : top + size, left : left + size]
        grey = grey[:: 1 if turn & 1 else -1, :: 1 if turn & 2 else -1]
        levels = (grey.T if turn & 4 else grey) + _grains(rng, self.seed, size)
        return _colours(rng).take(np.clip(levels, 0, 255)).view(np.uint8).reshape(size, size, 4)[..., :3].copy()


@dataclass(frozen=True)
class MarkWindows:
    """Windows of scenes that show the mark and what happens to lie beside it, for the first phases of a training.

    Args:
        scenes: whole images.
        side: of the square windows, in pixels.

    Raises:
        ConfigError: a mark may not fit, or the window is not smaller than the images.
    """

    scenes: Scenes
    side: int

    def __post_init__(self) -> None:
        needed = math.ceil(self.scenes.longest_mark)
        if not needed <= self.side < self.scenes.size:
            raise ConfigError(
                f"scenes: windows must have {needed} px, which the longest mark takes, to less than {self.scenes.size} px, "
                f"the whole image; found {self.side} px"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""
        return self.scenes.labels

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the scenes."""
        return self.scenes.notes

    @property
    def rendered_split(self) -> Split | None:
        """The split that is drawn."""
        return self.scenes.split

    def name(self, index: int) -> str:
        """Returns the name of the whole image."""
        return self.scenes.name(index)

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image."""
        return self.scenes.class_numbers()

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        """Returns a window (side, side, 3) uint8 RGB, at a random place around the mark, and the class number."""
        pixels, label = self.scenes[index]
        left, top, right, bottom = self.scenes.mark_box(index)
        rng = np.random.default_rng([self.scenes.seed, index, 3])
        x, y = (
            int(rng.integers(max(0, end - self.side), min(begin, self.scenes.size - self.side) + 1))
            for begin, end in ((left, right), (top, bottom))
        )
        return pixels[y : y + self.side, x : x + self.side], label


def _grains(rng: np.random.Generator, seed: int, size: int) -> npt.NDArray[np.int16]:
    """Draws noise of a random strength and crop, (size, size) int16."""
    strength, left, top = (int(v) for v in rng.integers((16, 32, 32)))
    grains: npt.NDArray[np.int16] = noise(seed, size + 32)[top : top + size, left : left + size] * strength >> 4
    return grains


def _colours(rng: np.random.Generator) -> npt.NDArray[np.uint32]:
    """Draws two colours and returns the 256 between them, (256,) of four bytes: red, green, blue and nothing."""
    middle, contrast = rng.integers(70, 186), rng.integers(15, 50)
    ends = middle + np.array([[-1], [1]]) * contrast + rng.integers(-30, 31, (2, 3))
    steps = np.arange(256)[:, None]
    table = np.zeros((256, 4), dtype=np.uint8)
    table[:, :3] = np.clip((ends[0] * (255 - steps) + ends[1] * steps) // 255, 0, 255)
    return table.view(np.uint32)[:, 0]


def _place_beside(rng: np.random.Generator, box: Box, mask: Mask, size: int) -> tuple[int, int]:
    """Draws left and top of a mask that does not touch a box; the corner that is farthest from it after some attempts."""
    height, width = mask.shape
    wide, high = max(1, size - width + 1), max(1, size - height + 1)
    for _ in range(20):
        left, top = int(rng.integers(wide)), int(rng.integers(high))
        if left >= box[2] or left + width <= box[0] or top >= box[3] or top + height <= box[1]:
            return left, top
    return 0 if box[0] + box[2] > size else wide - 1, 0 if box[1] + box[3] > size else high - 1


def _stamp(pixels: Pixels, mask: Mask, place: tuple[int, int], rng: np.random.Generator) -> None:
    """Covers pixels with ink that is lighter or darker than what lies there, whichever leaves more room."""
    left, top = place
    area = pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
    mean = int(area.sum(dtype=np.int64)) // max(1, area.size)
    room = (255 if mean < 128 else 0) - mean
    offset = CONTRAST + int(rng.integers(0, max(1, abs(room) - CONTRAST)))
    ink = mean + (offset if room > 0 else -offset) + rng.integers(-20, 21, 3)
    cover = mask[: area.shape[0], : area.shape[1], None].astype(np.int32)
    area[...] = (area * (255 - cover) + np.clip(ink, 0, 255).astype(np.int32) * cover + 127) // 255


def open_scenes(name: str, split: Split, num_images: int, size: int, seed: int = 0) -> Scenes:
    """Opens a split of ``scenes[,share=X][,distractors=N][:FOLDER]``, with photographs of the folder as backgrounds.

    Raises:
        DataError: an unknown option, or no usable photographs.
        ConfigError: options out of range, see :class:`Scenes`.
    """
    options, folder = _parsed(name)
    photographs = () if folder is None else photographs_in(folder, split)
    return Scenes(split, num_images, size, seed, options.share, options.distractors, photographs=photographs)


@dataclass(frozen=True)
class _Options:
    share: float = SHARE
    distractors: int = DISTRACTORS


def _parsed(name: str) -> tuple[_Options, Path | None]:
    """Reads the options of a name and its folder of photographs."""
    kind, colon, root = name.partition(":")
    given = dict(part.partition("=")[::2] for part in kind.split(",")[1:])
    values = {key: parse_scalar(value) for key, value in given.items()}
    try:
        return load_dataclass(_Options, values, f"data {name}"), Path(root) if colon else None
    except ConfigError as error:
        raise DataError(str(error)) from None
