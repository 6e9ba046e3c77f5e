"""Top-1 disagreement of every runtime of this machine, on the built-in task, with the reason of each flip.

python -m gft_edge.benchmarks.experiments.runtimes runs/runtimes --page benchmarks/RUNTIMES.md

The built-in checkpoint is exported with every kind of input and output, and the same pixels go through PyTorch and through every
graph. A flip is an image whose class differs from PyTorch's. It is explained by rounding if the margin of PyTorch's first class is
at most twice the largest difference of a logit over the images whose class and patches agree; or by a tie if the first stage that
keeps other patches had scores that are equal up to float noise at its boundary. Run again with the same folder, it continues.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.experiments.markdown import render, show, table, verdict
from gft_edge.bundle import load_bundle
from gft_edge.checkpoint import BUILTIN, Checkpoint, load_checkpoint
from gft_edge.cli.console import say, track
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.data.sets import Subset
from gft_edge.errors import exit_code
from gft_edge.export.deploy.bundling import make_bundle
from gft_edge.export.deploy.deepstream.nvinfer_compare import configurations
from gft_edge.export.deploy.deepstream.nvinfer_twin import open_twin, scaled, tensor
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.export.onnx.artifact import export_artifact, save_npz
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.reference import reference_outputs
from gft_edge.files import require_writable_folder, write_json
from gft_edge.hardware.environment import machine
from gft_edge.manifest import LOGITS, MODEL, Artifact, load_artifact
from gft_edge.runtime.backends.graph_io import to_graph_input, with_logits
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.stats.agreement import Arrays, stage_agreement

IMAGES, SUBSET, LIMIT = 2000, 4, 0.001
"""Images; those of each batch that ONNX's reference evaluator runs; largest share of flips."""
BATCH = 64
REFERENCE = "PyTorch"
KINDS = {
    "float": GraphOptions("compact"),
    "uint8": GraphOptions("compact", input="uint8"),
    "float255": GraphOptions("compact", input="float255"),
    "probabilities": GraphOptions("compact", input="float255", probabilities=True),
}
"""Exports by name."""
Runner = Callable[[npt.NDArray[np.float32]], Arrays]
"""Preprocessed images (B, 3, H, W) to logits (B, classes) and ``kept_i`` (B, k_i)."""


@dataclass(frozen=True)
class Flip:
    """An image whose class differs from PyTorch's.

    Attributes:
        image: number of it.
        margin: of PyTorch's first class to its second, in logits.
        difference: largest one of a logit of this image, less the mean of the row: a softmax does not see it.
        cause: ``"rounding"``, ``"tie"`` or ``""``.
    """

    image: int
    margin: float
    difference: float
    cause: str


@dataclass(frozen=True)
class Agreement:
    """One runtime against PyTorch on the same images.

    Attributes:
        noise: largest difference of a logit over images whose class and patches agree.
        other_patches: images that keep another patch in some stage.
        ties: of these, images whose first other patch is a tie.
    """

    images: int
    noise: float
    other_patches: int
    ties: int
    flips: tuple[Flip, ...]

    @property
    def share(self) -> float:
        """Share of flips."""
        return len(self.flips) / self.images

    @property
    def passed(self) -> bool:
        """True if flips are few and each is explained."""
        return self.share <= LIMIT and all(flip.cause for flip in self.flips)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            **{name: value for name, value in vars(self).items() if name != "flips"},
            "share": self.share,
            "passed": self.passed,
            "flips": [vars(flip) for flip in self.flips],
        }


def agreement(reference: Arrays, candidate: Arrays) -> Agreement:
    """Compares a runtime with PyTorch.

    Args:
        reference: ``logits`` (B, classes), ``kept_i`` (B, k_i) and ``scores_i`` (B, N_i).
        candidate: ``logits`` and ``kept_i``.
    """
    ours, theirs = (side[LOGITS].astype(np.float64) for side in (reference, candidate))
    differences = ours - theirs
    differences = np.abs(differences - differences.mean(axis=1, keepdims=True)).max(axis=1)
    causes = [_first_other_patch(reference, candidate, row) for row in range(len(ours))]
    other = np.array([tie is not None for tie in causes])
    flipped = ours.argmax(axis=1) != theirs.argmax(axis=1)
    noise = float(differences[~other & ~flipped].max(initial=0))
    margins = _margins(ours)

    def cause(row: int) -> str:
        if other[row]:
            return "tie" if causes[row] else ""
        return "rounding" if margins[row] <= 2 * noise else ""

    flips = [
        Flip(row, float(margins[row]), float(differences[row]), cause(row)) for row in np.flatnonzero(flipped).tolist()
    ]
    return Agreement(len(ours), noise, int(other.sum()), sum(map(bool, causes)), tuple(flips))


def _margins(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the largest logit of each row less the second, (B,)."""
    two = np.sort(logits, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def _first_other_patch(reference: Arrays, candidate: Arrays, row: int) -> bool | None:
    """Returns whether the first stage of an image that keeps other patches is a tie; None if every stage keeps the same."""
    ours, theirs = ({name: values[row : row + 1] for name, values in side.items()} for side in (reference, candidate))
    entering: npt.NDArray[Any] = np.arange(reference["scores_0"].shape[1])[None]
    for stage in range(sum(name.startswith("kept_") for name in reference)):
        name = f"kept_{stage}"
        if not np.array_equal(np.sort(ours[name]), np.sort(theirs[name])):
            return stage_agreement(ours, theirs, stage, entering).ties == 1
        entering = ours[name]
    return None


def artifacts(checkpoint: Checkpoint, folder: Path) -> dict[str, Artifact]:
    """Exports what is missing, or opens it: one artefact for each of ``KINDS``."""
    side = checkpoint.info.model.image_size
    golden = np.zeros((1, 3, side, side), np.float32)
    found = {}
    for name, options in KINDS.items():
        if not (folder / name).is_dir():
            say(f"runtimes: exporting {name}")
            export_artifact(checkpoint, folder / name, golden, options=options)
        found[name] = load_artifact(folder / name)
    return found


def runners(checkpoint: Checkpoint, exported: Mapping[str, Artifact], out: Path) -> dict[str, Runner]:
    """Returns every runtime by name, PyTorch first; the bundle for DeepStream is made where it is missing."""
    found: dict[str, Runner] = {
        REFERENCE: lambda images: reference_outputs(checkpoint.model, images, checkpoint.info.model.budget)
    }
    for name, artifact in exported.items():
        found[f"ONNX Runtime, {name}"] = open_session(artifact, threads=1)
    for name in ("float", "probabilities"):
        found[f"ONNX Runtime without optimisation, {name}"] = _plain_onnxruntime(exported[name])
    found["nvinfer's twin on a bundle, probabilities"] = _deepstream(exported["probabilities"], out / "deepstream")
    return {**found, "ONNX reference evaluator, float": _reference_evaluator(exported["float"])}


def _plain_onnxruntime(artifact: Artifact) -> Runner:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(artifact.file(MODEL)), options, providers=["CPUExecutionProvider"])
    return functools.partial(_run, artifact, session.run)


def _reference_evaluator(artifact: Artifact) -> Runner:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):  # type: ignore[misc]
        """As in the specification: ONNX's own raises for more than 64 rows (numpy.choose, onnx 1.23.2)."""

        def _run(self, data: Any, indices: Any, axis: int = 0) -> tuple[npt.NDArray[Any]]:
            return (np.take_along_axis(data, indices, axis=axis),)

    evaluator = ReferenceEvaluator(str(artifact.file(MODEL)), new_ops=[GatherElements])
    return lambda images: _run(artifact, evaluator.run, images[:SUBSET])


def _deepstream(artifact: Artifact, folder: Path) -> Runner:
    """Runs the pixels through the configuration of a bundle: its resize, which changes nothing here, scale, offsets and graph."""
    if not folder.is_dir():
        make_bundle(artifact, folder, BundleOptions("deepstream"))
    twin = open_twin(configurations(load_bundle(folder))[0])

    def run(images: npt.NDArray[np.float32]) -> Arrays:
        frames = artifact.manifest.preprocess.pixels(images)
        inputs = np.stack([tensor(scaled(frame, twin.size, twin.config), twin.config) for frame in frames])
        return with_logits(dict(zip(twin.outputs, twin.run(inputs))))

    return run


def _run(artifact: Artifact, run: Callable[..., Any], images: npt.NDArray[np.float32]) -> Arrays:
    manifest = artifact.manifest
    values = run(None, {manifest.inputs[0].name: to_graph_input(images, manifest)})
    return with_logits(dict(zip([output.name for output in manifest.outputs], values)))


def run(out: Path, num_images: int = IMAGES) -> dict[str, Any]:
    """Runs what is missing; returns every comparison as plain JSON values."""
    checkpoint = load_checkpoint(BUILTIN)
    info = checkpoint.info
    calls = runners(checkpoint, artifacts(checkpoint, out / "artifacts"), out)
    images = open_images(info.data, "test", num_images, info.model.image_size)
    batches = batch_count(len(images), BATCH)
    (out / "parts").mkdir(exist_ok=True)
    missing = [number for number in range(batches) if not _part(out, number).is_file()]
    for number in track(missing, "runtimes", len(missing)):
        indices = tuple(range(number * BATCH, min((number + 1) * BATCH, len(images))))
        ((pixels, labels),) = evaluation_batches(Subset(images, indices), info.preprocess, BATCH)
        save_npz(_part(out, number), {"labels": labels, **_all_outputs(calls.values(), pixels)})
    parts: list[Arrays] = [dict(np.load(_part(out, number))) for number in range(batches)]
    reference = _joined(parts, 0)
    subset = np.concatenate([np.arange(len(part["labels"])) < SUBSET for part in parts])
    of_subset = {key: values[subset] for key, values in reference.items()}
    rows: list[dict[str, Any]] = []
    for runtime, name in list(enumerate(calls))[1:]:
        found = _joined(parts, runtime)
        against = reference if len(found[LOGITS]) == len(images) else of_subset
        rows.append({"runtime": name, **agreement(against, found).to_json()})
    right = reference[LOGITS].argmax(axis=1) == np.concatenate([part["labels"] for part in parts])
    return {
        "images": len(images),
        "top1": float(right.mean()),
        "smallest_margin": float(_margins(reference[LOGITS]).min()),
        "machine": machine(),
        "rows": rows,
    }


def _all_outputs(calls: Iterable[Runner], pixels: npt.NDArray[np.float32]) -> Arrays:
    """Returns what is compared of every runtime, by its number and name."""
    arrays: Arrays = {}
    for runtime, call in enumerate(calls):
        outputs = call(pixels)
        names = [name for name in outputs if name == LOGITS or name.startswith(("kept_", "scores_"))]
        arrays |= {f"{runtime}/{name}": outputs[name] for name in names}
    return arrays


def _part(out: Path, number: int) -> Path:
    return out / "parts" / f"{number:03}.npz"


def _joined(parts: Sequence[Arrays], runtime: int) -> Arrays:
    """Returns the outputs of a runtime on all images, by name."""
    prefix = f"{runtime}/"
    names = [key for key in parts[0] if key.startswith(prefix)]
    return {key.removeprefix(prefix): np.concatenate([part[key] for part in parts]) for key in names}


def page(data: Mapping[str, Any]) -> str:
    """Returns the figures as Markdown."""
    rows, flips = [], []
    for row in data["rows"]:
        share = f"{len(row['flips'])} ({row['share']:.3%})"
        others = f"{row['other_patches']} ({row['ties']} ties)" if row["other_patches"] else "0"
        rows.append([row["runtime"], row["images"], share, f"{row['noise']:.1e}", others, verdict(row["passed"])])
        flips += [
            [
                row["runtime"],
                f["image"],
                f"{f['margin']:.1e}",
                f"{f['difference']:.1e}",
                f["cause"] or "**not explained**",
            ]
            for f in row["flips"]
        ]
    return render(
        Path(__file__).with_name("runtimes.md.j2"),
        table=table(["runtime", "images", "flips", "noise of a logit", "other patches", ""], rows),
        flips=table(["runtime", "image", "margin", "difference", "cause"], flips) if flips else "There is no flip.",
        images=data["images"],
        top1=f"{data['top1']:.2%}",
        limit=f"{LIMIT:.1%}",
        subset=SUBSET,
        batch=BATCH,
        cpu=data["machine"]["cpu"]["model"],
        smallest=f"{data['smallest_margin']:.1e}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes runtimes.json and the page; exit code 1 if a runtime disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"test images ({IMAGES})")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown page")
    args = parser.parse_args(arguments)
    require_writable_folder(args.out)
    data = run(args.out, args.images)
    write_json(args.out / "runtimes.json", data)
    show(page(data), args.page)
    return 0 if all(row["passed"] for row in data["rows"]) else 1


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
