"""What a bundle is made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gft_edge.bundle import TARGETS, Target
from gft_edge.errors import ConfigError

Accelerator = Literal["auto", "cpu", "gpu", "tensorrt"]


@dataclass(frozen=True)
class BundleOptions:
    """Options of :func:`gft_edge.export.deploy.bundling.make_bundle`; a target ignores those that it does not have.

    Args:
        target: place of use.
        device: name of a device profile; needed by ``"jetson"``.
        tensorrt: version on the device, empty for its newest.
        secondary: DeepStream: classify objects that a detector found, not whole frames.
        isaac_ros: Jetson: add a launch file for Isaac ROS.
        accelerator: Triton: where ONNX Runtime computes; ``"auto"`` is on a GPU where there is one, ``"tensorrt"`` with TensorRT.
        wheel: wheel of this package to put into the bundle; None makes one of the installed package.

    Raises:
        ConfigError: unknown target or accelerator.
    """

    target: Target
    device: str = ""
    tensorrt: str = ""
    secondary: bool = False
    isaac_ros: bool = False
    accelerator: Accelerator = "auto"
    wheel: Path | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ConfigError(f"unknown target {self.target!r}; there are: {', '.join(TARGETS)}")
        if self.accelerator not in get_args(Accelerator):
            raise ConfigError(
                f"unknown accelerator {self.accelerator!r}; there are: {', '.join(get_args(Accelerator))}"
            )
