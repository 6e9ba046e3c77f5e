"""Refuses non-finite logits, whose largest value has no meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import CheckFailed


def require_finite(logits: npt.NDArray[Any], where: str) -> None:
    """Refuses NaN and infinity in logits (B, classes) of any floating-point type.

    Args:
        logits: of any shape; the first axis counts images.
        where: the model that computed them, for the message.

    Raises:
        CheckFailed: with the number of affected images, and the first.
    """
    finite = np.isfinite(logits)
    if bool(finite.all()):
        return
    bad = np.flatnonzero(~finite.reshape(len(logits), -1).all(axis=1))
    raise CheckFailed(
        f"{where}: logits of {len(bad)} of {len(logits)} images are NaN or infinite (first: image {bad[0]}); the weights are "
        "damaged or the precision overflows"
    )
