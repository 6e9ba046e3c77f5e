"""The whole chain on the built-in task: train, evaluate, quantize, export, build, verify, bench, predict, report."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXAMPLE = "gft-edge demo --out runs/demo"


@dataclass(frozen=True)
class Size:
    """How much of everything a demo does."""

    train_steps: int
    eval_images: int
    calibration_images: int
    verify_images: int
    bench_rounds: int
    pictures: int


NORMAL = Size(60, 800, 256, 320, 40, 12)
SMALL = Size(4, 96, 32, 32, 4, 12)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="new folder (runs/demo)")
    parser.add_argument("--small", action="store_true", help="every step with less of everything, to see that it works")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say
    from gft_edge.files import require_free, write_json
    from gft_edge.hardware.environment import machine, versions

    require_free(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    size = SMALL if args.small else NORMAL
    steps: list[dict[str, object]] = []
    started = time.monotonic()
    for title, command in _chain(args.out, size):
        line = shlex.join(["gft-edge", *command])
        say(f"demo: {title}: {line}")
        began = time.monotonic()
        try:
            _call(command)
        except KeyboardInterrupt:  # what the verb says of going on does not hold for a demo
            raise KeyboardInterrupt(f"in the step {title}; remove {args.out} before another try") from None
        steps.append({"title": title, "command": line, "seconds": time.monotonic() - began})
        record = {
            "small": args.small,
            "seconds": time.monotonic() - started,
            "steps": steps,
            "machine": machine(),
            "versions": versions(),
        }
        write_json(args.out / "run.json", record)
    _call(["report", str(args.out)])
    page = args.out / "report.html"
    seconds = time.monotonic() - started
    result(args, {"page": str(page), "seconds": seconds}, f"{page}: made in {seconds:.0f} s; open it in a browser")
    return 0


def _chain(out: Path, size: Size) -> Iterator[tuple[str, list[str]]]:
    """Titles and arguments of the steps, in order."""
    recipe = _write_recipe(out, size)
    checkpoint, quantized = str(out / "checkpoint"), str(out / "checkpoint-int8")
    images = ["--images", str(size.eval_images)]
    yield "train", ["train", "--config", str(recipe), "--out", checkpoint]
    yield "evaluate in PyTorch", ["evaluate", checkpoint, *images, "--out", str(out / "evaluate-torch.json")]
    calibration = ["--images", str(size.calibration_images)]
    yield "quantize", ["quantize", checkpoint, *calibration, "--out", quantized]
    artifacts = {
        "fp32-full": [checkpoint, "--budget", "full"],
        "fp32-pruned": [checkpoint],
        "int8-pruned": [quantized],
        "int8-maps": [quantized, "--maps", "compact"],
    }
    for name, source in artifacts.items():
        yield f"export {name}", ["export", *source, "--out", str(out / name)]
    for name in artifacts:
        yield f"build {name}", ["build", str(out / name), "--target", "rtx"]
    for name, source in artifacts.items():
        verify = ["--checkpoint", source[0], "--images", str(size.verify_images)]
        yield f"verify {name}", ["verify", str(out / name), *verify]
    measured = ["fp32-full", "fp32-pruned", "int8-pruned"]
    for name in measured:
        file = str(out / f"evaluate-{name}.json")
        yield f"evaluate {name}", ["evaluate", str(out / name), *images, "--out", file]
    paths = [str(out / name) for name in [*measured, "int8-maps"]]
    rounds = ["--rounds", str(size.bench_rounds)]
    yield "bench", ["bench", *paths, *rounds, "--out", str(out / "bench.json")]
    pictures = [str(path) for path in _write_pictures(out / "pictures", size.pictures)]
    predict = ["predict", str(out / "int8-maps"), *pictures, "--maps", str(out / "maps")]
    yield "predict", [*predict, "--out", str(out / "predictions.json")]


def _write_recipe(out: Path, size: Size) -> Path:
    """A short training from the built-in checkpoint: what took an hour is not repeated, but the model is trained on."""
    from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
    from gft_edge.files import write_json

    recipe = Recipe(
        ModelSection(preset="gft_typeface"),
        DataSection(name="typefaces", eval_images=min(size.eval_images, 320)),
        TrainSection(
            init="builtin",
            steps=size.train_steps,
            batch_size=40,
            lr=3e-5,
            min_lr=1e-6,
            warmup_steps=min(10, size.train_steps),
            label_smoothing=0.1,
            checkpoint_every=0,
            seed=11,
        ),
    )
    write_json(out / "recipe.json", recipe.to_json())
    return out / "recipe.json"


def _write_pictures(folder: Path, count: int) -> list[Path]:
    """Some test images as files, of which the demo's predictions are made."""
    from PIL import Image

    from gft_edge.data.typefaces import Typefaces
    from gft_edge.files import replacing

    images = Typefaces("test", count * 7)
    paths = []
    for number in range(count):
        pixels, label = images[number * 7]
        path = folder / f"{images.labels[label]}.png"
        with replacing(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
        paths.append(path)
    return paths


def _call(command: list[str]) -> None:
    """Runs another verb in this process, its result going to standard error.

    Raises:
        CheckFailed: the verb ended with another code than 0.
    """
    import sys

    from gft_edge.cli.main import run_verb
    from gft_edge.errors import CheckFailed

    with contextlib.redirect_stdout(sys.stderr):
        code = run_verb(command[0], command[1:])
    if code:
        raise CheckFailed(f"the step '{shlex.join(['gft-edge', *command])}' ended with code {code}")
