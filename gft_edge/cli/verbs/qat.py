"""The part of quantize that trains: arguments of QAT, its data, its figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import positive

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from gft_edge.calibration.ptq import PostTrained, QuantizedModel
    from gft_edge.calibration.qat import QatSettings
    from gft_edge.calibration.qat_report import QatReport
    from gft_edge.checkpoint import Checkpoint, CheckpointInfo
    from gft_edge.data.datasets import ImageSet


def add_qat_arguments(parser: argparse.ArgumentParser) -> None:
    """``--qat-epochs``, ``--qat-steps``, ``--qat-set`` and ``--eval-images``."""
    parser.add_argument(
        "--qat-epochs",
        type=positive,
        metavar="N",
        help="train the quantized model on the training images, N times each",
    )
    parser.add_argument("--qat-steps", type=positive, metavar="N", help="train it for N steps")
    parser.add_argument(
        "--qat-set",
        action="append",
        default=[],
        metavar="key=value",
        help="how: lr, batch_size, temperature, label_weight, augment, train_images, seed, grad_clip, num_workers",
    )
    parser.add_argument(
        "--eval-images", type=positive, default=1600, metavar="N", help="held-out images that judge QAT (1600)"
    )


def qat_settings(args: argparse.Namespace) -> QatSettings | None:
    """What the arguments ask for, with one step where it is epochs that are asked for; None without QAT.

    Raises:
        ConfigError: they contradict each other, or a value cannot be used.
    """
    from gft_edge.calibration.qat import QatSettings
    from gft_edge.config.reader import load_dataclass, parse_scalar
    from gft_edge.errors import ConfigError

    if args.qat_epochs and args.qat_steps:
        raise ConfigError("quantize: give --qat-epochs or --qat-steps, not both")
    if not (args.qat_epochs or args.qat_steps):
        if args.qat_set:
            raise ConfigError("quantize: --qat-set is for QAT; give --qat-epochs or --qat-steps too")
        return None
    if args.ranges:
        raise ConfigError("quantize: the control of QAT is calibrated like the model; leave out --ranges")
    values: dict[str, Any] = {}
    for text in args.qat_set:
        key, separator, value = text.partition("=")
        if not separator or key.strip() == "steps":
            raise ConfigError(f"--qat-set {text!r}: expected key=value, for example lr=1e-5; steps are --qat-steps")
        values[key.strip()] = parse_scalar(value.strip())
    return load_dataclass(QatSettings, {**values, "steps": args.qat_steps or 1}, "--qat-set")


@dataclass(frozen=True)
class QatData:
    """Images to train on and images to judge by, which have none in common; ``source`` says what the latter are."""

    settings: QatSettings
    training: ImageSet
    held_out: ImageSet
    source: str


def open_qat(args: argparse.Namespace, settings: QatSettings, info: CheckpointInfo, model: Path) -> QatData:
    """Opens both sets of images and settles the number of steps; ``model`` is the folder of the checkpoint.

    Raises:
        DataError: no held-out images, images of both sets, too few of them, or other classes than the model's.
    """
    import dataclasses

    from gft_edge.calibration.images import held_out_images, shared_images
    from gft_edge.cli.common import labelled_images, say_notes
    from gft_edge.data.datasets import match_labels, readable
    from gft_edge.errors import DataError

    size = info.preprocess.height
    training = readable(labelled_images(args.data, args.split, settings.train_images, size, info.labels, settings.seed))
    if len(training) < settings.batch_size:
        raise DataError(
            f"data {args.data}: {len(training)} training images are fewer than one batch of {settings.batch_size}; "
            "lower it with --qat-set batch_size=N"
        )
    found = held_out_images(args.data, args.against, args.eval_images, size, model)
    if found is None:
        raise DataError(
            f"data {args.data}: QAT needs images it is not trained on to be judged by; give the data train and test "
            "folders, or name others with --against"
        )
    where, held_out = found.data, match_labels(found.images, info.labels, found.data)
    say_notes(held_out)
    shared = shared_images(training, held_out)
    if shared:
        raise DataError(
            f"data {args.data}: {shared} training images are also among the {found.split} images of {where} that judge QAT; "
            "choose another --split or --against"
        )
    if args.qat_epochs:
        steps = -(-args.qat_epochs * len(training) // settings.batch_size)
        settings = dataclasses.replace(settings, steps=steps)
    return QatData(settings, training, held_out, f"{found.split} images of {where}")


def train_qat(
    data: QatData, checkpoint: Checkpoint, done: PostTrained, post_training: Callable[[nn.Module], QuantizedModel]
) -> tuple[QuantizedModel, QatReport]:
    """Trains and judges, with progress.

    Args:
        data: images and settings.
        checkpoint: the teacher.
        done: what the training starts from.
        post_training: quantizes the control as the model was quantized.
    """
    from gft_edge.calibration.qat import quantization_aware
    from gft_edge.calibration.qat_report import report_qat
    from gft_edge.cli.console import say, track
    from gft_edge.data.batches import evaluation_batches

    teacher, info = checkpoint.model, checkpoint.info
    unreadable: set[str] = set()
    outcome = quantization_aware(
        teacher,
        done.full,
        done.quantized,
        post_training,
        info.model,
        data.training,
        info.preprocess,
        data.settings,
        track,
        unreadable.add,
    )
    batches = evaluation_batches(data.held_out, info.preprocess, problem=unreadable.add)
    batches = track(batches, "judge", -(-len(data.held_out) // 64))
    report = report_qat(teacher, done.quantized.model, outcome, info.model, batches, data.source, info.labels)
    for text in sorted(unreadable):
        say(f"left out: {text}")
    return outcome.quantized, report


def describe_qat(report: QatReport) -> str:
    """A table and the verdict, for people."""
    from gft_edge.calibration.qat_report import HEADER
    from gft_edge.cli.console import table

    course = report.course.to_json()
    return (
        f"QAT: {course['steps']} steps, {course['images']} images, distillation loss {course['distillation_first']:.4g} to "
        f"{course['distillation_last']:.4g}; judged on {report.images} {report.source}\n"
        f"{table(HEADER, report.rows())}\n{report.sentence}"
    )
