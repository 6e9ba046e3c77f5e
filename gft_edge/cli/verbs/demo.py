"""Run the whole chain on the built-in task, from train to report: quantize, export, build, verify, bench, search, predict."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path

EXAMPLE = "gft-edge demo --out runs/demo"


@dataclass(frozen=True)
class Size:
    """Amount of work of each step; the fields are the placeholders of the steps."""

    train_steps: int
    eval_images: int
    calibration_images: int
    verify_images: int
    map_images: int
    bench_rounds: int
    pictures: int
    points: int
    subset: int


NORMAL = Size(16, 400, 128, 160, 16, 20, 12, 40, 64)
SMALL = Size(4, 96, 32, 32, 8, 4, 12, 6, 8)


@dataclass(frozen=True)
class Step:
    """A step of the demo.

    Args:
        title: on the report page.
        command: verb and arguments, with placeholders: ``out``, and the fields of :class:`Size`.
        small: command of the small demo, if it differs.
    """

    title: str
    command: str
    small: str = ""

    def arguments(self, out: Path, size: Size) -> list[str]:
        """Returns verb and arguments with the placeholders filled in."""
        values = {"out": out, **asdict(size)}
        template = self.small if self.small and size == SMALL else self.command
        return [part.format(**values) for part in shlex.split(template)]


def _verify(name: str, checkpoint: str, small: str = "") -> Step:
    command = f"verify {{out}}/{name} --checkpoint {{out}}/{checkpoint} --images {{verify_images}} --map-images {{map_images}}"
    return Step(f"verify {name}", command, small)


STEPS = (
    Step("train", "train --config {out}/recipe.json --out {out}/checkpoint"),
    Step("evaluate in PyTorch", "evaluate {out}/checkpoint --images {eval_images} --out {out}/evaluate-torch.json"),
    Step("quantize", "quantize {out}/checkpoint --images {calibration_images} --out {out}/checkpoint-int8"),
    Step("export fp32-full", "export {out}/checkpoint --budget full --out {out}/fp32-full"),
    Step("export fp32-pruned", "export {out}/checkpoint --out {out}/fp32-pruned"),
    Step("export int8-pruned", "export {out}/checkpoint-int8 --out {out}/int8-pruned"),
    Step("export int8-maps", "export {out}/checkpoint-int8 --maps compact --out {out}/int8-maps"),
    *(
        Step(f"build {name}", f"build {{out}}/{name} --target rtx")
        for name in ("fp32-full", "fp32-pruned", "int8-pruned", "int8-maps")
    ),
    # A fresh export takes most of a verification; in a small demo, one in INT8 shows that it works.
    _verify("fp32-full", "checkpoint", small="verify {out}/fp32-full"),
    _verify("fp32-pruned", "checkpoint", small="verify {out}/fp32-pruned"),
    _verify("int8-pruned", "checkpoint-int8", small="verify {out}/int8-pruned"),
    _verify("int8-maps", "checkpoint-int8"),
    *(
        Step(
            f"evaluate {name}",
            f"evaluate {{out}}/{name} --images {{eval_images}} --out {{out}}/evaluate-{name}.json",
        )
        for name in ("fp32-full", "fp32-pruned", "int8-pruned")
    ),
    Step(
        "bench",
        "bench {out}/fp32-full {out}/fp32-pruned {out}/int8-pruned {out}/int8-maps --rounds {bench_rounds} "
        "--out {out}/bench.json",
    ),
    Step(
        "search",
        "search {out}/checkpoint --points {points} --subset {subset} --images {eval_images} --out {out}/front.json",
        small="search {out}/checkpoint --points {points} --subset {subset} --images 16 --out {out}/front.json",
    ),
    Step("predict", "predict {out}/int8-maps {out}/pictures --maps {out}/maps --out {out}/predictions.json"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="new folder (runs/demo)")
    parser.add_argument(
        "--small", action="store_true", help="run every step on few images and rounds, to check that it works"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say
    from gft_edge.files import require_free, write_json
    from gft_edge.hardware.environment import machine, versions
    from gft_edge.report.pages.run import PAGE

    require_free(args.out, stays=True)
    size = SMALL if args.small else NORMAL
    _write_recipe(args.out / "recipe.json", size)
    _write_pictures(args.out / "pictures", size.pictures)
    done: list[dict[str, object]] = []
    started = time.monotonic()
    for step in STEPS:
        command = step.arguments(args.out, size)
        line = shlex.join(["gft-edge", *command])
        say(f"demo: {step.title}: {line}")
        began = time.monotonic()
        try:
            _call(command)
        except KeyboardInterrupt:  # the verb's advice on resuming does not apply to a demo
            raise KeyboardInterrupt(f"in the step {step.title}; remove {args.out} before another try") from None
        done.append({"title": step.title, "command": line, "seconds": time.monotonic() - began})
        record = {
            "small": args.small,
            "seconds": time.monotonic() - started,
            "steps": done,
            "machine": machine(),
            "versions": versions(),
        }
        write_json(args.out / "run.json", record)
    _call(["report", str(args.out)])
    page = args.out / PAGE
    seconds = time.monotonic() - started
    result(args, {"page": str(page), "seconds": seconds}, f"{page}: finished in {seconds:.0f} s; open it in a browser")
    return 0


def _write_recipe(file: Path, size: Size) -> None:
    """Writes the recipe of a short training that starts from the built-in checkpoint."""
    from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
    from gft_edge.files import write_json

    recipe = Recipe(
        ModelSection(preset="gft_scenes"),
        DataSection(name="scenes", eval_images=min(size.eval_images, 160)),
        TrainSection(
            init="builtin",
            steps=size.train_steps,
            batch_size=16,
            lr=1e-5,
            min_lr=1e-6,
            warmup_steps=min(10, size.train_steps),
            label_smoothing=0.05,
            checkpoint_every=0,
            seed=11,
        ),
    )
    write_json(file, recipe.to_json())


def _write_pictures(folder: Path, count: int) -> None:
    """Writes test images as files for the predictions of the demo."""
    from PIL import Image

    from gft_edge.data.scenes import Scenes
    from gft_edge.files import replacing

    images = Scenes("test", count * 7)
    for number in range(count):
        pixels, label = images[number * 7]
        path = folder / f"{images.labels[label]}.png"
        with replacing(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")


def _call(command: list[str]) -> None:
    """Runs another verb in this process; its result goes to standard error.

    Raises:
        CheckFailed: the exit code of the verb is not 0.
    """
    import sys

    from gft_edge.cli.main import run_verb
    from gft_edge.errors import CheckFailed

    with contextlib.redirect_stdout(sys.stderr):
        code = run_verb(command[0], command[1:])
    if code:
        raise CheckFailed(f"the step '{shlex.join(['gft-edge', *command])}' ended with code {code}")
