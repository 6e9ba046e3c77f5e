"""Find the ranges of activations on images that are not those of the evaluation, and how many images that needs.

Of a checkpoint: ranges.json for quantize --ranges. Of an FP32 artefact: ranges of its graph's linear layers and TensorRT
calibration caches (8.x to 10.x), in its calibration folder and manifest.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import add_data_arguments, is_artifact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import numpy.typing as npt

    from gft_edge.calibration.images import CalibrationSet, Features
    from gft_edge.calibration.observe import Collector
    from gft_edge.calibration.ranges import Ranges
    from gft_edge.data.datasets import ImageSet
    from gft_edge.preprocess import PreprocessSpec

EXAMPLE = "gft-edge calibrate builtin --images 256 --method entropy --out runs/ranges"
BATCH = 16
SAVE_EVERY = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "model", metavar="CKPT|ARTIFACT", help="full-precision checkpoint folder, 'builtin', or artefact"
    )
    add_calibration_arguments(parser)
    parser.add_argument(
        "--attention", action="store_true", help="of a checkpoint: also queries, keys, values, for quantize --attention"
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="keep what was counted so far here, and go on from it"
    )
    parser.add_argument(
        "--tensorrt", default="8.6.1,10.3.0", metavar="V,...", help="versions to write caches for (8.6.1,10.3.0)"
    )
    parser.add_argument(
        "--calibrator",
        choices=("entropy2", "minmax"),
        default="entropy2",
        help="TensorRT class that will read the caches, whatever the method; trtexec's is entropy2 (entropy2)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder (an artefact's own calibration folder)")


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """``--data``, ``--images``, ``--split`` and how images and ranges are chosen."""
    add_data_arguments(parser, images=256, split="train")
    parser.add_argument(
        "--method", choices=("max", "percentile", "entropy", "mse"), default="max", help="how ranges are found (max)"
    )
    parser.add_argument(
        "--percentile", type=float, default=99.99, metavar="P", help="for --method percentile, in per cent (99.99)"
    )
    parser.add_argument(
        "--choose",
        choices=("balanced", "random", "coverage"),
        default="balanced",
        help="images: balanced over classes, random, or so that no image is far from a chosen one (balanced)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice (0)")
    parser.add_argument(
        "--against",
        metavar="D",
        help="evaluation data whose test images (val where there are none) these must not be (--data)",
    )
    parser.add_argument("--force", action="store_true", help="go on although images are of the evaluation")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    return _of_artifact(args) if is_artifact(args.model) else _of_checkpoint(args)


def _of_checkpoint(args: argparse.Namespace) -> int:
    from gft_edge.calibration.images import model_features
    from gft_edge.calibration.observe import Collector, observe
    from gft_edge.calibration.ranges import Ranges
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.common import settle_data
    from gft_edge.errors import ConfigError
    from gft_edge.files import new_folder, require_free
    from gft_edge.quant.attention import MEASURED_PARTS, attention_names
    from gft_edge.quant.modules import quantized_names
    from gft_edge.quant.policy import DEFAULT_POLICY

    checkpoint = load_checkpoint(args.model)
    info = checkpoint.info
    if info.quantization is not None:
        raise ConfigError(f"checkpoint {checkpoint.path} is quantized already; give the full-precision one")
    if args.out is None:
        raise ConfigError("calibrate: a checkpoint needs --out DIR")
    settle_data(args, info, f"checkpoint {checkpoint.path}")
    spec = info.preprocess
    names = quantized_names(checkpoint.model, DEFAULT_POLICY)
    if args.attention:
        names += [f"{name}.{part}" for name in attention_names(checkpoint.model) for part in MEASURED_PARTS]
    require_free(args.out)
    card, images = chosen_images(args, spec, info.labels, lambda: model_features(checkpoint.model, spec))
    collector = Collector(names, args.method, args.percentile)
    gather(args, collector, images, spec, checkpoint.sha256, card, lambda b: observe(checkpoint.model, collector, b))
    ranges = Ranges.of(collector, "module inputs", checkpoint.sha256, card.id, spec.id)
    with _told_all_the_same(args, args.out, card, ranges), new_folder(args.out) as folder:
        write_calibration(folder, card, ranges)
    return _tell(args, args.out, card, ranges, [])


def _of_artifact(args: argparse.Namespace) -> int:
    from gft_edge.calibration.cache import CalibrationCache, encode_version, write_cache
    from gft_edge.calibration.graph import graph_features, linear_tensors, load_graph, observe_graph
    from gft_edge.calibration.observe import Collector
    from gft_edge.calibration.ranges import Ranges
    from gft_edge.cli.common import settle_data
    from gft_edge.errors import ConfigError
    from gft_edge.files import new_folder, require_free, require_writable_folder
    from gft_edge.locks import locked
    from gft_edge.manifest import MODEL, load_artifact, register_files

    if args.attention:
        raise ConfigError("calibrate: --attention is for checkpoints; calibration caches leave attention in FP16")
    artifact = load_artifact(Path(args.model))
    manifest = artifact.manifest
    settle_data(args, manifest, f"artefact {artifact.path}")
    algorithm = {"entropy2": "EntropyCalibration2", "minmax": "MinMaxCalibration"}[args.calibrator]
    versions = [version.strip() for version in args.tensorrt.split(",") if version.strip()]
    for version in versions:
        encode_version(version)
    out = args.out or artifact.path / "calibration"
    (require_writable_folder if args.out is None else require_free)(out)
    graph, spec, size = load_graph(artifact), manifest.preprocess, manifest.model.image_size
    collector = Collector(linear_tensors(graph), args.method, args.percentile)
    card, images = chosen_images(args, spec, manifest.labels, lambda: graph_features(graph, spec))
    model = manifest.files[MODEL].sha256
    gather(args, collector, images, spec, model, card, lambda b: observe_graph(graph, size, collector, b))
    ranges = Ranges.of(collector, "graph tensors", model, card.id, spec.id)

    def write(folder: Path) -> list[str]:
        names = write_calibration(folder, card, ranges)
        for version in versions:
            name = f"tensorrt-{version}-{args.calibrator}.cache"
            write_cache(folder / name, CalibrationCache.of_ranges(ranges, version, algorithm), ranges)
            names += [name, f"{name}.json"]
        return names

    with _told_all_the_same(args, out, card, ranges):
        if args.out is not None:
            with new_folder(out) as folder:
                names = write(folder)
        else:
            with locked(artifact.path):
                names = write(out)
                register_files(artifact, [f"calibration/{name}" for name in names])
    return _tell(args, out, card, ranges, names)


def chosen_images(
    args: argparse.Namespace, spec: PreprocessSpec, labels: tuple[str, ...], features: Callable[[], Features]
) -> tuple[CalibrationSet, ImageSet]:
    """The calibration set that the arguments ask for."""
    from gft_edge.calibration.images import choose_images
    from gft_edge.cli.common import say_notes

    card, images = choose_images(
        args.data,
        args.split,
        args.images,
        spec,
        labels,
        args.choose,
        args.seed,
        args.against,
        features() if args.choose == "coverage" else None,
        args.force,
    )
    say_notes(images)
    return card, images


def gather(
    args: argparse.Namespace,
    collector: Collector,
    images: ImageSet,
    spec: PreprocessSpec,
    model_sha256: str,
    card: CalibrationSet,
    observe: Callable[[Iterable[npt.NDArray[np.float32]]], Iterator[int]],
) -> None:
    """Runs the images, with progress; goes on from and keeps ``--state`` where it is given."""
    from gft_edge.cli.console import track
    from gft_edge.data.batches import evaluation_batches
    from gft_edge.data.datasets import Subset

    state: Path | None = getattr(args, "state", None)
    identity = {"model": model_sha256, "calibration set": card.id}
    if state is not None and state.exists():
        collector.restore(state, identity)
    left = Subset(images, tuple(range(collector.images, len(images))))
    batches = (batch for batch, _ in evaluation_batches(left, spec, BATCH))
    for number, _ in enumerate(track(observe(batches), "calibrate", -(-len(left) // BATCH)), start=1):
        if state is not None and number % SAVE_EVERY == 0:
            collector.save(state, identity)
    if state is not None:
        collector.save(state, identity)


def write_calibration(folder: Path, card: CalibrationSet | None, ranges: Ranges) -> list[str]:
    """Writes card.json (where the images are known), ranges.json and convergence.svg; returns their names."""
    from gft_edge.files import replacing
    from gft_edge.seals import write_sealed

    ranges.write(folder / "ranges.json")
    names = ["ranges.json"]
    if card is not None:
        write_sealed(folder / "card.json", {**card.to_json(), "id": card.id})
        names.append("card.json")
    if ranges.convergence is not None:
        from gft_edge.report.figures.plots import convergence

        curve = ranges.convergence
        with replacing(folder / "convergence.svg") as temporary:
            temporary.write_text(convergence(curve.images, curve.ranges, curve.images_needed), encoding="utf-8")
        names.append("convergence.svg")
    return names


def describe_ranges(ranges: Ranges) -> str:
    """What people should know of ranges: how many images suffice, and tensors that are dead or constant."""
    lines = []
    curve = ranges.convergence
    if curve is not None and curve.settled:
        lines.append(f"ranges change by less than 1 % after {curve.images_needed} of {ranges.images} images")
    elif curve is not None:
        late = max(curve.settled_after, key=lambda name: curve.settled_after[name])
        lines.append(
            f"ranges still changed by more than 1 % after half of the {ranges.images} images, last that of {late}; "
            f"more images may change them"
        )
    if ranges.dead:
        lines.append(f"always zero: {', '.join(ranges.dead)}")
    elif ranges.constant:
        lines.append(f"always of one magnitude: {', '.join(ranges.constant)}")
    return "\n".join(lines)


@contextlib.contextmanager
def _told_all_the_same(args: argparse.Namespace, out: Path, card: CalibrationSet, ranges: Ranges) -> Iterator[None]:
    """Prints the ranges, which took long to find, when the block cannot write them."""
    from gft_edge.errors import OutputError

    try:
        yield
    except OutputError:
        _tell(args, out, card, ranges, [])
        raise


def _tell(args: argparse.Namespace, out: Path, card: CalibrationSet, ranges: Ranges, names: list[str]) -> int:
    from gft_edge.cli.console import result, table

    rows = [(name, f"{value:.4g}") for name, value in ranges.values.items()]
    caches = [str(out / name) for name in names if name.endswith(".cache")]
    data: dict[str, Any] = {"out": str(out), "card": card.to_json(), "ranges": ranges.to_json(), "caches": caches}
    text = f"{out}: ranges of {len(rows)} tensors by {ranges.method}\n{card.describe()}\n{describe_ranges(ranges)}\n"
    if caches:
        text += f"TensorRT caches (not read by a TensorRT yet): {', '.join(caches)}\n"
    result(args, data, text + table(("tensor", "range"), rows))
    return 0
