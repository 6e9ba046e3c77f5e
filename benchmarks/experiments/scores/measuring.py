"""What the classifier reads under every candidate in every setting, on the same images; kept batch by batch in a folder."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gft_edge.benchmarks.experiments.scores.candidates import Candidate
from gft_edge.benchmarks.experiments.scores.passes import Setting, full_pass, pruned_pass
from gft_edge.data.batches import batch_count, indexed_batches
from gft_edge.data.marks import marked_patches, marks_of
from gft_edge.data.sets import ImageSet, Subset
from gft_edge.files import canonical_json, replacing
from gft_edge.model.gft import FocalGFT
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent

BATCH = 16
Arrays = dict[str, npt.NDArray[Any]]
Compared = Callable[[Sequence[int], Tensor | None], list[Candidate]]
"""Returns the candidates for the images of a batch: their numbers, and which places hold their marks, (B, P)."""


@dataclass(frozen=True)
class Cache:
    """Arrays by name in a folder, each file with what it was computed from; after a change of that they are gone.

    Attributes:
        folder: where the files are.
        identity: model, data and sizes, plain JSON values. A change of the code is not seen: remove the folder then.
    """

    folder: Path
    identity: Mapping[str, Any]

    def get(self, name: str) -> Arrays:
        """Returns the arrays of a name; none where there are none, or of something else."""
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, zipfile.BadZipFile):
            return {}
        return arrays if str(arrays.pop("identity", "")) == canonical_json(self.identity) else {}

    def put(self, name: str, arrays: Arrays) -> None:
        """Keeps arrays under a name; raises OutputError if they cannot be written."""
        contents: dict[str, Any] = {"identity": np.array(canonical_json(self.identity)), **arrays}
        with replacing(self.folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **contents)


@dataclass(frozen=True)
class Features:
    """What the classifier reads, for every image.

    Attributes:
        labels: class numbers, (N,).
        full: with every patch, (N, C).
        pruned: by setting and candidate, one array (N, C) for each draw.
        recalls: by setting and candidate, share of the mark's patches that stay to the end, (draws, N); empty without marks.
        kinds: of the candidates, by name, in order.
    """

    labels: npt.NDArray[np.int64]
    full: npt.NDArray[np.float32]
    pruned: Mapping[Setting, Mapping[str, list[npt.NDArray[np.float32]]]]
    recalls: Mapping[Setting, Mapping[str, npt.NDArray[np.float64]]]
    kinds: Mapping[str, str]


def measure(
    model: FocalGFT,
    settings: Sequence[Setting],
    compared: Compared,
    images: ImageSet,
    spec: PreprocessSpec,
    cache: Cache,
    track: Track = silent,
) -> Features:
    """Runs every candidate in every setting; each image is read once, and what the cache has is not computed again.

    Args:
        model: focal, in eval mode.
        settings: blocks and budgets.
        compared: makes the candidates of a batch.
        images: with the model's class numbers.
        spec: preprocessing.
        cache: a file for each batch.
        track: shows progress, batch by batch.

    Raises:
        DataError: an image cannot be read.
        OutputError: the cache cannot be written.
    """
    mark = marks_of(images)
    parts: list[Arrays] = []
    kinds: dict[str, str] = {}
    starts = range(0, len(images), BATCH)
    for start in track(starts, "images", batch_count(len(images), BATCH)):
        indices = range(start, min(start + BATCH, len(images)))
        marked = None
        if mark is not None:
            masks = [marked_patches(mark(index), spec, model.config.grid) for index in indices]
            marked = torch.from_numpy(np.stack(masks))
        drawn = _drawn(compared(indices, marked))
        wanted = {
            _key(setting, candidate.name, draw): (setting, candidate)
            for setting in settings
            for draw, candidate in drawn
        }
        kinds.update({candidate.name: candidate.kind for _, candidate in drawn})
        arrays = cache.get(f"images-{start}-{indices.stop}")
        missing = {key: value for key, value in wanted.items() if key not in arrays}
        if missing or "full" not in arrays:
            _run(model, missing, Subset(images, tuple(indices)), spec, marked, arrays)
            cache.put(f"images-{start}-{indices.stop}", arrays)
        parts.append(arrays)
    common = [key for key in parts[0] if all(key in part for part in parts)]  # files may hold more, of other candidates
    joined = {key: np.concatenate([part[key] for part in parts]) for key in common}
    return _features(joined, settings, kinds, mark is not None)


def _run(
    model: FocalGFT,
    missing: Mapping[str, tuple[Setting, Candidate]],
    images: ImageSet,
    spec: PreprocessSpec,
    marked: Tensor | None,
    arrays: Arrays,
) -> None:
    """Computes the missing arrays of one batch."""
    blocks = sorted({setting.stages[0] for setting, _ in missing.values()})
    for _, pixels, labels in indexed_batches(images, spec, BATCH):
        with torch.no_grad():
            entries, full = full_pass(model, torch.from_numpy(pixels), blocks)
            arrays["labels"], arrays["full"] = labels, full.numpy()
            for key, (setting, candidate) in missing.items():
                tokens, positions = pruned_pass(model, entries[setting.stages[0]], setting, candidate)
                arrays[key] = tokens.numpy()
                if marked is not None:
                    arrays[f"recall {key}"] = recall(marked, positions)


def recall(marked: Tensor, positions: Tensor) -> npt.NDArray[np.float64]:
    """Returns the share of the marked places (B, P) that are among the positions (B, K), (B,); NaN for an image without marks."""
    kept = marked.gather(1, positions).sum(dim=1).double()
    shares: npt.NDArray[np.float64] = (kept / marked.sum(dim=1)).numpy()
    return shares


def _drawn(candidates: Sequence[Candidate]) -> list[tuple[int, Candidate]]:
    """Returns the candidates with the number of the draw among those of equal names."""
    seen: dict[str, int] = {}
    found = []
    for candidate in candidates:
        draw = seen[candidate.name] = seen.get(candidate.name, -1) + 1
        found.append((draw, candidate))
    return found


def _key(setting: Setting, name: str, draw: int) -> str:
    return f"{setting.id} {name} {draw}".replace("/", "-")


def _features(joined: Arrays, settings: Sequence[Setting], kinds: Mapping[str, str], has_marks: bool) -> Features:
    pruned: dict[Setting, dict[str, list[npt.NDArray[np.float32]]]] = {}
    recalls: dict[Setting, dict[str, npt.NDArray[np.float64]]] = {}
    for setting in settings:
        for name in kinds:
            keys: list[str] = []
            while _key(setting, name, len(keys)) in joined:
                keys.append(_key(setting, name, len(keys)))
            pruned.setdefault(setting, {})[name] = [joined[key] for key in keys]
            if has_marks:
                recalls.setdefault(setting, {})[name] = np.stack([joined[f"recall {key}"] for key in keys])
    return Features(joined["labels"], joined["full"], pruned, recalls, kinds)
