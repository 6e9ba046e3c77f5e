"""Recorded device trees and lines of nvidia-smi."""

from __future__ import annotations

import pytest

from gft_edge.errors import ConfigError
from gft_edge.hardware import this_device as this_gpu
from gft_edge.hardware.devices import device
from gft_edge.hardware.this_device import device_here, parse_gpu, power_mode, same_module


@pytest.mark.parametrize(
    ("model", "kilobytes", "name"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", 7802000, "orin-nano-8gb"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7802000, "orin-nano-8gb-super"),
        ("NVIDIA Jetson Orin Nano 4GB", 3800000, "orin-nano-4gb"),
        ("NVIDIA Orin NX Jetson", 15900000, "orin-nx-16gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 64328000, "agx-orin-64gb"),
        ("NVIDIA Jetson AGX Orin", 31433000, "agx-orin-32gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", 128790000, "thor-t5000"),
        ("NVIDIA Jetson Xavier NX Developer Kit", 7900000, "xavier-nx"),
    ],
)
def test_board_is_told_by_its_name_and_memory(tmp_path, model, kilobytes, name):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(model.encode() + b"\0")
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {kilobytes} kB\nMemFree: 1 kB\n")
    assert device_here(tmp_path).name == name


def test_unknown_board_is_refused(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Nano 2\0")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000000 kB\n")
    with pytest.raises(ConfigError, match="not one of the known Jetson modules"):
        device_here(tmp_path)


def test_card_is_read_from_nvidia_smi():
    found = parse_gpu("NVIDIA GeForce RTX 4090, 8.9, 24564")
    assert (found.name, found.title) == ("geforce-rtx-4090", "NVIDIA GeForce RTX 4090")
    assert (found.compute_capability, found.memory_gb, found.is_jetson) == ("8.9", 24, False)
    with pytest.raises(ConfigError, match="cannot read"):
        parse_gpu("No devices were found")


def test_machine_without_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(this_gpu.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="no NVIDIA GPU found here"):
        device_here(tmp_path)


def test_clocks_do_not_make_another_module():
    assert same_module(device("orin-nano-8gb"), device("orin-nano-8gb-super"))
    assert not same_module(device("orin-nano-8gb"), device("orin-nano-4gb"))


@pytest.mark.parametrize(
    ("text", "mode"), [("pmode:0002 fmode:quiet\n", "mode2"), ("pmode:0", "mode0"), ("?", None), (None, None)]
)
def test_power_mode_is_nvpmodels(tmp_path, text, mode):
    if text is not None:
        (tmp_path / "var/lib/nvpmodel").mkdir(parents=True)
        (tmp_path / "var/lib/nvpmodel/status").write_text(text)
    assert power_mode(tmp_path) == mode
