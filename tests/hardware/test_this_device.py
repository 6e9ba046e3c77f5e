"""Device trees by part number and by name, and lines of nvidia-smi."""

from __future__ import annotations

import pytest

from gft_edge.errors import ConfigError
from gft_edge.hardware import this_device
from gft_edge.hardware.devices import DEVICES, MODEL_WORDS, PARTS, device
from gft_edge.hardware.this_device import device_here, module_here, parse_gpu, same_module


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
def test_board_without_a_known_part_is_recognised_by_name_and_memory(tmp_path, model, kilobytes, name):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(model.encode() + b"\0")
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {kilobytes} kB\nMemFree: 1 kB\n")
    found = device_here(tmp_path)
    assert found.profile.name == name
    assert "in the name of the board" in found.evidence and f"{kilobytes / 1e6:.1f} GB" in found.evidence


@pytest.mark.parametrize(
    ("part", "model", "kilobytes", "name"),
    [
        ("p3767-0005", "NVIDIA Jetson Orin Nano Developer Kit", 7802000, "orin-nano-8gb"),
        ("p3767-0000", "NVIDIA Jetson Orin Nano Developer Kit", 7802000, "orin-nx-16gb"),
        ("p3701-0000", "NVIDIA Jetson AGX Orin Developer Kit", 31433000, "agx-orin-64gb"),
        ("p3701-0004", "NVIDIA Jetson AGX Orin Developer Kit Super", 31433000, "agx-orin-32gb"),
        ("p3834-0008", "NVIDIA Jetson AGX Thor Developer Kit", 64395264, "thor-t4000"),
        ("p3834-0008", "NVIDIA Jetson AGX Thor Developer Kit", None, "thor-t5000"),
        ("p3767-0003", "a carrier board of another company", None, "orin-nano-8gb"),
    ],
)
def test_part_number_decides_before_the_name(tmp_path, part, model, kilobytes, name):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_text(f"nvidia,p3737-0000+{part}\0nvidia,tegra\0")
    (tmp_path / "proc/device-tree/model").write_text(model + "\0")
    if kilobytes is not None:
        (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {kilobytes} kB\n")
    found = module_here(tmp_path)
    assert found == device_here(tmp_path)
    assert found.profile.name == name
    assert part in found.evidence


@pytest.mark.parametrize("start", sorted({*PARTS.values(), *MODEL_WORDS.values()}))
def test_every_mark_of_a_board_leads_to_a_profile(start):
    assert any(profile.is_jetson and profile.name.startswith(start) for profile in DEVICES.values())


def test_other_machine_has_no_module(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_text("raspberrypi,5-model-b\0brcm,bcm2712\0")
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B\0")
    assert module_here(tmp_path) is None


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


@pytest.mark.parametrize("unknown", ["[N/A]", "[Not Supported]"])
def test_card_without_memory_of_its_own_has_that_of_the_machine(unknown):
    found = parse_gpu(f"NVIDIA GB10, 12.1, {unknown}", 125_513_260)
    assert (found.name, found.compute_capability, found.memory_gb) == ("gb10", "12.1", 120)
    assert parse_gpu("NVIDIA L4, 8.9, 23034", 125_513_260).memory_gb == 22
    with pytest.raises(ConfigError, match="has no memory, .*; give --target DEVICE"):
        parse_gpu(f"NVIDIA GB10, 12.1, {unknown}")


def test_machine_gives_its_memory_to_such_a_card(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA GB10, 12.1, [N/A]'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 125513260 kB\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert device_here(tmp_path).profile.memory_gb == 120


def test_machine_without_a_gpu_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(this_device.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="no NVIDIA GPU found here"):
        device_here(tmp_path)


def test_clocks_do_not_make_another_module():
    assert same_module(device("orin-nano-8gb"), device("orin-nano-8gb-super"))
    assert not same_module(device("orin-nano-8gb"), device("orin-nano-4gb"))


@pytest.mark.parametrize(
    ("program", "says"), [("#!/bin/sh\nexec sleep 60\n", "no answer in 0.2 s"), ("no program", "cannot be run")]
)
def test_nvidia_smi_that_hangs_or_cannot_run_is_one_line(tmp_path, monkeypatch, program, says):
    (tmp_path / "nvidia-smi").write_text(program)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(this_device, "TIMEOUT_S", 0.2)
    with pytest.raises(ConfigError, match=says):
        device_here(tmp_path)
