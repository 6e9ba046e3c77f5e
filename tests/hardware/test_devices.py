from __future__ import annotations

import dataclasses

import pytest

from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import ALIASES, DEVICES, device

NUM_SMS = {
    "orin-nano-4gb": 4,
    "orin-nano-4gb-super": 4,
    "orin-nano-8gb": 8,
    "orin-nano-8gb-super": 8,
    "orin-nx-8gb": 8,
    "orin-nx-8gb-super": 8,
    "orin-nx-16gb": 8,
    "orin-nx-16gb-super": 8,
    "agx-orin-32gb": 14,
    "agx-orin-64gb": 16,
    "thor-t5000": 20,
}


@pytest.mark.parametrize("name", NUM_SMS)
def test_peaks_of_modules_are_clock_times_sms_times_operations(name):
    profile = device(name)
    per_clock = 16384 if name.startswith("thor") else 4096
    expected = per_clock * NUM_SMS[name] * profile.gpu_mhz * 1e6 / 1e12
    assert profile.int8_tops == pytest.approx(expected, rel=0.01)
    assert profile.fp16_tflops == pytest.approx(expected / 2, rel=0.01)


@pytest.mark.parametrize("profile", DEVICES.values(), ids=lambda d: d.name)
def test_profiles_are_consistent(profile):
    assert DEVICES[profile.name] is profile
    capability = float(profile.compute_capability)
    assert (profile.fp8_tflops is not None) == (capability >= 8.9), "FP8 needs 8.9"
    assert profile.is_jetson == (profile.compute_capability in ("7.2", "8.7", "11.0"))
    assert profile.is_jetson or not profile.total_rails
    assert not (profile.num_dla_cores and profile.name.startswith(("orin-nano", "thor"))), "neither has a DLA"
    assert profile.source
    if profile.fp16_tflops is not None:
        assert profile.int8_tops == pytest.approx(2 * profile.fp16_tflops, rel=0.02)
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.name = "other"


def test_peak_by_precision():
    thor, nano, t4, xavier = device("thor"), device("orin-nano-8gb"), device("t4"), device("xavier-nx")
    assert (thor.peak("int8"), thor.peak("fp8"), thor.peak("bf16"), thor.peak("fp16")) == (517, 517, 258.5, 258.5)
    assert thor.peak("fp32") == 258.5 / 2
    assert nano.peak("fp8") is None
    assert (nano.peak("bf16"), t4.peak("bf16")) == (10.2, None)
    assert {xavier.peak(p) for p in ("fp32", "fp16", "bf16", "int8", "fp8")} == {None}


def test_rails_of_the_total():
    assert device("orin-nx").total_rails == ("VDD_IN",)
    assert device("agx-orin").total_rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert device("thor").total_rails == ("VIN",)
    assert device("l4").total_rails == ()


def test_short_names_and_spelling():
    assert device("orin-nano") is DEVICES["orin-nano-8gb-super"]
    assert device("Thor_T5000") is DEVICES["thor-t5000"]
    assert set(ALIASES.values()) <= set(DEVICES)
    assert not set(ALIASES) & set(DEVICES)


def test_unknown_device_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown device 'agx-orin-46gb' \(did you mean 'agx-orin-64gb'\?\); there are: "
    ):
        device("agx-orin-46gb")
