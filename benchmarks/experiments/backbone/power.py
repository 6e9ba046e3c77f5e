"""Statistical power of the comparison with FP32: what a number of images can show."""

from __future__ import annotations

import math
from statistics import NormalDist

from gft_edge.stats.metrics import Z_INTERVAL

ALLOWED_LOSS = 0.003
"""Loss of top-1 that a scheme may have."""
POWER = 0.9


def detection_power(only_reference: int, only_candidate: int, images: int, margin: float = ALLOWED_LOSS) -> float:
    """Returns the probability that the 95 % interval of the difference excludes ``-margin`` if truly nothing is lost.

    Normal approximation with the observed discordance d: the difference has variance d / n (see
    :func:`~gft_edge.stats.paired.images_needed`).
    """
    discordance = (only_reference + only_candidate) / images
    if discordance == 0:
        return 1.0
    return NormalDist().cdf(margin * math.sqrt(images / discordance) - Z_INTERVAL)


def images_for(discordant: int, images: int, margin: float = ALLOWED_LOSS, aim: float = POWER) -> int:
    """Returns the images at which :func:`detection_power` reaches ``aim`` with the discordance of a pilot.

    The pilot's d of n images count as (d + 1) / (n + 2), since a pilot may have none.
    """
    share = (discordant + 1) / (images + 2)
    return math.ceil((Z_INTERVAL + NormalDist().inv_cdf(aim)) ** 2 * share / margin**2)
