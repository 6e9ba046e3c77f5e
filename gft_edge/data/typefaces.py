"""The built-in task: classify the typeface of a word. Images are rendered on the fly from a seed, without a download.

The task is fine-grained classification: classes differ in serifs, stroke contrast, terminals and slant, while words, sizes,
colours and places carry no information. The vocabularies of the splits are disjoint.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gft_edge.data.splits import SPLITS, Split
from gft_edge.errors import ConfigError, DataError, MissingExtraError
from gft_edge.resample import interleaved

if TYPE_CHECKING:
    from PIL import Image, ImageFont

FACES: tuple[tuple[str, str], ...] = (
    ("dejavu-sans", "DejaVuSans"),
    ("dejavu-sans-bold", "DejaVuSans-Bold"),
    ("dejavu-sans-oblique", "DejaVuSans-Oblique"),
    ("dejavu-mono", "DejaVuSansMono"),
    ("dejavu-mono-bold", "DejaVuSansMono-Bold"),
    ("dejavu-serif", "DejaVuSerif"),
    ("dejavu-serif-bold", "DejaVuSerif-Bold"),
    ("dejavu-serif-italic", "DejaVuSerif-Italic"),
    ("stix", "STIXGeneral"),
    ("stix-bold", "STIXGeneralBol"),
    ("stix-italic", "STIXGeneralItalic"),
    ("stix-bold-italic", "STIXGeneralBolIta"),
    ("computer-modern-roman", "cmr10"),
    ("computer-modern-italic", "cmti10"),
    ("computer-modern-sans", "cmss10"),
    ("computer-modern-typewriter", "cmtt10"),
)
"""Class label and font file of each class; all ship with matplotlib under free licences."""

LABELS: tuple[str, ...] = tuple(label for label, _ in FACES)

_ONSETS = [
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "qu",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "st",
    "tr",
    "br",
    "ch",
    "sh",
]
_VOWELS = ["a", "e", "i", "o", "u", "ea", "ou", "y"]
_CODAS = ["", "", "n", "r", "s", "t", "l", "m", "g", "x", "nd", "k"]


@functools.cache
def font_folder() -> Path:
    """Returns the folder of the fonts of matplotlib.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    spec = importlib.util.find_spec("matplotlib")  # importing the package takes half a second
    if spec is None or spec.origin is None:
        raise MissingExtraError("matplotlib", "report", "which contains the fonts of the typefaces")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@functools.lru_cache(maxsize=4096)
def opened_font(file: str, size: float) -> ImageFont.FreeTypeFont:
    """Returns a font of so many points; the last ones stay open.

    Args:
        file: name of a font of matplotlib without ending, or the absolute path of a font.
        size: in points.

    Raises:
        MissingExtraError: Pillow or matplotlib is not installed.
        DataError: the font cannot be read.
    """
    try:
        from PIL import ImageFont
    except ImportError:
        raise MissingExtraError("Pillow", "report") from None
    path = Path(file) if Path(file).is_absolute() else font_folder() / f"{file}.ttf"
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise DataError(f"typefaces: font {path} cannot be read ({error})") from None


@functools.lru_cache(maxsize=64)
def _points_per_x_height(file: str) -> float:
    """Returns the font size in points per pixel of x-height; with it all faces look equally large."""
    _, top, _, bottom = opened_font(file, 200.0).getbbox("x")
    return 200.0 / (bottom - top)


def font_folder_faces(folder: Path) -> tuple[tuple[str, str], ...]:
    """Returns one class per .ttf or .otf file below a folder, named after the file.

    Raises:
        DataError: fewer than two fonts, two of one name, or a font without Latin letters.
    """
    files = sorted(path.resolve() for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
    if len(files) < 2:
        raise DataError(f"typefaces:{folder}: found {len(files)} .ttf or .otf files, needs two or more")
    if len({path.stem for path in files}) != len(files):
        raise DataError(f"typefaces:{folder}: two fonts have the same file name")
    for path in files:
        _, top, _, bottom = opened_font(str(path), 200.0).getbbox("x")
        if bottom <= top:
            raise DataError(f"typefaces: font {path} has no letter x")
    return tuple((path.stem, str(path)) for path in files)


def split_of(word: str) -> Split:
    """Returns the split of a word by its checksum: 10 % test, 10 % val, 80 % train."""
    bucket = zlib.crc32(word.lower().encode()) % 10
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"


def random_word(rng: np.random.Generator, split: Split) -> str:
    """Returns a pronounceable pseudo-word of two syllables from the split's vocabulary."""
    while True:
        word = ""
        for _ in range(2):
            for parts in (_ONSETS, _VOWELS, _CODAS):
                word += parts[rng.integers(0, len(parts))]  # the draws of rng.choice, which converts the list each time
        if 3 <= len(word) <= 6 and split_of(word) == split:
            return word.capitalize() if rng.random() < 0.5 else word


def render(file: str, word: str, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Renders a word in a font with random size, place, slope, colours, blur and noise. Returns (size, size, 3) uint8."""
    x_height = rng.uniform(0.17, 0.24) * size
    points = round(x_height * _points_per_x_height(file) * 4) / 4
    font = opened_font(file, points)
    from PIL import Image, ImageDraw, ImageFilter  # after the font: opening it raises the error about Pillow

    # Two rows of the same word broken in half fill the square with large letters.
    half = (len(word) + 1) // 2
    canvas = Image.new("L", (2 * size, 2 * size), 0)
    draw = ImageDraw.Draw(canvas)
    line = x_height * rng.uniform(1.9, 2.2)
    for row, text in enumerate((word[:half], word[half:])):
        left, _, right, _ = font.getbbox(text)
        shift = rng.uniform(-0.06, 0.06) * size
        draw.text((size - (left + right) / 2 + shift, size + (row - 0.5) * line + x_height / 2), text, 255, font, "ls")
    angle = rng.uniform(-5, 5)
    dx, dy = rng.uniform(-0.06, 0.06, 2).tolist()
    mask_image = _turned(canvas, angle, round(size / 2 + dx * size), round(size / 2 + dy * size), size)
    sigma = rng.uniform(0, 0.7) * size / 96
    if sigma > 0.2:
        mask_image = mask_image.filter(ImageFilter.GaussianBlur(sigma))
    paper, ink = _colors(rng)
    tilt = rng.uniform(-12, 12, 2).astype(np.float32)
    ramp, levels = _ramps(size)
    table = paper[:, None] * (1 - levels) + ink[:, None] * levels
    # By colour: numpy is slow where the innermost axis is short.
    planes = table.take(np.asarray(mask_image), axis=1)
    planes += ramp[:, None] * tilt[0] + ramp * tilt[1]
    noise = rng.standard_normal((size, size), dtype=np.float32)
    noise *= np.float32(rng.uniform(0, 8))
    planes += noise
    np.rint(planes, out=planes)
    np.clip(planes, 0, 255, out=planes)
    return interleaved(planes)


@functools.lru_cache(maxsize=8)
def _ramps(size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns -1 ... 1 along the side of an image, and 0 ... 1 for the 256 levels of a mask."""
    return np.linspace(-1, 1, size, dtype=np.float32), np.arange(256, dtype=np.float32) / np.float32(255)


def _turned(canvas: Image.Image, angle: float, left: int, top: int, size: int) -> Image.Image:
    """Returns the square of ``size`` pixels at (left, top) of ``canvas.rotate(angle, BICUBIC)``, and computes no more of it.

    The matrix is Pillow's. Outside the ink the result is 0, so only the rectangle around the turned ink is computed.
    """
    from PIL import Image

    mask = Image.new("L", (size, size), 0)
    ink = canvas.getbbox()
    if ink is None:
        return mask
    center = canvas.width / 2
    cos, sin = (round(value, 15) for value in (math.cos(math.radians(-angle)), math.sin(math.radians(-angle))))
    across = [center + cos * (x - center) - sin * (y - center) for x in ink[::2] for y in ink[1::2]]
    down = [center + sin * (x - center) + cos * (y - center) for x in ink[::2] for y in ink[1::2]]
    # The cubic filter reads two pixels on each side.
    first_x, first_y = max(math.floor(min(across)) - 3, left), max(math.floor(min(down)) - 3, top)
    last_x, last_y = min(math.ceil(max(across)) + 3, left + size), min(math.ceil(max(down)) + 3, top + size)
    if first_x >= last_x or first_y >= last_y:
        return mask
    x, y = first_x - center, first_y - center
    matrix = (cos, sin, cos * x + sin * y + center, -sin, cos, -sin * x + cos * y + center)
    part = canvas.transform(
        (last_x - first_x, last_y - first_y), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    mask.paste(part, (first_x - left, first_y - top))
    return mask


def _colors(rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Draws paper and ink with a difference of brightness of at least 80 levels; one of three prints light on dark."""
    while True:
        paper, ink = rng.uniform(130, 255, 3), rng.uniform(0, 130, 3)
        if sum(paper.tolist()) / 3 - sum(ink.tolist()) / 3 >= 80:
            break
    if rng.random() < 1 / 3:
        paper, ink = ink, paper
    return paper.astype(np.float32), ink.astype(np.float32)


@dataclass(frozen=True)
class Typefaces:
    """A split of the typefaces task as a sequence of (image, label).

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; vocabularies are disjoint.
        num_images: length; classes alternate, so any multiple of 16 is balanced.
        size: pixels of the square images.
        seed: for words, sizes, places and colours.
        faces: label and font file of each class; the sixteen of matplotlib by default.

    Raises:
        ConfigError: unknown split or bad size.
    """

    split: Split
    num_images: int
    size: int = 96
    seed: int = 0
    faces: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"typefaces: split must be one of {', '.join(SPLITS)}, found {self.split!r}")
        if self.num_images < 1 or self.size < 32:
            raise ConfigError(
                f"typefaces: needs one image or more of at least 32 px, found {self.num_images} of {self.size} px"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""
        return LABELS if self.faces is None else tuple(label for label, _ in self.faces)

    @property
    def notes(self) -> tuple[str, ...]:
        """Empty: nothing is left out."""
        return ()

    @property
    def rendered_split(self) -> Split | None:
        """The split whose words are rendered."""
        return self.split

    def name(self, index: int) -> str:
        """Returns for example ``typefaces test 12``."""
        return f"typefaces {self.split} {index}"

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image."""
        return [index % len(self.labels) for index in range(len(self))]

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Returns image (size, size, 3) uint8 RGB and class number."""
        if not 0 <= index < self.num_images:
            raise IndexError(index)
        faces = FACES if self.faces is None else self.faces
        label = index % len(faces)
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        return render(faces[label][1], random_word(rng, self.split), self.size, rng), label
