"""Compares the answers of DeepStream's nvinfer, computed on a CPU, with ours, and names the cause of each kind of difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle import Bundle
from gft_edge.data.batches import Problem
from gft_edge.data.datasets import held_out_split, open_images
from gft_edge.data.for_model import EVERYTHING
from gft_edge.data.intact import intact_part
from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError, DataError
from gft_edge.export.deploy.deepstream.nvinfer_twin import (
    TENSORS_ONLY,
    Box,
    Twin,
    UInt8Image,
    attributes,
    open_twin,
    scaled,
    tensor,
)
from gft_edge.manifest import LOGITS, Artifact
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.backends.batching import run_in_batches
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.classifier import grouped
from gft_edge.runtime.golden import read_golden
from gft_edge.stats.metrics import softmax

ELEMENTS = {
    "padding": "maintain-aspect-ratio and symmetric-padding",
    "filter": "scaling-filter: the resize of a GPU or VIC reads a few pixels, ours averages over all",
    "crop": "the part of the frame: nvinfer takes all of it, the preprocessing cuts out the centre",
    "colour": "model-color-format",
    "scale": "net-scale-factor and offsets: one scale for three deviations, or normalisation that the graph has inside",
    "outputs": "every output of the graph is read as an attribute",
    "scores": "the graph gives scores, classifier-threshold needs probabilities",
    "threshold": "classifier-threshold: the largest probability is not above it",
    "labels": "the labels file: one attribute per line, its labels separated by ';', in the order of the classes",
}
"""Elements in which nvinfer can differ from the preprocessing and reading of the artefact."""
LIMIT = 0.01
"""Share of answers that may differ before a comparison fails."""
BEFORE_GRAPH = frozenset(("padding", "filter", "crop", "colour", "scale"))
_AT_ONCE = 64  # images whose inputs are held in memory
Answer = tuple[str | None, ...]


@dataclass(frozen=True)
class Cause:
    """An element that was put back to ours: the answers that differed before and after."""

    element: str
    text: str
    before: int
    after: int


@dataclass(frozen=True)
class TwinReport:
    """Answers of nvinfer against ours.

    Attributes:
        config: file that was computed.
        images: compared.
        differing: images whose answer is not our label alone.
        unanswered: of these, images without any attribute.
        causes: elements that were put back to ours, largest effect first.
        unexplained: images that differ with every element put back.
    """

    config: str
    images: int
    differing: int
    unanswered: int
    causes: tuple[Cause, ...]
    unexplained: int

    @property
    def share(self) -> float:
        """Share of the images whose answer differs."""
        return self.differing / self.images

    @property
    def passed(self) -> bool:
        """True while the share is within the limit."""
        return self.share <= LIMIT

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON values."""
        return {**asdict(self), "share": self.share, "passed": self.passed}

    def text(self) -> str:
        """Returns the report in words, one line per cause."""
        lines = [f"{self.config}: {self.differing} of {self.images} answers differ from ours ({self.share:.2%})"]
        if self.unanswered:
            lines[0] += f", {self.unanswered} of them have no answer"
        lines += [f"  {cause.before} -> {cause.after} with our {cause.element} ({cause.text})" for cause in self.causes]
        return "\n".join(lines + ([f"  {self.unexplained} not explained"] if self.unexplained else []))


def configurations(bundle: Bundle) -> tuple[Path, ...]:
    """Returns the configurations of nvinfer in a bundle, checked.

    Raises:
        ConfigError: the bundle is for another target.
        ArtifactError: a file is missing or was changed.
    """
    if bundle.target != "deepstream":
        raise ConfigError(
            f"bundle {bundle.path}: is for {bundle.target}; only one for deepstream has nvinfer's configuration"
        )
    names = [name for name in bundle.files if Path(name).name.startswith("config_infer_")]
    return tuple(bundle.file(name) for name in sorted(names))


def compare_with_twin(bundle: Bundle, frames: Sequence[UInt8Image] = ()) -> tuple[TwinReport, ...]:
    """Returns the comparison of each configuration of a bundle for DeepStream.

    Args:
        bundle: every file is checked first.
        frames: RGB (H, W, 3) uint8 of any size; the golden images of the artefact without any.

    Raises:
        ConfigError, ArtifactError, DataError: see :func:`configurations`,
            :func:`~gft_edge.export.deploy.deepstream.nvinfer_twin.open_twin`.
    """
    artifact = bundle.check()
    return tuple(compare_config(path, artifact, frames) for path in configurations(bundle))


def frames_of(
    data: str, split: Split | None, count: int, side: int, problem: Problem | None = None
) -> list[UInt8Image]:
    """Returns images of a data set in their own size, RGB (H, W, 3) uint8; rendered ones in three times ``side``.

    ``problem`` receives images that cannot be read and are replaced, see :mod:`gft_edge.data.intact`; without it they are errors.

    Raises:
        DataError: nothing usable is there.
    """
    part = split or held_out_split(data)
    found = open_images(data, part, count, 3 * side)
    images, _ = intact_part(found, lambda: open_images(data, part, EVERYTHING, 3 * side), data, problem)
    return [np.asarray(images[i][0]) for i in range(min(count, len(images)))]


def compare_config(path: Path, artifact: Artifact, frames: Sequence[UInt8Image] = ()) -> TwinReport:
    """Returns the comparison of one configuration; arguments and errors as in :func:`compare_with_twin`."""
    twin = open_twin(path)
    spec = artifact.manifest.preprocess
    if twin.size != (spec.height, spec.width):
        raise ConfigError(
            f"{path}: its graph takes {twin.size}, the artefact {(spec.height, spec.width)}; make the bundle again"
        )
    if len(frames):
        ours = np.stack([spec.geometry(frame) for frame in frames])
    else:
        ours = spec.pixels(read_golden(artifact)["images"])
        frames = list(ours)
    if not len(frames):
        raise DataError(f"{path}: no images to compare")
    return _Comparison(twin, artifact, frames, ours).report()


class _Comparison:
    """One configuration on some images; remembers the graph's outputs by what was put back before it."""

    def __init__(self, twin: Twin, artifact: Artifact, frames: Sequence[UInt8Image], ours: UInt8Image) -> None:
        self.twin, self.manifest, self.frames, self.ours = twin, artifact.manifest, frames, ours
        self._outputs: dict[frozenset[str], Sequence[npt.NDArray[Any]]] = {}
        session = open_session(artifact)
        images = self.manifest.preprocess.normalize(ours)
        scores = run_in_batches(lambda some: [session(some)[LOGITS]], images, 1, max(self.manifest.batch[2], 8))[0]
        self.expected: list[Answer] = [(self.manifest.labels[k],) for k in scores.argmax(axis=1)]

    def report(self) -> TwinReport:
        """Puts back the element with the largest effect until the answers agree or nothing has an effect."""
        answers = self.answers(frozenset())
        differing = remaining = self._differing(answers)
        back: frozenset[str] = frozenset()
        causes: list[Cause] = []
        while remaining:
            counts = {name: self._differing(self.answers(back | {name})) for name in ELEMENTS if name not in back}
            best = min(counts, key=counts.__getitem__, default="")
            if not best or counts[best] >= remaining:
                break
            causes.append(Cause(best, ELEMENTS[best], remaining, counts[best]))
            back, remaining = back | {best}, counts[best]
        unanswered = sum(not answer for answer in answers)
        return TwinReport(str(self.twin.config.path), len(answers), differing, unanswered, tuple(causes), remaining)

    def _differing(self, answers: Sequence[Answer]) -> int:
        return sum(answer != expected for answer, expected in zip(answers, self.expected))

    def answers(self, back: frozenset[str]) -> list[Answer]:
        """Returns the labels attached to each image, with some elements put back to ours."""
        outputs = self._run(back & BEFORE_GRAPH)
        tensors_only = self.twin.config.integer("network-type", 0) == TENSORS_ONLY
        if "outputs" in back or tensors_only:
            outputs = outputs[:1]
        if "scores" in back and not _are_probabilities(outputs[0]):
            outputs = [softmax(outputs[0]).astype(np.float32), *outputs[1:]]
        threshold = 0.0 if "threshold" in back or tensors_only else self.twin.config.number("classifier-threshold", 0.0)
        labels = (self.manifest.labels,) if "labels" in back or tensors_only else self.twin.labels
        found = (attributes([out[i] for out in outputs], threshold, labels) for i in range(len(self.frames)))
        return [tuple(attribute.label for attribute in each) for each in found]

    def _run(self, back: frozenset[str]) -> Sequence[npt.NDArray[Any]]:
        if back not in self._outputs:
            parts = [self.twin.run(np.stack(group)) for group in grouped(self._inputs(back), _AT_ONCE)]
            self._outputs[back] = [np.concatenate(values) for values in zip(*parts)]
        return self._outputs[back]

    def _inputs(self, back: frozenset[str]) -> Iterator[npt.NDArray[np.float32]]:
        spec, config = self.manifest.preprocess, self.twin.config
        reordered = (
            self.manifest.input_kind == "float" and spec.color_order == "bgr"
        )  # pixels are RGB, the graph reorders them
        wanted = "1" if reordered else "0"
        colours = config.changed(model_color_format=wanted) if "colour" in back else config
        swapped = colours.integer("model-color-format", 0) != int(wanted)
        for frame, ours in zip(self.frames, self.ours):
            pixels = self._pixels(frame, ours, back)
            if "scale" not in back:
                yield tensor(pixels, colours)
                continue
            pixels = pixels[..., ::-1] if swapped else pixels
            yield (
                spec.normalize(pixels)
                if self.manifest.input_kind == "float"
                else np.moveaxis(pixels, -1, 0).astype(np.float32)
            )

    def _pixels(self, frame: UInt8Image, ours: UInt8Image, back: frozenset[str]) -> UInt8Image:
        if back >= {"padding", "filter", "crop"}:
            return ours
        spec, config = self.manifest.preprocess, self.twin.config
        if "padding" in back:
            config = config.changed(maintain_aspect_ratio=None, symmetric_padding=None)
        box = _part(spec, frame) if "crop" in back else None
        return scaled(frame, self.twin.size, config, box, partial(_averaged, spec) if "filter" in back else None)


def _part(spec: PreprocessSpec, frame: UInt8Image) -> Box:
    """Returns left, top, width and height of the part of a frame that the preprocessing keeps."""
    rows, columns = spec.resized(frame)
    height, width = frame.shape[0] * spec.height / rows, frame.shape[1] * spec.width / columns
    return (frame.shape[1] - width) / 2, (frame.shape[0] - height) / 2, width, height


def _averaged(spec: PreprocessSpec, image: UInt8Image, rows: int, columns: int) -> UInt8Image:
    return replace(spec, height=rows, width=columns, resize="stretch", crop_ratio=1.0).geometry(image)


def _are_probabilities(values: npt.NDArray[Any]) -> bool:
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3))
