"""Cut-out photographs of things on other photographs: the kind of thing is the class, and where it lies is known.

The things are the stamps of the Debian package ``tuxpaint-stamps-default`` (GPL-2), the photographs those of ``opencv-doc`` (its
examples) and ``mate-backgrounds`` (GPL-2 or later). They are read where the packages are installed or unpacked, and neither
committed nor shipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from gft_edge.data.marks import Mask
from gft_edge.data.splits import Split
from gft_edge.errors import DataError

NAME, PACKAGES = "stamps", ("tuxpaint-stamps-default", "opencv-doc", "mate-backgrounds")
SEED = 0
SIZE = 224
SHARES = (0.06, 0.2)
"""Of the image that a thing covers, in turn."""
STAMPS = "usr/share/tuxpaint/stamps"
KINDS = {
    "bird": ("animals/birds",),
    "mammal": (
        "animals/mammals",
        *(
            f"animals/mammals/{kind}"
            for kind in ("apes", "bears", "bovines", "camel", "cats", "deer", "dogs", "equines")
        ),
        "animals/mammals/rodents",
    ),
    "fruit or vegetable": ("food/fruit", "food/vegetables"),
    "flower": ("plants/flowers",),
    "coin": tuple(f"symbols/money/{kind}" for kind in ("canadian/coins", "euro/coins", "japanese", "us/coins")),
    "road sign": ("town/roadsigns",),
}
"""Folders of the classes; those of drawings are left out."""
EXAMPLES, BACKGROUNDS = "usr/share/doc/opencv-doc/examples", "usr/share/backgrounds/mate/nature"
PHOTOGRAPHS = (
    *(f"{EXAMPLES}/data/{name}.jpg" for name in ("aero1", "aloeL", "board", "building", "home", "left01")),
    *(f"{EXAMPLES}/data/{name}.jpg" for name in ("leuvenA", "messi5", "stuff", "licenseplate_motion")),
    *(f"{EXAMPLES}/data/{name}.png" for name in ("basketball1", "box_in_scene", "graf1", "rubberwhale1")),
    *(f"{EXAMPLES}/{name}" for name in ("text/scenetext04.jpg", "text/scenetext06.jpg", "reg/home.png")),
    *(f"{BACKGROUNDS}/{name}.jpg" for name in ("Aqua", "Blinds", "Dune", "GreenMeadow", "RainDrops", "Storm", "Wood")),
)
"""Photographs without things of the classes, each of another scene."""


@dataclass(frozen=True)
class Stamps:
    """Things on photographs, drawn from the number of the image; the parts share neither a thing nor a photograph.

    Attributes:
        split: ``train`` or ``test``.
        things: files of each class.
        photographs: files.
        count: images.
    """

    split: Split
    things: tuple[tuple[Path, ...], ...]
    photographs: tuple[Path, ...]
    count: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Kinds of things."""
        return tuple(KINDS)

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing is left out."""
        return ()

    @property
    def rendered_split(self) -> Split | None:
        """The part."""
        return self.split

    def name(self, index: int) -> str:
        """Returns for example ``stamps test 12``."""
        return f"{NAME} {self.split} {index}"

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image."""
        return [index % len(KINDS) for index in range(self.count)]

    def share(self, index: int) -> float:
        """Returns the part of an image that its thing covers; a long thing covers less, since it must fit."""
        return SHARES[index // len(KINDS) % len(SHARES)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Returns image (224, 224, 3) uint8 RGB and class number; raises DataError if a file cannot be read."""
        return self._drawn(index)[0], index % len(KINDS)

    def marks(self, index: int) -> Mask:
        """Returns which pixels show the thing, (224, 224)."""
        return self._drawn(index)[1]

    def _drawn(self, index: int) -> tuple[npt.NDArray[np.uint8], Mask]:
        rng = np.random.default_rng((SEED, ("train", "test").index(self.split), index))
        things = self.things[index % len(KINDS)]
        thing = _thing(things[rng.integers(len(things))])
        ground = _crop(_photograph(self.photographs[rng.integers(len(self.photographs))]), rng)
        alpha = np.asarray(thing.getchannel("A"), np.float64) / 255
        scale = (self.share(index) * SIZE**2 / alpha.sum()) ** 0.5
        scale = min(scale, *(0.95 * SIZE / side for side in thing.size))
        thing = thing.resize(
            (max(1, round(thing.width * scale)), max(1, round(thing.height * scale))), Image.Resampling.LANCZOS
        )
        if rng.random() < 0.5:
            thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top = (int(rng.integers(SIZE - side + 1)) for side in thing.size)
        ground.paste(thing, (left, top), thing)
        cover = Image.new("L", (SIZE, SIZE))
        cover.paste(thing.getchannel("A"), (left, top))
        return np.asarray(ground), np.asarray(cover) >= 128


def _crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns a square part of a photograph with 50 to 100 % of its shorter side, in the size of the image."""
    side = int(min(photograph.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
    return photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


@functools.cache
def _photograph(file: Path) -> Image.Image:
    """Returns a photograph in RGB, its longer side at most four times that of an image."""
    return _read(file, "RGB", lambda image: image.thumbnail((4 * SIZE, 4 * SIZE), reducing_gap=2.0))


@functools.cache
def _thing(file: Path) -> Image.Image:
    """Returns a stamp in RGBA without its empty border.

    Raises:
        DataError: it is empty, or cannot be read.
    """
    image = _read(file, "RGBA")
    box = image.getchannel("A").point(lambda level: 255 * (level >= 128)).getbbox()
    if box is None:
        raise DataError(f"image {file}: is transparent everywhere")
    return image.crop(box)


def _read(file: Path, mode: str, shrink: Callable[[Image.Image], None] | None = None) -> Image.Image:
    try:
        with Image.open(file) as image:
            if shrink is not None:
                shrink(image)
            return image.convert(mode)
    except (OSError, ValueError) as error:
        raise DataError(f"image {file}: cannot be read ({error})") from None


def parts(root: Path, train: int, test: int) -> tuple[Stamps, Stamps]:
    """Returns images to learn from and others to measure on: of each kind, half of the things and half of the photographs.

    Args:
        root: folder in which the packages lie as in the root of a file system.
        train: images to learn from.
        test: images to measure on.

    Raises:
        DataError: a package is not there, or has fewer than two things of a kind.
    """
    found = [
        [file for folder in folders for file in sorted((root / STAMPS / folder).glob("*.png"))]
        for folders in KINDS.values()
    ]
    photographs = [root / name for name in PHOTOGRAPHS]
    missing = [str(file) for file in photographs if not file.is_file()]
    missing += [
        f"{root / STAMPS / folders[0]}/*.png" for folders, files in zip(KINDS.values(), found) if len(files) < 2
    ]
    if missing:
        raise DataError(
            f"data {NAME}: {len(missing)} of the files of {', '.join(PACKAGES)} are not there, the first is {missing[0]}; "
            "unpack the Debian packages into a folder (apt-get download, dpkg -x) and give it as --packages"
        )
    rng = np.random.default_rng(SEED)
    halves = [_halves(files, rng) for files in (photographs, *found)]
    first, second = (tuple(pair[place] for pair in halves[1:]) for place in (0, 1))
    return Stamps("train", first, halves[0][0], train), Stamps("test", second, halves[0][1], test)


def _halves(files: Sequence[Path], rng: np.random.Generator) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    mixed = [files[index] for index in rng.permutation(len(files))]
    return tuple(mixed[: len(mixed) // 2]), tuple(mixed[len(mixed) // 2 :])
