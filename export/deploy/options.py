"""What a bundle is made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gft_edge.bundle import TARGETS, Target
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import device
from gft_edge.hardware.tensorrt_versions import parse_version

ACCELERATORS = ("cpu", "gpu", "tensorrt")


@dataclass(frozen=True)
class BundleOptions:
    """Options of :func:`gft_edge.export.deploy.bundling.make_bundle`; a target ignores those that it does not have.

    Args:
        target: place of use.
        device: name of a device profile; needed by ``"jetson"``.
        tensorrt: version on the device, empty for its newest.
        secondary: DeepStream: classify objects that a detector found, not whole frames.
        isaac_ros: Jetson: add a launch file for Isaac ROS.
        accelerator: Triton: where ONNX Runtime computes: ``"cpu"``, ``"gpu"``, ``"tensorrt"``; empty: a GPU where there is one.
        wheel: Jetson: wheel of this package to put into the bundle; None makes one of the installed package.
        zip: write a zip of the bundle too.
        sign: file with the private Ed25519 key that signs the record, None for no signature.

    Raises:
        ConfigError: unknown target, device or accelerator, or an option of another target.
    """

    target: Target
    device: str = ""
    tensorrt: str = ""
    secondary: bool = False
    isaac_ros: bool = False
    accelerator: str = ""
    wheel: Path | None = None
    zip: bool = False
    sign: Path | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ConfigError(f"unknown target {self.target!r}; there are: {', '.join(TARGETS)}")
        for name, target in _OF_ONE_TARGET.items():
            if getattr(self, name) and self.target != target:
                raise ConfigError(f"--{name.replace('_', '-')} is for --target {target}, not for {self.target}")
        if self.accelerator not in ("", *ACCELERATORS):
            raise ConfigError(f"unknown accelerator {self.accelerator!r}; there are: {', '.join(ACCELERATORS)}")
        if self.device:
            device(self.device)
        if self.tensorrt:
            parse_version(self.tensorrt)


_OF_ONE_TARGET: dict[str, Target] = {
    "secondary": "deepstream",
    "isaac_ros": "jetson",
    "wheel": "jetson",
    "accelerator": "triton",
}
"""Options that one target alone has."""
