"""Images per second that the training data can be prepared at, and the share of a step's time that would be spent waiting.

For rendered typefaces and scenes and for a folder of JPEG files, which it makes, by the loader alone and through the training loop
with a model whose steps take no time. On a GPU the batches are copied to it and normalised there.

python -m gft_edge.benchmarks.experiments.data_speed runs/bench/data.json --workers 16
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gft_edge.benchmarks.measuring.protocol import conditions
from gft_edge.config.recipe import Augment, DataSection, ModelSection, Recipe, TrainSection
from gft_edge.data.datasets import open_images
from gft_edge.data.seeded import seeded_images
from gft_edge.data.training import BatchOptions, byte_batches, default_workers, training_batches
from gft_edge.errors import MissingExtraError, exit_code
from gft_edge.files import require_writable, write_json
from gft_edge.preprocess import PreprocessSpec
from gft_edge.train.log import LOG
from gft_edge.train.loop import train
from gft_edge.train.steps import Stepper

TYPEFACES, FOLDER, SCENES = "typefaces", "image folder", "scenes"
JPEG_ROWS, JPEG_COLUMNS = 375, 500


@dataclass(frozen=True)
class Sizes:
    """Extent of the measurement.

    Attributes:
        workers: processes that prepare images.
        batch: images in a batch.
        seconds: of each measurement, about.
        files: JPEG files of the folder.
        step_ms: lengths of a training step for which the waiting is computed.
    """

    workers: int
    batch: int = 64
    seconds: float = 8.0
    files: int = 64
    step_ms: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)


class NullStepper(Stepper):
    """Takes steps that do nothing."""

    def step(self, batches: Sequence[tuple[Tensor, Tensor]], number: int) -> Tensor:
        """Returns no loss, no right answer and the number of images."""
        count = sum(len(labels) for _, labels in batches)
        return torch.tensor([0.0, 0.0, count], dtype=torch.float64).to(batches[0][0].device, non_blocking=True)


def make_folder(root: Path, files: int) -> Path:
    """Writes JPEG files in two classes for training, and one of each for validation; returns the folder.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "report") from None
    pictures = seeded_images(files + 2, JPEG_ROWS, JPEG_COLUMNS)
    for number, pixels in enumerate(pictures):
        folder = root / ("train" if number < files else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
    return root


def core_speed(name: str, side: int, augment: Augment, sizes: Sizes) -> float:
    """Returns images per second of processor time, without workers; other load on the machine hardly matters to it."""
    images, options = open_images(name, "train", 1_000_000, side), BatchOptions(sizes.batch, 0, augment, 0)
    batches = byte_batches(images, PreprocessSpec(side, side), range(1_000_000), options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        next(batches)
        count, busy, started = 0, time.process_time(), time.perf_counter()
        while count == 0 or time.perf_counter() - started < sizes.seconds / 2:
            next(batches)
            count += 1
        return count * sizes.batch / (time.process_time() - busy)
    finally:
        torch.set_num_threads(threads)


def loader_speed(name: str, side: int, augment: Augment, sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Returns images per second of the loader, and milliseconds of this process's processor per batch."""
    images = open_images(name, "train", 1_000_000, side)
    options = BatchOptions(sizes.batch, 0, augment, sizes.workers, device)
    batches = training_batches(images, PreprocessSpec(side, side), range(1_000_000), options)
    for _ in range(2 * max(1, sizes.workers)):  # the workers start and open their fonts
        next(batches)
    return _timed(batches, sizes, device)


def _timed(batches: Iterator[tuple[Tensor, Tensor]], sizes: Sizes, device: torch.device) -> dict[str, float]:
    count, busy, started = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - started < sizes.seconds:
        next(batches)
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {"images_per_second": count * sizes.batch / seconds, "own_ms_per_batch": 1000 * busy / count}


def loop_speed(name: str, preset: str, augment: Augment, sizes: Sizes, expected: float) -> dict[str, float]:
    """Returns images per second through the training loop with steps that take no time.

    Args:
        name: data set.
        preset: model, which is built but not used.
        augment: kind of augmentation.
        sizes: extent of the measurement.
        expected: images per second, for the number of steps.
    """
    steps = max(16, round(sizes.seconds * expected / sizes.batch))
    settings = TrainSection(steps=steps, batch_size=sizes.batch, elastic=False, checkpoint_every=0)
    data = DataSection(name, 1_000_000, 2, augment, sizes.workers)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(Recipe(ModelSection(preset), data, settings), out, stepper=NullStepper)
        rows = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    first, last = rows[len(rows) // 4], rows[-1]  # the workers start in the first quarter
    return {"images_per_second": (last["step"] - first["step"]) * sizes.batch / (last["seconds"] - first["seconds"])}


def waiting(images_per_second: float, batch: int, step_ms: float) -> float:
    """Returns the share of its time that a training waits for data, for steps of a length without waiting."""
    batch_ms = 1000 * batch / images_per_second
    return max(0.0, 1 - step_ms / batch_ms)


def run(sizes: Sizes) -> dict[str, Any]:
    """Returns images per second, by data set, augmentation and way, and the waiting for each length of a step."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    results = []
    with tempfile.TemporaryDirectory() as root:
        folder = make_folder(Path(root), sizes.files)
        cases: tuple[tuple[str, str, str, int, Augment], ...] = (
            (TYPEFACES, "typefaces", "gft_typeface", 96, "none"),
            (FOLDER, str(folder), "gft_tiny", 224, "none"),
            (FOLDER, str(folder), "gft_tiny", 224, "modern"),
            (SCENES, "scenes", "gft_scenes", 192, "none"),
        )
        for label, name, preset, side, augment in cases:
            core = core_speed(name, side, augment, sizes)
            loader = loader_speed(name, side, augment, sizes, device)
            loop = loop_speed(name, preset, augment, sizes, loader["images_per_second"])
            for way, found in (("loader", loader), ("training loop", loop)):
                rate = found["images_per_second"]
                results.append(
                    {
                        "data": label,
                        "augment": augment,
                        "way": way,
                        **found,
                        "images_per_second_and_worker": rate / max(1, sizes.workers),
                        "images_per_second_of_a_core": core,
                        "waiting": {f"{ms:g}": waiting(rate, sizes.batch, ms) for ms in sizes.step_ms},
                    }
                )
    return {
        "machine": conditions(),
        "device": str(device),
        "workers": sizes.workers,
        "batch": sizes.batch,
        "results": results,
    }


def summary(data: dict[str, Any]) -> str:
    """Returns the results as lines of text."""
    lines = [f"{data['workers']} workers, batches of {data['batch']}, {data['device']}"]
    for row in data["results"]:
        waits = ", ".join(f"{share:.0%} of a step of {ms} ms" for ms, share in row["waiting"].items())
        lines.append(
            f"{row['data']}, augment {row['augment']}, {row['way']}: {row['images_per_second']:.0f} images/s, "
            f"{row['images_per_second_and_worker']:.0f} per worker, {row['images_per_second_of_a_core']:.0f} per second of a "
            f"processor; waits {waits}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the JSON file and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="figures as JSON")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that prepare images; default: as on a GPU")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images in a batch; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=8.0, metavar="S", help="of a measurement; default: %(default)s"
    )
    parser.add_argument(
        "--step-ms",
        type=float,
        nargs="+",
        default=Sizes.step_ms,
        metavar="T",
        help="lengths of a step; default: 5 to 40",
    )
    args = parser.parse_args(arguments)
    workers = default_workers(torch.device("cuda")) if args.workers is None else args.workers
    if workers < 0 or args.batch < 1 or args.seconds <= 0 or min(args.step_ms) <= 0:
        parser.error("--workers must be at least 0, --batch at least 1, --seconds and --step-ms above 0")
    require_writable(args.out)
    data = run(Sizes(workers, args.batch, args.seconds, step_ms=tuple(args.step_ms)))
    print(summary(data))
    write_json(args.out, data)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
