"""Certificates of a quantized checkpoint: the bound of its score noise from some images, and a test on others.

:mod:`gft_edge.stats.certificates` defines noise, bound and certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gft_edge.budget import TokenBudget
from gft_edge.calibration.images import HeldOut
from gft_edge.data.datasets import is_folder, is_rendered, open_images, unlabelled_folder
from gft_edge.data.for_model import EVERYTHING
from gft_edge.data.sets import Subset, readable, spread
from gft_edge.data.trained import not_trained_on
from gft_edge.errors import ArtifactError, DataError
from gft_edge.manifest import LOGITS
from gft_edge.stats.agreement import Arrays
from gft_edge.stats.certificates import CertificateCheck, NoiseBound, check, measure_bound
from gft_edge.storage.seals import read_sealed, write_sealed

CERTIFICATES = "certificates.json"
LEAST_COVERAGE = 0.25
"""A bound that covers less says nothing about the next image."""


Pair = tuple[Arrays, Arrays]
"""Outputs of the full-precision and of the quantized model on the same images."""


@dataclass(frozen=True)
class CertificateReport:
    """Bound of the noise of a quantized model and the test of its certificates.

    Attributes:
        budget: id of the token budget that both were measured at.
        bound: of the noise; None where nothing can be certified.
        check: on images that the bound has not seen.
        bound_images, check_images: which images, in words.
        problem: why there is no bound.
    """

    budget: str
    bound: NoiseBound | None = None
    check: CertificateCheck | None = None
    bound_images: str = ""
    check_images: str = ""
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            **vars(self),
            "bound": None if self.bound is None else self.bound.to_json(),
            "check": None if self.check is None else self.check.to_json(),
        }

    def describe(self) -> str:
        """Returns one line for people."""
        if self.bound is None or self.check is None:
            return f"certificates: none, {self.problem}"
        covers = f"covers {self.bound.coverage:.1%} of images ({self.bound.confidence:.0%} sure)"
        return f"certificates: {in_words(self.check)}; bound from {self.bound_images}, {covers}"


def certificate_report(
    bounding: Pair, testing: Pair, budget: TokenBudget, bound_images: str = "", check_images: str = ""
) -> CertificateReport:
    """Measures the bound on some images and tests the certificates on others.

    Args:
        bounding, testing: outputs as :func:`gft_edge.calibration.safety.paired_outputs` returns them.
        budget: that they were run at.
        bound_images, check_images: which images, in words.
    """
    if all(k >= n for n, k in zip(budget.stage_inputs, budget.keep)):
        return CertificateReport(budget.id, problem="the model drops no patches")
    if not len(bounding[0][LOGITS]):
        return CertificateReport(budget.id, problem="there is one image, and the bound needs others")
    try:
        bound = measure_bound(*bounding)
    except DataError as error:
        return CertificateReport(budget.id, problem=str(error).removeprefix("certificates: "))
    if bound.coverage < LEAST_COVERAGE:
        return CertificateReport(budget.id, problem=f"{bound_images} are too few for a bound")
    return CertificateReport(budget.id, bound, check(*testing, bound), bound_images, check_images)


def halves(pair: Pair, seed: int = 0) -> tuple[Pair, Pair]:
    """Returns the outputs of two halves of the images, drawn at random; the first is the smaller one."""
    order = np.random.default_rng(seed).permutation(len(pair[0][LOGITS]))
    middle = len(order) // 2
    first, second = (
        (
            {name: values[rows] for name, values in pair[0].items()},
            {name: values[rows] for name, values in pair[1].items()},
        )
        for rows in (order[:middle], order[middle:])
    )
    return first, second


def images_for_bound(held_out: HeldOut, count: int, size: int, model: Path) -> HeldOut | None:
    """Opens val images (at most ``count``, evenly spread), or returns None where these evaluate the model or none can be had.

    Args:
        held_out: images that evaluate the model; those of ``verify`` too, so the bound may not see them.
        count: at most so many.
        size: pixels of rendered images.
        model: folder of the checkpoint; images that it was trained on are left out.
    """
    data = held_out.data
    if held_out.split != "test" or (is_folder(data) and unlabelled_folder(Path(data)) is not None):
        return None
    try:
        images = readable(open_images(data, "val", count if is_rendered(data) else EVERYTHING, size))
    except DataError:  # no val images, or none that are no training images
        return None
    images = not_trained_on(images, model, "val", data)
    images = images if len(images) <= count else Subset(images, spread(len(images), count))
    return HeldOut(data, "val", images) if len(images) else None


def in_words(found: CertificateCheck) -> str:
    """Returns the result of a test in words."""
    patches = ", ".join(f"{share:.1%}" for share in found.certain)
    kept = f"but {len(found.broken)} of them do NOT" if found.broken else "and they do"
    certified = f", {kept}" if found.certified else ""
    return (
        f"{found.certified} of {found.images} images are certain to keep the patches of full precision{certified} "
        f"({found.images - found.flipped} of all do); of the kept patches {patches} are certain"
    )


def write_certificates(path: Path, report: CertificateReport) -> None:
    """Writes a report as sealed JSON, whole or not at all."""
    write_sealed(path, report.to_json())


def read_bound(path: Path, budget: TokenBudget) -> NoiseBound | None:
    """Returns the bound in a file that ``quantize`` wrote; None if there is no file, no bound, or one of another budget.

    Raises:
        ArtifactError: the file was changed, or has another form.
    """
    if not path.is_file():
        return None
    data = read_sealed(path, "certificates", "quantize again")
    try:
        if data["budget"] != budget.id or data["bound"] is None:
            return None
        return NoiseBound.from_json(data["bound"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"certificates {path}: malformed ({error!r}); quantize again") from None
