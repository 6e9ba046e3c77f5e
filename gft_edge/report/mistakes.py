"""Writes the result of an evaluation: a JSON file, and next to it a folder with pictures of wrong predictions."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.errors import ConfigError, DataError
from gft_edge.files import canonical_json, replacing, require_writable, writing
from gft_edge.preprocess import PreprocessSpec
from gft_edge.report.figures.overlays import write_png
from gft_edge.runtime.accuracy import Accuracy
from gft_edge.storage.leftovers import temporary_beside

if TYPE_CHECKING:
    from gft_edge.data.datasets import ImageSet

_PICTURE = re.compile(r"\d{3,}\.png")


def pictures_folder(out: Path) -> Path:
    """Returns the folder of pictures of wrong predictions: ``NAME-wrong`` next to ``NAME.json``."""
    return out.with_name(f"{out.stem}-wrong")


def require_evaluation_writable(out: Path) -> None:
    """Raises if the output cannot be written, or if its folder of pictures holds other files.

    Raises:
        ConfigError: names the path in the way.
    """
    require_writable(out)
    folder = pictures_folder(out)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(
            f"output {folder}: is in the way of the folder of pictures; remove it or choose another --out"
        )
    if folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if not _PICTURE.fullmatch(path.name))
        if others:
            raise ConfigError(
                f"output {folder}: holds {others[0]!r}, which is not a picture of an evaluation; remove it or choose another --out"
            )


def write_evaluation(
    out: Path, data: dict[str, Any], results: Sequence[Accuracy], images: ImageSet, spec: PreprocessSpec
) -> dict[str, Any]:
    """Writes an evaluation and its pictures, whole or not at all; an earlier evaluation of this name is replaced.

    Args:
        out: JSON file.
        data: the evaluation as JSON values; its ``results`` match ``results`` in order.
        results: their wrong predictions are drawn.
        images: of the evaluation.
        spec: preprocessing; pictures show the input of the network.

    Returns:
        ``data`` with the path of each picture relative to the folder of ``out``.

    Raises:
        ConfigError: another file is in the way.
        OutputError: the files cannot be written.
    """
    require_evaluation_writable(out)
    folder = pictures_folder(out)
    with contextlib.ExitStack() as stack:
        with writing(folder):
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(temporary_beside(folder, folder=True))
        wrong_ones = dict.fromkeys(wrong.index for found in results for wrong in found.wrong)
        with writing(folder, temporary):
            names = _draw(temporary, wrong_ones, images, spec)
        entries = [
            {
                **entry,
                "wrong": [
                    {**shown, "picture": f"{folder.name}/{names[wrong.index]}" if wrong.index in names else ""}
                    for shown, wrong in zip(entry["wrong"], found.wrong)
                ],
            }
            for entry, found in zip(data["results"], results)
        ]
        data = {**data, "results": entries}
        with replacing(out) as file:
            file.write_text(canonical_json(data), encoding="utf-8")
            if folder.is_dir():
                shutil.rmtree(folder)
            if names:
                temporary.chmod(0o755)
                temporary.rename(folder)
    return data


def _draw(folder: Path, indices: Iterable[int], images: ImageSet, spec: PreprocessSpec) -> dict[int, str]:
    """Writes one picture per readable image and returns the file names by index."""
    names: dict[int, str] = {}
    for index in indices:
        try:
            image, _ = images[index]
        except DataError:
            continue
        names[index] = f"{len(names):03d}.png"
        write_png(folder / names[index], spec.geometry(image))
    return names
