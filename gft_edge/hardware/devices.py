"""Device profiles: the limits of each GPU and Jetson module, as data with sources, and the marks that identify a module.

Peaks are dense (without 2:4 sparsity) and of the GPU alone. NVIDIA's headline TOPS of Jetson modules are sparse and include
the DLA, so they are two to six times higher. A "super" profile is the same module at the clocks JetPack 6.2 and newer allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from gft_edge.errors import ConfigError, did_you_mean

PeakPrecision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
"""Precisions that have a peak."""


@dataclass(frozen=True)
class Device:
    """A GPU or module, at the highest clocks its profile allows.

    Attributes:
        name: on the command line.
        title: for tables.
        compute_capability: for example ``"8.7"``.
        fp16_tflops, int8_tops, fp8_tflops: dense peaks; None where the hardware lacks it or no figure is known.
        bandwidth_gb_s: of the memory, 1e9 bytes per second.
        memory_gb: nominal; on a Jetson shared by CPU and GPU.
        l2_mb: last-level cache of the GPU; weights that fit in it are read from memory once.
        num_dla_cores: DLA cores TensorRT can target.
        is_jetson: True for a Jetson module.
        total_rails: power rails whose sum is the power of the whole module; empty where NVML reports it or it is unknown.
        gpu_mhz: highest GPU clock, None where unknown.
        tensorrt: TensorRT versions in its JetPack releases, oldest first; empty where unknown.
        source: document of the figures.
    """

    name: str
    title: str
    compute_capability: str
    fp16_tflops: float | None
    int8_tops: float | None
    fp8_tflops: float | None
    bandwidth_gb_s: float
    memory_gb: int
    l2_mb: float
    num_dla_cores: int
    is_jetson: bool
    total_rails: tuple[str, ...]
    gpu_mhz: int | None
    tensorrt: tuple[str, ...]
    source: str

    def peak(self, precision: PeakPrecision) -> float | None:
        """Returns the dense peak in 1e12 operations per second; a multiply-accumulate counts as two.

        FP32 has the rate of TF32 tensor cores, half of FP16: no GPU here is faster, some are slower.
        """
        if precision == "int8":
            return self.int8_tops
        if precision == "fp8":
            return self.fp8_tflops
        if precision == "bf16" and not self.has_bf16:
            return None
        if self.fp16_tflops is None:
            return None
        return self.fp16_tflops / 2 if precision == "fp32" else self.fp16_tflops

    @property
    def has_bf16(self) -> bool:
        """True with BF16 tensor cores: Ampere (8.0) and newer."""
        return float(self.compute_capability) >= 8


_MODULE = (
    "NVIDIA module data sheet; dense peaks derived from SMs x clock x operations (4096 INT8 per clock and Orin SM)"
)
_THOR = "NVIDIA Thor data sheet; dense peaks derived from SMs x clock x 16384 FP8 or INT8 operations"
_XAVIER = "NVIDIA module data sheet; only sparse-free headline TOPS with DLA are published, so no GPU peak is given"
_CARD = "NVIDIA data sheet, dense"

_ORIN_RAILS = ("VDD_IN",)
_AGX_ORIN_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")  # no total rail; VDDQ_VDD2_1V8AO is inside VIN_SYS_5V0
_THOR_RAILS = ("VIN",)

_ORIN_TENSORRT = ("8.5", "8.6", "10.3", "10.7", "10.16")
_AGX_ORIN_TENSORRT = (*_ORIN_TENSORRT, "11.4.1")  # its release notes name AGX Orin and Thor only
_THOR_TENSORRT = ("10.13", "10.16", "11.4.1")


def _orin(
    name: str, title: str, peaks: tuple[float, float], bandwidth: float, memory: int, dla: int, gpu_mhz: int
) -> Device:
    fp16, int8 = peaks
    agx = name.startswith("agx")
    return Device(
        name=name,
        title=title,
        compute_capability="8.7",
        fp16_tflops=fp16,
        int8_tops=int8,
        fp8_tflops=None,
        bandwidth_gb_s=bandwidth,
        memory_gb=memory,
        l2_mb=4,
        num_dla_cores=dla,
        is_jetson=True,
        total_rails=_AGX_ORIN_RAILS if agx else _ORIN_RAILS,
        gpu_mhz=gpu_mhz,
        tensorrt=_AGX_ORIN_TENSORRT if agx else _ORIN_TENSORRT,
        source=_MODULE,
    )


def _thor(name: str, title: str, peaks: tuple[float, float], memory: int, gpu_mhz: int | None) -> Device:
    fp16, int8 = peaks
    return Device(
        name, title, "11.0", fp16, int8, int8, 273, memory, 32, 0, True, _THOR_RAILS, gpu_mhz, _THOR_TENSORRT, _THOR
    )


def _xavier(name: str, title: str, bandwidth: float, memory: int, gpu_mhz: int) -> Device:
    return Device(name, title, "7.2", None, None, None, bandwidth, memory, 0.5, 2, True, (), gpu_mhz, ("8.5",), _XAVIER)


def _card(
    name: str,
    title: str,
    compute_capability: str,
    peaks: tuple[float, float],
    fp8: float | None,
    bandwidth: float,
    memory: int,
    l2: float,
) -> Device:
    fp16, int8 = peaks
    return Device(
        name, title, compute_capability, fp16, int8, fp8, bandwidth, memory, l2, 0, False, (), None, (), _CARD
    )


_PROFILES = (
    _orin("orin-nano-4gb", "Jetson Orin Nano 4GB", (5.1, 10.2), 34, 4, 0, 625),
    _orin("orin-nano-4gb-super", "Jetson Orin Nano 4GB (super)", (8.4, 16.7), 51, 4, 0, 1020),
    _orin("orin-nano-8gb", "Jetson Orin Nano 8GB", (10.2, 20.5), 68, 8, 0, 625),
    _orin("orin-nano-8gb-super", "Jetson Orin Nano 8GB (super)", (16.7, 33.4), 102, 8, 0, 1020),
    _orin("orin-nx-8gb", "Jetson Orin NX 8GB", (12.5, 25.1), 102.4, 8, 1, 765),
    _orin("orin-nx-8gb-super", "Jetson Orin NX 8GB (super)", (19.2, 38.4), 102.4, 8, 1, 1173),
    _orin("orin-nx-16gb", "Jetson Orin NX 16GB", (15.0, 30.1), 102.4, 16, 2, 918),
    _orin("orin-nx-16gb-super", "Jetson Orin NX 16GB (super)", (19.2, 38.4), 102.4, 16, 2, 1173),
    _orin("agx-orin-32gb", "Jetson AGX Orin 32GB", (26.7, 53.3), 204.8, 32, 2, 930),
    _orin("agx-orin-64gb", "Jetson AGX Orin 64GB", (42.5, 85.0), 204.8, 64, 2, 1300),
    _thor("thor-t4000", "Jetson Thor T4000", (150.0, 300.0), 64, None),
    _thor("thor-t5000", "Jetson Thor T5000", (258.5, 517.0), 128, 1575),
    _xavier("xavier-nx", "Jetson Xavier NX", 59.7, 8, 1100),
    _xavier("agx-xavier", "Jetson AGX Xavier", 136.5, 32, 1377),
    _card("t4", "T4", "7.5", (65, 130), None, 320, 16, 4),
    _card("a100-40gb", "A100 40GB", "8.0", (312, 624), None, 1560, 40, 40),
    _card("a100-80gb", "A100 80GB", "8.0", (312, 624), None, 2040, 80, 40),
    _card("l4", "L4", "8.9", (121, 242), 242, 300, 24, 48),
    _card("l40s", "L40S", "8.9", (362, 733), 733, 864, 48, 96),
    _card("h100", "H100 SXM", "9.0", (989, 1979), 1979, 3350, 80, 50),
    _card("h200", "H200", "9.0", (989, 1979), 1979, 4800, 141, 50),
    _card("b200", "B200", "10.0", (2250, 4500), 4500, 8000, 180, 126),
)

DEVICES: Mapping[str, Device] = MappingProxyType({profile.name: profile for profile in _PROFILES})
"""Profiles by name."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "orin-nano": "orin-nano-8gb-super",
        "orin-nx": "orin-nx-16gb-super",
        "agx-orin": "agx-orin-64gb",
        "thor": "thor-t5000",
        "a100": "a100-80gb",
    }
)
"""Short names: the common module at its highest clocks, so that a bound holds in every power mode."""


PARTS: Mapping[str, str] = MappingProxyType(
    {
        "p3767-0000": "orin-nx-16gb",
        "p3767-0001": "orin-nx-8gb",
        "p3767-0003": "orin-nano-8gb",
        "p3767-0004": "orin-nano-4gb",
        "p3767-0005": "orin-nano-8gb",
        "p3701-0000": "agx-orin-64gb",  # first developer kit: the larger GPU, with 32 GB
        "p3701-0004": "agx-orin-32gb",
        "p3701-0005": "agx-orin-64gb",
        "p3834-0008": "thor",  # T4000 and T5000; the memory decides
        "p3668": "xavier-nx",
        "p2888": "agx-xavier",
    }
)
"""Part number in the device tree's ``compatible``, and the start of the names of the profiles it can be."""

MODEL_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "agx orin": "agx-orin",
        "orin nano": "orin-nano",
        "orin nx": "orin-nx",
        "thor": "thor",
        "xavier nx": "xavier-nx",
        "agx xavier": "agx-xavier",
    }
)
"""Words of the device tree's model name, for boards without a known part number, and the start of the profiles' names."""

FAMILIES = ("orin", "xavier", "thor")
"""Words that programs print for the GPU of any module of a family."""


def device(name: str) -> Device:
    """Returns the profile of that name or short name.

    Raises:
        ConfigError: no such device, with the nearest name.
    """
    wanted = name.strip().lower().replace("_", "-")
    wanted = ALIASES.get(wanted, wanted)
    if wanted not in DEVICES:
        known = [*ALIASES, *DEVICES]
        raise ConfigError(f"unknown device {name!r}{did_you_mean(wanted, known)}; there are: {', '.join(known)}")
    return DEVICES[wanted]
