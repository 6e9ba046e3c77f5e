"""Power and clocks of a GPU by NVML, through the optional package nvidia-ml-py.

The binding is a parameter, so that tests without a GPU run the same code.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from gft_edge.benchmarks.power.source import Machine, Reading, Source
from gft_edge.errors import ConfigError, MissingExtraError

INTERVAL_S = 0.1
SLOWDOWNS = {
    "SwPowerCap": "held down by the power limit",
    "HwSlowdown": "hardware slowdown (power or temperature)",
    "SwThermalSlowdown": "held down by temperature (driver)",
    "HwThermalSlowdown": "held down by temperature (hardware)",
    "HwPowerBrakeSlowdown": "held down by the external power brake",
}
"""NVML's clocks event reasons that mean throttling."""


def load_nvml() -> ModuleType:
    """Imports the binding.

    Raises:
        MissingExtraError: nvidia-ml-py is not installed.
    """
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        raise MissingExtraError("nvidia-ml-py", "power") from None


class NvmlGpu:
    """A GPU whose power is read; open until :meth:`close`.

    Args:
        nvml: the module pynvml.
        index: of the GPU in NVML's order, which is that of the PCI bus and ignores CUDA_VISIBLE_DEVICES.

    Raises:
        ConfigError: no driver, no such GPU, or one that does not report its power.
    """

    def __init__(self, nvml: ModuleType, index: int = 0) -> None:
        self._nvml = nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise ConfigError(f"NVML: {error}") from None
        try:
            self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
            self.name = _text(nvml.nvmlDeviceGetName(self._handle))
            self.has_instant = self._read_instant_mw() is not None
            nvml.nvmlDeviceGetPowerUsage(self._handle)
        except nvml.NVMLError as error:
            nvml.nvmlShutdown()
            raise ConfigError(f"NVML, GPU {index}: power cannot be read ({error})") from None

    def close(self) -> None:
        """Shuts NVML down."""
        self._nvml.nvmlShutdown()

    def read_mw(self) -> float | None:
        """Returns the present board power in mW; None if the driver does not answer.

        Takes the instant reading where the GPU has it: the plain one is an average over a second on Ampere and newer.
        """
        instant = self._read_instant_mw() if self.has_instant else None
        if instant is not None:
            return instant
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle))
        except self._nvml.NVMLError:
            return None

    def read_mhz(self) -> float | None:
        """Returns the present clock of the multiprocessors."""
        try:
            return float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
        except self._nvml.NVMLError:
            return None

    def slowdowns(self) -> list[str]:
        """Returns the reasons why the clock is held down, in words; empty if it is not or the driver does not report it."""
        try:
            reasons = self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        except (self._nvml.NVMLError, AttributeError):
            return []
        bits = {name: int(getattr(self._nvml, f"nvmlClocksEventReason{name}", 0)) for name in SLOWDOWNS}
        return [text for name, text in SLOWDOWNS.items() if reasons & bits[name]]

    def _read_instant_mw(self) -> float | None:
        try:
            value: Any = self._nvml.nvmlDeviceGetFieldValues(self._handle, [self._nvml.NVML_FI_DEV_POWER_INSTANT])[0]
        except (self._nvml.NVMLError, AttributeError):
            return None
        return float(value.value.uiVal) if value.nvmlReturn == self._nvml.NVML_SUCCESS else None


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def open_source(machine: Machine) -> Source:
    """Opens a GPU.

    Raises:
        ConfigError: as :class:`NvmlGpu`.
        MissingExtraError: nvidia-ml-py is not installed.
    """
    gpu = NvmlGpu(load_nvml(), machine.gpu)
    rail = f"{gpu.name} board"

    def readings(stop: threading.Event) -> Iterator[Reading]:
        while not stop.wait(INTERVAL_S):
            power = gpu.read_mw()
            rails = {} if power is None else {rail: power}
            yield Reading(time.perf_counter(), rails, gpu.read_mhz(), tuple(gpu.slowdowns()))

    return Source("nvml", (rail,), INTERVAL_S, readings, gpu.close)
