"""TensorRT by generation: what each one can do, as data, and which one runs on which machine.

Read from the sources, bindings and documents of 8.6.1, 10.3, 10.7, 10.13, 10.16, 11.x and TensorRT-RTX 1.7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import Device, device

Typing = Literal["weak", "both", "strong"]

RTX = "rtx"
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""What an RTX engine is compiled for by default: data-centre Ampere, Ampere, Ada, Blackwell."""


@dataclass(frozen=True)
class Generation:
    """What holds from one version up to the next in the table.

    Args:
        name: the first version it describes, or ``"rtx"``.
        module: what Python imports.
        extra: the extra of gft-edge that brings it.
        opsets: lowest and highest ONNX operator set its parser reads.
        typing: whether builder flags decide precision (weak), the graph does (strong), or the network flag chooses.
        network_flags: members of NetworkDefinitionCreationFlag, weak and strong.
        int64: whether tensors may be INT64; older ones narrow them to INT32 with a warning.
        needs_zero_points: whether Q/DQ without a zero-point input is refused.
        has_progress_monitor: whether a build can be watched.
        has_strip: whether plans without weights exist.
        has_same_capability: whether an engine for any GPU of one compute capability exists.
    """

    name: str
    module: str
    extra: str
    opsets: tuple[int, int]
    typing: Typing
    network_flags: tuple[tuple[str, ...], tuple[str, ...]]
    int64: bool = True
    needs_zero_points: bool = False
    has_progress_monitor: bool = True
    has_strip: bool = True
    has_same_capability: bool = True


_WEAK: tuple[tuple[str, ...], tuple[str, ...]] = (("EXPLICIT_BATCH",), ())
_BOTH: tuple[tuple[str, ...], tuple[str, ...]] = ((), ("STRONGLY_TYPED",))
_ALWAYS: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # 11 keeps STRONGLY_TYPED only to ignore it

_OLD = {"int64": False, "needs_zero_points": True, "has_progress_monitor": False, "has_strip": False}

GENERATIONS = (
    Generation("8.6", "tensorrt", "trt", (7, 17), "weak", _WEAK, has_same_capability=False, **_OLD),
    Generation("10.3", "tensorrt", "trt", (9, 20), "both", _BOTH, has_same_capability=False),
    Generation("10.7", "tensorrt", "trt", (9, 20), "both", _BOTH, has_same_capability=False),
    Generation("10.13", "tensorrt", "trt", (9, 24), "both", _BOTH),
    Generation("10.16", "tensorrt", "trt", (9, 24), "both", _BOTH),
    Generation("11.0", "tensorrt", "trt", (9, 24), "strong", _ALWAYS),
)
"""TensorRT, oldest first; a version between two rows is held to the older one, 10.0 to 10.2 to 10.3."""

# The parser of RTX 1.7.1 has importers for what came with opset 27 (measured); no document names its highest opset.
RTX_GENERATION = Generation(
    RTX, "tensorrt_rtx", "rtx", (9, 27), "strong", _BOTH, has_strip=False, has_same_capability=False
)


_LATER_OPSETS = (((10, 9), (10, 13), (9, 22)), ((11, 5), (12,), (9, 25)))
"""From a version on and up to another: what the parser reads where that differs from its generation's row."""


def parse_version(version: str) -> tuple[int, ...]:
    """``"10.3.0"`` to (10, 3, 0).

    Raises:
        ConfigError: something else.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+){0,3}", version):
        raise ConfigError(f"TensorRT version {version!r}: expected numbers with dots, for example 10.3 or 11.4.1")
    return tuple(int(part) for part in version.split("."))


def generation(version: str) -> Generation:
    """The generation a TensorRT version belongs to; ``"rtx"`` for TensorRT-RTX.

    Raises:
        ConfigError: older than 8.6, newer than 11, or no version.
    """
    if version == RTX:
        return RTX_GENERATION
    numbers = parse_version(version)
    if numbers < (8, 6):
        raise ConfigError(
            f"TensorRT {version}: 8.6 is the oldest supported; on JetPack 5 (8.5) install JetPack 6 or newer, "
            "which Orin modules can run and Xavier modules cannot"
        )
    if numbers >= (12,):
        raise ConfigError(f"TensorRT {version} is not known to this version of gft-edge; it knows up to 11.x")
    if (10, 0) <= numbers < (10, 3):
        return GENERATIONS[1]
    return next(g for g in reversed(GENERATIONS) if parse_version(g.name) <= numbers)


def opsets(version: str | None) -> tuple[int, int]:
    """Lowest and highest ONNX operator set that a TensorRT reads.

    Args:
        version: of TensorRT, ``"rtx"``, or None: any from 10.3 to 11.
    """
    if version is None:
        return GENERATIONS[1].opsets[0], max(span[1] for _, _, span in _LATER_OPSETS)
    if version != RTX:
        numbers = parse_version(version)
        for first, end, span in _LATER_OPSETS:
            if first <= numbers < end:
                return span
    return generation(version).opsets


def default_version(target: Device) -> str:
    """The TensorRT a device is planned for when none is named: the newest that its sources name; 11.4 on cards."""
    if not target.is_jetson:
        return "11.4"
    newest = target.tensorrt[-1]
    return "11.4.1" if newest == "11.4" else newest


def assumed_version(target: Device) -> str:
    """Which TensorRT was assumed because none was named, and how to name another: one sentence."""
    version = default_version(target)
    start = f"TensorRT {version} is assumed, the newest for {target.name if target.is_jetson else 'cards'}"
    if "10.3" in target.tensorrt and version != "10.3":
        return f"{start}; most JetPack 6 boards have 10.3: --tensorrt 10.3"
    return f"{start}; for another give --tensorrt VERSION"


def require_together(version: str, target: Device) -> None:
    """Refuses a TensorRT version that does not run on a device.

    Raises:
        ConfigError: with the reason and the versions that do.
    """
    if target.compute_capability == "7.2":
        raise ConfigError(
            f"{target.title}: JetPack 5 with TensorRT 8.5 is the last for Xavier, and 8.6 is the oldest supported here"
        )
    known = generation(version)
    numbers = parse_version(version) if version != RTX else ()
    if known.name == RTX:
        if target.is_jetson:
            raise ConfigError(f"{target.title}: TensorRT-RTX has no Jetson release; use the board's own TensorRT")
        raise ConfigError(f"{target.title}: with TensorRT-RTX give --target rtx and --compute-capability")
    first = _first_version(target.compute_capability)
    if numbers < first:
        raise ConfigError(
            f"TensorRT {version} does not know {target.title} (compute capability {target.compute_capability}); "
            f"it needs {'.'.join(map(str, first))} or newer"
        )
    if not target.is_jetson:
        return
    there = ", ".join(t for t in target.tensorrt if t != "8.5")
    if numbers[0] == 11 and numbers < (11, 4, 1):
        raise ConfigError(
            f"TensorRT {version} is not for JetPack; on {target.title} there are {there} (11.4 as 11.4.1)"
        )
    if numbers[0] == 11 and "11.4" not in target.tensorrt:
        raise ConfigError(
            f"TensorRT {version} is documented for AGX Orin and Thor only, not for {target.title}, which has {there}"
        )


def _first_version(capability: str) -> tuple[int, ...]:
    """The first TensorRT that knows a compute capability."""
    number = float(capability)
    if number == 11.0:
        return (10, 13)
    return (10, 8) if number >= 10 else (8, 6)


def dla_refusal(version: str, target: Device | None) -> str | None:
    """Why a DLA core cannot be used, or None."""
    if version == RTX:
        return "TensorRT-RTX does not know the DLA"
    if target is not None and target.num_dla_cores == 0:
        return f"{target.title} has no DLA"
    numbers = parse_version(version)
    if (10, 8) <= numbers < (11, 4, 1):
        return f"TensorRT {version} cannot use the DLA: 10.7 is the last 10.x that can, 11.4.1 has it again"
    if numbers >= (11, 4, 1) and target is not None and not target.name.startswith("agx-orin"):
        return f"TensorRT {version} uses the DLA of AGX Orin only, not of {target.title}"
    return None


def dtype_refusal(dtype: str, version: str, capability: str | None) -> str | None:
    """Why a data type cannot be computed there, or None.

    Args:
        dtype: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``; FP32 means products in FP32.
        version: of TensorRT, or ``"rtx"``.
        capability: compute capability, None where any will do.
    """
    known = generation(version)
    where = "TensorRT-RTX" if known.name == RTX else f"TensorRT {version}"
    if dtype in ("bf16", "fp8") and known.name == "8.6":
        return f"{where} has no {dtype.upper()} networks; they need 10.x"
    if capability is None:
        return None
    number = float(capability)
    if dtype == "bf16" and number < 8:
        return f"BF16 needs compute capability 8.0 or newer, this is {capability}"
    if dtype == "fp8" and number < 8.9:
        return f"FP8 needs compute capability 8.9 or newer, this is {capability}; use INT8"
    if dtype == "fp32" and known.name == RTX and number < 8:
        return (
            f"{where} has no FP32 matrix products below compute capability 8.0, and this graph has some (importance is FP32 in "
            f"every precision), this is {capability}; use 8.0 or newer"
        )
    return None


@dataclass(frozen=True)
class Platform:
    """Where a graph is to run, as far as it is known.

    Args:
        version: of TensorRT, ``"rtx"``, or None: any from 10.3 to 11.
        capability: compute capability of the GPU, or None.
        title: for messages.
        target: ``"rtx"`` or the device's name; None where no GPU is named.
        weak: whether builder flags decide the types although the generation lets the graph decide (``--weak``).
        note: what was assumed.
    """

    version: str | None = None
    capability: str | None = None
    title: str = "TensorRT 10.3 to 11"
    target: str | None = None
    weak: bool = False
    note: str = ""

    @property
    def generation(self) -> Generation | None:
        """What its TensorRT can do."""
        return None if self.version is None else generation(self.version)

    @property
    def is_weak(self) -> bool:
        """Whether a builder flag may turn FP32 into FP16."""
        return self.weak or (self.generation is not None and self.generation.typing == "weak")

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return self.version == RTX


def platform(target: str | None, version: str | None = None) -> Platform:
    """What a ``--target`` means.

    Args:
        target: ``"rtx"``, a device of :mod:`gft_edge.hardware.devices`, or None.
        version: of TensorRT; the device's newest by default.

    Raises:
        ConfigError: unknown device, or a version that does not run there.
    """
    if target is None:
        return Platform() if version is None else Platform(version, None, f"TensorRT {generation(version) and version}")
    if target == RTX:
        return Platform(RTX, None, "TensorRT-RTX", RTX)
    profile = device(target)
    note = "" if version else assumed_version(profile)
    version = version or default_version(profile)
    require_together(version, profile)
    title = f"TensorRT {version} on {profile.title}"
    return Platform(version, profile.compute_capability, title, profile.name, note=note)
