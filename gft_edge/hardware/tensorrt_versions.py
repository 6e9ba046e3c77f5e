"""TensorRT versions: the capabilities of each, as data, and the devices each runs on. A new version is a new row here.

Sources: code, bindings and documents of 8.6.1, 10.3, 10.7, 10.13, 10.16, 11.x and TensorRT-RTX 1.7.
Other modules read the flags of a row; none compares version names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import Device, device

Typing = Literal["weak", "both", "strong"]
Dialect = Literal["trt10", "trt8"]
"""Form of the graph that a parser reads; :data:`gft_edge.manifest.Dialect`."""

RTX = "rtx"
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""Default compute capabilities of an RTX engine: data-centre Ampere, Ampere, Ada, Blackwell."""


_RTX_RUNS_ON = ("7.5", "8.0", "8.6", "8.9")
_RTX_RUNS_FROM = "12.0"
"""GPUs of TensorRT-RTX: these, and all from 12.0 on. Turing (7.5) only where an engine names it. Version 1.7.1 builds an engine for
9.0 and refuses to load it there (measured on an H100); its documents list no 8.7, 10.x or 11.0."""


@dataclass(frozen=True)
class Generation:
    """A row of the table: the capabilities from one version up to the next row.

    Args:
        name: the first version it describes, or ``"rtx"``.
        module: Python module.
        opsets: lowest and highest ONNX operator set its parser reads.
        typing: builder flags decide precision (weak), the graph does (strong), or a network flag chooses (both).
        network_flags: members of NetworkDefinitionCreationFlag, weak and strong.
        dialect: form of the graph that its parser reads.
        missing_dtypes: types that its networks cannot have.
        int64: tensors may be INT64; older ones narrow them to INT32 with a warning.
        sorts_integers: TopK takes integers.
        reads_functions: its parser reads local functions.
        needs_zero_points: Q/DQ without a zero-point input is refused.
        deprecates_weak: weak typing works with a warning.
        has_progress_monitor: a build reports its progress.
        has_strip: plans without weights exist.
        has_same_capability: an engine for any GPU of one compute capability exists.
        inverted_trtexec: trtexec launches CUDA graphs, polls and leaves transfers out unless it gets flags against that.
    """

    name: str
    module: str
    opsets: tuple[int, int]
    typing: Typing
    network_flags: tuple[tuple[str, ...], tuple[str, ...]]
    dialect: Dialect = "trt10"
    missing_dtypes: tuple[str, ...] = ()
    int64: bool = True
    sorts_integers: bool = True
    reads_functions: bool = True
    needs_zero_points: bool = False
    deprecates_weak: bool = False
    has_progress_monitor: bool = True
    has_strip: bool = True
    has_same_capability: bool = True
    inverted_trtexec: bool = False


_WEAK: tuple[tuple[str, ...], tuple[str, ...]] = (("EXPLICIT_BATCH",), ())
_BOTH: tuple[tuple[str, ...], tuple[str, ...]] = ((), ("STRONGLY_TYPED",))
_ALWAYS: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # 11 keeps STRONGLY_TYPED only to ignore it

GENERATIONS = (
    Generation(
        "8.6",
        "tensorrt",
        (7, 17),
        "weak",
        _WEAK,
        dialect="trt8",
        missing_dtypes=("bf16", "fp8"),
        int64=False,
        sorts_integers=False,
        reads_functions=False,
        needs_zero_points=True,
        has_progress_monitor=False,
        has_strip=False,
        has_same_capability=False,
    ),
    Generation("10.3", "tensorrt", (9, 20), "both", _BOTH, has_same_capability=False),
    Generation("10.7", "tensorrt", (9, 20), "both", _BOTH, has_same_capability=False),
    Generation("10.13", "tensorrt", (9, 24), "both", _BOTH, deprecates_weak=True),
    Generation("10.16", "tensorrt", (9, 24), "both", _BOTH, deprecates_weak=True),
    Generation("11.0", "tensorrt", (9, 24), "strong", _ALWAYS, inverted_trtexec=True),
)
"""TensorRT, oldest first. A version between two rows has the older row; 10.0 to 10.2 have the first row of their major number.

The newest major number here is the newest that is accepted."""

MAJOR_NUMBERS = tuple(sorted({int(row.name.partition(".")[0]) for row in GENERATIONS}))

# The parser of RTX 1.7.1 has importers for what came with opset 27 (measured); no document names its highest opset.
RTX_GENERATION = Generation(RTX, "tensorrt_rtx", (9, 27), "strong", _BOTH, has_strip=False, has_same_capability=False)


_LATER_OPSETS = (((10, 9), (10, 13), (9, 22)), ((11, 5), (12,), (9, 25)))
"""From a version on and up to another: the opsets of the parser where they differ from the row."""

DEFAULT_SPAN = ("10.3", "11.5")
"""Oldest and newest version that a graph is judged for when none is named."""
NEWEST_ON_CARDS = "11.4"
_COMMON_ON_JETPACK_6 = "10.3"
_FIRST_ON_JETPACK = {11: (11, 4, 1)}
"""First version for JetPack by major number, where the major number starts with versions for cards alone."""
_FIRST_FOR_CAPABILITY = (("11.0", "11.0", (10, 13)), ("10.0", None, (10, 8)))
"""Compute capabilities from one up to another and the first TensorRT for them; older ones have every version here."""
_WITHOUT_DLA = ((10, 8), (11, 4, 1))
"""From the first version on and up to the second, TensorRT cannot use the DLA."""


def parse_version(version: str) -> tuple[int, ...]:
    """Returns (10, 3, 0) for ``"10.3.0"``.

    Raises:
        ConfigError: something else.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+){0,3}", version):
        raise ConfigError(f"TensorRT version {version!r}: expected numbers with dots, for example 10.3 or 11.4.1")
    return tuple(int(part) for part in version.split("."))


def generation(version: str) -> Generation:
    """Returns the row of a TensorRT version; ``"rtx"`` for TensorRT-RTX.

    Raises:
        ConfigError: older than the first row, of a newer major number than the last, or no version.
    """
    if version == RTX:
        return RTX_GENERATION
    numbers = parse_version(version)
    oldest = GENERATIONS[0].name
    if numbers < parse_version(oldest):
        raise ConfigError(
            f"TensorRT {version}: {oldest} is the oldest supported; on JetPack 5 (8.5) install JetPack 6 or newer, "
            "which Orin modules can run and Xavier modules cannot"
        )
    newest = MAJOR_NUMBERS[-1]
    if numbers[0] > newest:
        raise ConfigError(f"TensorRT {version} is unknown to this version of gft-edge; it knows up to {newest}.x")
    return row_of(numbers)


def row_of(numbers: tuple[int, ...]) -> Generation:
    """Returns the row of a version; versions before the first row, as in logs of trtexec, have the first."""
    older = [row for row in GENERATIONS if parse_version(row.name) <= numbers]
    if older and parse_version(older[-1].name)[0] == numbers[0]:
        return older[-1]
    same_major = (row for row in GENERATIONS if parse_version(row.name)[0] == numbers[0])
    return next(same_major, older[-1] if older else GENERATIONS[0])


def opsets(version: str | None) -> tuple[int, int]:
    """Returns the lowest and highest ONNX operator set that a TensorRT reads.

    Args:
        version: of TensorRT, ``"rtx"``, or None: any of :data:`DEFAULT_SPAN`.
    """
    if version is None:
        return generation(DEFAULT_SPAN[0]).opsets[0], max(span[1] for _, _, span in _LATER_OPSETS)
    if version != RTX:
        numbers = parse_version(version)
        for first, end, span in _LATER_OPSETS:
            if first <= numbers < end:
                return span
    return generation(version).opsets


def default_version(target: Device) -> str:
    """Returns the TensorRT of plans that name none: the newest of the device's sources, on cards the newest here."""
    return target.tensorrt[-1] if target.is_jetson else NEWEST_ON_CARDS


def assumed_version(target: Device) -> str:
    """Returns a sentence with the assumed TensorRT and the flag that names another."""
    version = default_version(target)
    start = f"TensorRT {version} is assumed, the newest for {target.name if target.is_jetson else 'cards'}"
    common = _COMMON_ON_JETPACK_6
    if common in target.tensorrt and version != common:
        return f"{start}; most JetPack 6 boards have {common}: --tensorrt {common}"
    return f"{start}; for another give --tensorrt VERSION"


def require_together(version: str, target: Device) -> None:
    """Refuses a TensorRT version that does not run on a device.

    Raises:
        ConfigError: with the reason and the versions that do.
    """
    oldest = GENERATIONS[0].name
    offered = [t for t in target.tensorrt if parse_version(t) >= parse_version(oldest)]
    if target.is_jetson and not offered:
        raise ConfigError(
            f"{target.title}: JetPack 5 with TensorRT {target.tensorrt[-1]} is the last for Xavier, and {oldest} is the oldest "
            "supported here"
        )
    generation(version)
    if version == RTX:
        if target.is_jetson:
            raise ConfigError(f"{target.title}: TensorRT-RTX has no Jetson release; use the board's own TensorRT")
        raise ConfigError(f"{target.title}: with TensorRT-RTX give --target rtx and --compute-capability")
    numbers, first = parse_version(version), _first_version(target.compute_capability)
    if numbers < first:
        raise ConfigError(
            f"TensorRT {version} does not support {target.title} (compute capability {target.compute_capability}); "
            f"it needs {'.'.join(map(str, first))} or newer"
        )
    if not target.is_jetson:
        return
    if numbers < _FIRST_ON_JETPACK.get(numbers[0], ()):
        raise ConfigError(f"TensorRT {version} is not for JetPack; {target.title} has {', '.join(offered)}")
    if numbers[0] not in {parse_version(t)[0] for t in offered}:
        raise ConfigError(f"TensorRT {version} is not documented for {target.title}, which has {', '.join(offered)}")


def _first_version(capability: str) -> tuple[int, ...]:
    number = float(capability)
    for low, high, version in _FIRST_FOR_CAPABILITY:
        if number >= float(low) and (high is None or number <= float(high)):
            return version
    return parse_version(GENERATIONS[0].name)


def rtx_refusal(capability: str) -> str | None:
    """Returns the reason why TensorRT-RTX does not run on a GPU of that compute capability, or None."""
    if capability in _RTX_RUNS_ON or float(capability) >= float(_RTX_RUNS_FROM):
        return None
    return (
        f"TensorRT-RTX does not support compute capability {capability}; it runs on {', '.join(_RTX_RUNS_ON)} and on "
        f"{_RTX_RUNS_FROM} or newer; use TensorRT, with --target DEVICE and --backend tensorrt"
    )


def require_rtx_capability(capability: str, where: str) -> None:
    """Refuses a GPU that TensorRT-RTX does not run on.

    Args:
        capability: of the GPU.
        where: begins the message.

    Raises:
        ConfigError: with the GPUs that it runs on.
    """
    if reason := rtx_refusal(capability):
        raise ConfigError(f"{where}: {reason}")


def dla_refusal(version: str, target: Device | None) -> str | None:
    """Returns the reason why a DLA core cannot be used, or None."""
    if version == RTX:
        return "TensorRT-RTX does not support the DLA"
    if target is not None and target.num_dla_cores == 0:
        return f"{target.title} has no DLA"
    numbers = parse_version(version)
    if _WITHOUT_DLA[0] <= numbers < _WITHOUT_DLA[1]:
        return f"TensorRT {version} cannot use the DLA: 10.7 is the last 10.x with it, 11.4.1 has it again"
    if numbers >= _WITHOUT_DLA[1] and target is not None and not target.name.startswith("agx-orin"):
        return f"TensorRT {version} uses the DLA of AGX Orin only, not of {target.title}"
    return None


def dtype_refusal(dtype: str, version: str, capability: str | None) -> str | None:
    """Returns the reason why a data type cannot be computed there, or None.

    Args:
        dtype: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``; FP32 means products in FP32.
        version: of TensorRT, or ``"rtx"``.
        capability: compute capability, None where any will do.
    """
    known = generation(version)
    where = "TensorRT-RTX" if known.name == RTX else f"TensorRT {version}"
    if dtype in known.missing_dtypes:
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
    """The TensorRT and GPU that a graph is judged for; None where unknown.

    Args:
        version: of TensorRT, ``"rtx"``, or None: any of :data:`DEFAULT_SPAN`.
        capability: compute capability of the GPU, or None.
        title: for messages.
        target: ``"rtx"`` or the device's name; None where no GPU is named.
        weak: builder flags decide the types although the row lets the graph decide (``--weak``).
        note: sentence on an assumption.
    """

    version: str | None = None
    capability: str | None = None
    title: str = "TensorRT 10.3 to 11"
    target: str | None = None
    weak: bool = False
    note: str = ""

    @property
    def generation(self) -> Generation | None:
        """The row of its TensorRT."""
        return None if self.version is None else generation(self.version)

    @property
    def is_weak(self) -> bool:
        """True if a builder flag may turn FP32 into FP16."""
        return self.weak or (self.generation is not None and self.generation.typing == "weak")

    @property
    def is_rtx(self) -> bool:
        """True for TensorRT-RTX."""
        return self.version == RTX


def platform(target: str | None, version: str | None = None) -> Platform:
    """Returns the platform of a ``--target``.

    Args:
        target: ``"rtx"``, a device of :mod:`gft_edge.hardware.devices`, or None.
        version: of TensorRT; the device's newest by default.

    Raises:
        ConfigError: unknown device, or a version that does not run there.
    """
    if target is None:
        if version is None:
            return Platform()
        generation(version)  # refuses an unknown one
        return Platform(version, None, f"TensorRT {version}")
    if target == RTX:
        return Platform(RTX, None, "TensorRT-RTX", RTX)
    profile = device(target)
    note = "" if version else assumed_version(profile)
    version = version or default_version(profile)
    require_together(version, profile)
    title = f"TensorRT {version} on {profile.title}"
    return Platform(version, profile.compute_capability, title, profile.name, note=note)
