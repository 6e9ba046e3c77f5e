"""Stored answers: a teacher's best classes for every image of a training, in one file; the teacher then never runs again.

Order and augmentation of the images depend on seed and number alone, so an answer belongs to the number of its image in the
training (TinyViT; Wu et al., 2022, arXiv 2207.10666). The file is a safetensors file of fixed size. Its header has the identity of
everything that an answer depends on: data, augmentation with its seed, pixels and teacher. A training fills in what is missing.

    checks   (batches,) uint32: CRC-32 of the batch's classes and logs, 0 for a batch without answers
    classes  (images, K) uint16: the most probable classes, in that order
    logs     (images, K) float16: the logarithms of their probabilities

Nothing has to be written in order: a batch counts if its check is right, so a crash costs only the last batches.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gft_edge.config.recipe import Recipe, TrainSection
from gft_edge.data.sets import ImageSet, spread
from gft_edge.data.splits import content_key
from gft_edge.data.trained import samples_of
from gft_edge.errors import ArtifactError, CheckFailed, ConfigError
from gft_edge.files import replacing
from gft_edge.preprocess import PreprocessSpec

ANSWERS = "answers.safetensors"
SCHEMA = 1
KEY = "gft_edge_answers"
"""Of the header's metadata."""
PROBES = 8
"""Rendered images whose pixels identify the data."""
MOST_HEADER = 1 << 20
LEAST_LOG = -60000.0
"""Within float16."""


@dataclass
class StoredAnswers:
    """An open file of answers.

    Attributes:
        path: of the file.
        size: images in a batch.
        classes: of the task.
        arrays: ``checks``, ``classes`` and ``logs``, mapped from the file.
    """

    path: Path
    size: int
    classes: int
    arrays: dict[str, npt.NDArray[Any]]

    @property
    def batches(self) -> int:
        """Number of batches of the training."""
        return len(self.arrays["checks"])

    @property
    def done(self) -> int:
        """Number of batches with answers."""
        return int(np.count_nonzero(self.arrays["checks"]))

    def read(self, batch: int, device: torch.device) -> Tensor | None:
        """Returns the log-probabilities of a batch, (B, classes) float32; None where there are none or they are damaged."""
        rows = slice(batch * self.size, (batch + 1) * self.size)
        numbers, logs = self.arrays["classes"][rows], self.arrays["logs"][rows]
        if not self.arrays["checks"][batch] or self.arrays["checks"][batch] != _check(numbers, logs):
            return None
        return unpacked(numbers, logs, self.classes).to(device)

    def write(self, batch: int, logits: Tensor) -> None:
        """Stores the answers of a batch from logits (B, classes).

        Raises:
            CheckFailed: they are NaN or infinite.
        """
        if not bool(torch.isfinite(logits).all()):
            raise CheckFailed(f"teacher: its logits of batch {batch} are NaN or infinite")
        numbers, logs = packed(logits, self.arrays["classes"].shape[1])
        rows = slice(batch * self.size, (batch + 1) * self.size)
        self.arrays["classes"][rows], self.arrays["logs"][rows] = numbers, logs
        self.arrays["checks"][batch] = _check(numbers, logs)

    def flush(self) -> None:
        """Writes the file's pages to disk."""
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()


def _check(numbers: npt.NDArray[Any], logs: npt.NDArray[Any]) -> int:
    return max(1, zlib.crc32(logs.tobytes(), zlib.crc32(numbers.tobytes())))


def packed(logits: Tensor, top_k: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float16]]:
    """Returns the K most probable classes and the logarithms of their probabilities, (B, K) each, of logits (B, classes)."""
    logs, numbers = logits.detach().float().log_softmax(dim=1).topk(top_k, dim=1)
    return numbers.cpu().numpy().astype(np.uint16), logs.clamp_min(LEAST_LOG).cpu().numpy().astype(np.float16)


def unpacked(numbers: npt.NDArray[np.uint16], logs: npt.NDArray[np.float16], classes: int) -> Tensor:
    """Returns log-probabilities (B, classes) float32: those of the K classes, and the rest spread evenly over the others."""
    known = torch.from_numpy(logs.astype(np.float32))
    left = classes - known.shape[1]
    if left:
        rest = (1 - known.exp().sum(dim=1, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny * left) / left
        found = rest.log().expand(-1, classes).contiguous()
    else:
        found = torch.empty(len(known), classes)
    found.scatter_(1, torch.from_numpy(numbers.astype(np.int64)), known)
    return found.log_softmax(dim=1)


def answers_identity(recipe: Recipe, images: ImageSet, spec: PreprocessSpec, teacher: str) -> dict[str, Any]:
    """Returns everything that the answers of a training depend on, in groups whose names are for messages.

    Args:
        recipe: of the training.
        images: of the training.
        spec: preprocessing of the student.
        teacher: hash of its checkpoint.
    """
    data, train = recipe.data, recipe.train
    return {
        "schema": SCHEMA,
        "teacher": {"sha256": teacher},
        # Before the data: another seed also draws other rendered images, and the seed is what a user can change.
        "augmentation": {
            "augment": data.augment,
            "mixup": train.mixup,
            "cutmix": train.cutmix,
            "seed": train.seed,
            "curriculum": [list(phase) for phase in data.curriculum],
        },
        "data": {"name": data.name, "images": len(images), "labels": list(images.labels), "sha256": data_hash(images)},
        "training": {"steps": train.steps, "batch_size": train.batch_size, "accumulate": train.accumulate},
        "pixels": spec.to_json(),
        "precision": {"precision": train.precision},
    }


def data_hash(images: ImageSet) -> str:
    """Returns the sha256 of the content keys and classes of all files in their order, or of some rendered images."""
    digest = hashlib.sha256()
    samples = samples_of(images)
    if samples is not None:
        for path, label in samples:
            digest.update(content_key(path) + label.to_bytes(4, "little"))
        return digest.hexdigest()
    for index in spread(len(images), min(PROBES, len(images))):
        pixels, label = images[index]
        digest.update(pixels.tobytes() + label.to_bytes(4, "little"))
    return digest.hexdigest()


def open_answers(file: Path, identity: dict[str, Any], train: TrainSection, classes: int, top_k: int) -> StoredAnswers:
    """Opens the answers of a training, or creates a file without any.

    Args:
        file: ends in .safetensors by custom.
        identity: see :func:`answers_identity`.
        train: has steps and batch sizes.
        classes: of the task.
        top_k: classes of an image that are stored; all, if there are fewer.

    Raises:
        ConfigError: the file belongs to other data, augmentation, pixels or another teacher, or cannot be written.
        ArtifactError: it is no file of answers, or is cut off.
    """
    kept, batches = min(top_k, classes), train.steps * train.accumulate
    identity = {**identity, "answers": {"top_k": kept}}
    layout: dict[str, tuple[tuple[int, ...], np.dtype[Any], str]] = {
        "checks": ((batches,), np.dtype("<u4"), "U32"),
        "classes": ((batches * train.batch_size, kept), np.dtype("<u2"), "U16"),
        "logs": ((batches * train.batch_size, kept), np.dtype("<f2"), "F16"),
    }
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(identity, sort_keys=True)}}
    offset = 0
    for name, (shape, dtype, code) in layout.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    if not file.exists():
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with replacing(file) as temporary, temporary.open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.truncate(8 + len(text) + offset)
    start, found = _read_header(file)
    _require_same(file, found, identity)
    if {name: entry for name, entry in found.items() if name != "__metadata__"} != {
        name: entry for name, entry in header.items() if name != "__metadata__"
    } or file.stat().st_size != start + offset:
        raise ArtifactError(f"answers {file}: damaged or cut off; remove it, and the teacher answers again")
    try:
        arrays = {
            name: np.memmap(file, dtype, "r+", start + header[name]["data_offsets"][0], shape)
            for name, (shape, dtype, _) in layout.items()
        }
    except OSError as error:
        raise ConfigError(f"answers {file}: cannot be opened for writing ({error.strerror or error})") from None
    return StoredAnswers(file, train.batch_size, classes, dict(arrays))


def _read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Returns the offset of the data and the header of a safetensors file."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if length <= MOST_HEADER else None
    except OSError as error:
        raise ArtifactError(f"answers {file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or KEY not in (header.get("__metadata__") or {}):
        raise ArtifactError(f"answers {file}: is no file of stored answers; give another answers_file")
    return 8 + length, header


def _require_same(file: Path, header: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuses answers that belong to something else; the message has the first value that differs."""
    try:
        then = json.loads(header["__metadata__"][KEY])
        for group, now in identity.items():
            if then.get(group) == now:
                continue
            if not isinstance(now, dict):
                raise ArtifactError(f"answers {file}: schema {then.get(group)!r}, this version reads {now}")
            key = next(key for key in now if then[group].get(key) != now[key])
            raise ConfigError(
                f"answers {file}: are of another {group}: {key} is {_short(now[key])}, was {_short(then[group].get(key))}; give "
                "another distill.answers_file, or remove this file"
            )
    except (ValueError, TypeError, AttributeError, KeyError, StopIteration, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ArtifactError(f"answers {file}: damaged header; remove it, and the teacher answers again") from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."
