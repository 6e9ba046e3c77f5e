"""Power and clocks of a GPU by NVML, through the optional package nvidia-ml-py.

The binding is a parameter, so that what is tested without a GPU is what runs with one.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from gft_edge.errors import ConfigError, MissingExtraError

SLOWDOWNS = {
    "SwPowerCap": "held down by the power limit",
    "HwSlowdown": "hardware slowdown (power or temperature)",
    "SwThermalSlowdown": "held down by temperature (driver)",
    "HwThermalSlowdown": "held down by temperature (hardware)",
    "HwPowerBrakeSlowdown": "held down by the external power brake",
}
"""NVML's clocks event reasons that mean throttling."""


def load_nvml() -> ModuleType:
    """The binding.

    Raises:
        MissingExtraError: nvidia-ml-py is not installed.
    """
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        raise MissingExtraError("nvidia-ml-py", "power") from None


class NvmlGpu:
    """A GPU; open until :meth:`close`.

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
        """Lets go of NVML."""
        self._nvml.nvmlShutdown()

    def read_mw(self) -> float | None:
        """Board power now, mW; None when the driver does not answer.

        The instant reading where there is one: the plain one is an average over a second on Ampere and newer.
        """
        instant = self._read_instant_mw() if self.has_instant else None
        if instant is not None:
            return instant
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle))
        except self._nvml.NVMLError:
            return None

    def read_mhz(self) -> float | None:
        """Clock of the multiprocessors now."""
        try:
            return float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
        except self._nvml.NVMLError:
            return None

    def slowdowns(self) -> list[str]:
        """Why the clock is held down now, in words; empty when it is not or the driver does not say."""
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
