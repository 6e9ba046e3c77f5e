"""Options of a verification. Needs neither onnx nor PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError
from gft_edge.runtime.backends.sessions import ONNXRUNTIME
from gft_edge.stats.verdict import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class VerifyOptions:
    """Backends that run an artefact, limits that pass, and images that are compared.

    Without a checkpoint the golden images are compared, and only ``backends`` and ``limits`` count.

    Args:
        backends: that run the artefact, see :func:`gft_edge.runtime.backends.sessions.open_session`; a repeated one runs once.
        limits: what passes.
        data: data set, as for :func:`gft_edge.data.datasets.open_images`; None is the data that the checkpoint was trained on.
        split: part of it; None is test, or val where there are no test images.
        images: how many at most.
        map_images: images for insertion and deletion curves of an artefact with compact maps, 0 for none.

    Raises:
        ConfigError: a negative number of map images, or no images.
    """

    backends: tuple[str, ...] = (ONNXRUNTIME,)
    limits: Limits = DEFAULT_LIMITS
    data: str | None = None
    split: Split | None = None
    images: int = 512
    map_images: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "backends", tuple(dict.fromkeys(self.backends)))
        if self.images < 1:
            raise ConfigError(f"images must be at least 1, found {self.images}")
        if self.map_images < 0:
            raise ConfigError(f"map images must be 0 (none) or more, found {self.map_images}")


DEFAULT_OPTIONS = VerifyOptions()
