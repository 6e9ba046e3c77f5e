"""Arguments and steps that several verbs share."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.data.splits import SPLITS
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.runtime.backends.table import BACKENDS, DEFAULT, names_text

if TYPE_CHECKING:
    from gft_edge.calibration.options import CalibrationOptions, Callbacks
    from gft_edge.data.splits import Split


DATA_FORMS = (
    "image folder, ROOT/CLASS/image or ROOT/{train,val,test}/CLASS/image (without folders of splits, a hash of each file "
    "splits it 80/10/10); 'scenes'; 'typefaces'; typefaces:FOLDER of fonts; fgvc-aircraft:ROOT; food101:ROOT; coco:ROOT"
)
TRAINED_ON = "the data the model was trained on"
REPLACED = "in place of an earlier result"
"""What happens to an existing file of ``--out``; a folder must be new or empty."""


def add_data_argument(parser: argparse.ArgumentParser, default: str = TRAINED_ON) -> None:
    """Adds ``--data``; ``default`` says in words what is taken without it."""
    parser.add_argument("--data", metavar="D", help=f"{DATA_FORMS} ({default})")


def add_data_arguments(
    parser: argparse.ArgumentParser, images: int, split: Split | None = None, data: str = TRAINED_ON
) -> None:
    """``--data``, ``--images``, ``--split``; ``data`` says in words what is taken without ``--data``."""
    add_data_argument(parser, data)
    parser.add_argument("--images", type=positive, default=images, metavar="N", help=f"how many images ({images})")
    add_split_argument(parser, split)


def add_split_argument(
    parser: argparse.ArgumentParser, split: Split | None, default: str = "test, or val where there are no test images"
) -> None:
    """Adds ``--split``; ``default`` says in words what None is."""
    parser.add_argument("--split", choices=SPLITS, default=split, help=f"which part of the data ({split or default})")


def add_budget_argument(parser: argparse.ArgumentParser, before: str, after: str) -> None:
    """Adds ``--budget``, which can be repeated, with a verb's own words before and after its forms."""
    parser.add_argument(
        "--budget",
        action="append",
        metavar="K,K,K",
        help=f"{before}patches kept by each selecting block, shares such as 75%%,50%%,25%%, or 'full'{after}",
    )


def add_align_argument(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Adds ``--align``."""
    parser.add_argument(
        "--align",
        type=positive,
        default=default,
        metavar="N",
        help="make the tokens, patches and those before them, a multiple of N where pruned"
        + (f" ({default})" if default else ""),
    )


def add_labels_argument(container: argparse._ActionsContainer, default: str) -> None:
    """Adds ``--labels``; ``default`` says in words which names are taken without it."""
    container.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help=f"class names in the order of the outputs: one per line, or .csv or .json ({default})",
    )


def add_backend_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds ``--backend`` of a verb that takes one; ``what`` it runs."""
    parser.add_argument("--backend", default=DEFAULT, metavar="B", help=f"what runs the {what}: {names_text()}")


def measured_text() -> str:
    """Returns the backends on which budgets can be measured, in words."""
    return " or ".join(backend.name for backend in BACKENDS if backend.measures_budgets)


def add_seed_argument(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """Adds ``--seed`` of what is drawn."""
    parser.add_argument("--seed", type=int, default=default, metavar="N", help=f"seed of {what} ({default})")


def add_result_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds ``--out`` for a file that a verb writes beside what it prints."""
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"also write {what}, {REPLACED}")


def add_new_folder(parser: argparse.ArgumentParser, what: str, *, required: bool = True, metavar: str = "DIR") -> None:
    """Adds ``--out`` for a folder that must be new or empty."""
    parser.add_argument(
        "--out", type=Path, required=required, metavar=metavar, help=f"folder to write, new or empty: {what}"
    )


def add_artifact_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument ``ARTIFACT``."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="artefact folder, or a bundle")


def add_checkpoint_output(parser: argparse.ArgumentParser) -> None:
    """Adds ``--out`` for a new checkpoint folder."""
    add_new_folder(parser, "the checkpoint")


def add_ranges_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--ranges``."""
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="ranges.json of calibrate, instead of calibrating")


def add_threads_argument(parser: argparse.ArgumentParser, default: int) -> None:
    """Adds ``--threads`` of the backend."""
    parser.add_argument(
        "--threads", type=int, default=default, metavar="N", help=f"threads of the backend; 0: one per core ({default})"
    )


def add_calibration_arguments(parser: argparse.ArgumentParser, method: str | None = None) -> None:
    """``--data``, ``--images``, ``--split`` and how images and ranges are chosen; :func:`calibration_options` reads them.

    Args:
        parser: of the verb.
        method: words about the default of a verb that finds it itself.
    """
    from gft_edge.calibration.options import CHOICES, METHODS, CalibrationOptions

    default = CalibrationOptions()
    add_data_arguments(parser, images=default.images, split=default.split)
    parser.set_defaults(images=None)  # a number that nobody asked for may be lower where there are fewer images
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=default.method if method is None else None,
        help=f"how ranges are found ({method or default.method})",
    )
    parser.add_argument(
        "--percentile",
        type=float,
        default=None,
        metavar="P",
        help=f"for --method percentile, in per cent ({default.percentile:g})",
    )
    parser.add_argument(
        "--choose",
        choices=CHOICES,
        default=default.choice,
        help="images: balanced over classes, random, or so that no image is far from a chosen one (balanced)",
    )
    add_seed_argument(parser, default.seed, "the choice of images")
    parser.add_argument(
        "--against",
        metavar="D",
        help="evaluation data whose test images (val where there are none) these must not be (--data)",
    )
    parser.add_argument("--force", action="store_true", help="continue although images are evaluation images")


def calibration_options(args: argparse.Namespace) -> CalibrationOptions:
    """Returns the options that :func:`add_calibration_arguments` and ``--state``, where a verb has it, ask for."""
    from gft_edge.calibration.options import CalibrationOptions

    if args.percentile is not None and args.method != "percentile":
        raise ConfigError("--percentile goes with --method percentile")
    if args.percentile is not None and not 0 < args.percentile <= 100:
        raise ConfigError(f"--percentile must be above 0 and at most 100, found {args.percentile:g}")
    return CalibrationOptions(
        data=args.data,
        split=args.split,
        images=args.images or CalibrationOptions.images,
        fewer=args.images is None,
        method=args.method or CalibrationOptions.method,
        percentile=CalibrationOptions.percentile if args.percentile is None else args.percentile,
        choice=args.choose,
        seed=args.seed,
        against=args.against,
        force=args.force,
        state=getattr(args, "state", None),
    )


def calibration_callbacks() -> Callbacks:
    """Returns callbacks that show progress, notes and unreadable images on stderr and draw the figure of the ranges."""
    from gft_edge.calibration.options import Callbacks
    from gft_edge.cli.console import say, track

    def draw(images: Sequence[int], ranges: Mapping[str, Sequence[float]], needed: int) -> str:
        from gft_edge.report.figures.plots import convergence  # matplotlib takes time to import

        return convergence(images, ranges, needed)

    return Callbacks(track, say, lambda text: say(f"left out: {text}"), draw)


@contextlib.contextmanager
def result_kept(show: Callable[[Any], None]) -> Iterator[None]:
    """Shows the result of a pipeline, which took long to compute, when it cannot be written; then raises the error again."""
    from gft_edge.calibration.options import ResultNotWrittenError

    try:
        yield
    except ResultNotWrittenError as error:
        show(error.result)
        raise


def positive(text: str) -> int:
    """Parses an integer of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, found {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def share(text: str) -> float:
    """Parses a number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, found {text!r}") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, found {text}")
    return value


def is_artifact(path: str) -> bool:
    """Returns whether a path is an artefact or a bundle; otherwise it should be a checkpoint.

    Raises:
        ArtifactError: it is a file.
    """
    from gft_edge.bundle import is_bundle, refuse_zip
    from gft_edge.manifest import MANIFEST, split_member
    from gft_edge.storage.filekinds import describe_file

    refuse_zip(Path(path))
    if Path(path).is_file():
        raise ArtifactError(
            f"{path}: is {describe_file(Path(path))}; give an artefact folder, a checkpoint folder or 'builtin'"
        )
    folder = split_member(path)[0]
    return (folder / MANIFEST).is_file() or is_bundle(folder)


def parse_compute_capabilities(text: str) -> tuple[str, ...]:
    """Returns the parts of a text such as ``"8.6,8.9"``."""
    return comma_separated(text)


def comma_separated(text: str) -> tuple[str, ...]:
    """Returns the parts of a text between commas, without spaces and empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_batch_range(text: str) -> tuple[int, int, int]:
    """Parses ``"4"`` or ``"1:4:8"`` (smallest, usual, largest).

    Raises:
        ConfigError: the text is neither, or its numbers are not in order.
    """
    try:
        sizes = [int(part) for part in text.split(":")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) == 3 and not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ConfigError(f"batch {text!r}: expected 1 <= smallest <= usual <= largest")
    if len(sizes) != 3:
        raise ConfigError(f"batch {text!r}: expected one number or smallest:usual:largest, for example 1:4:8")
    return sizes[0], sizes[1], sizes[2]
