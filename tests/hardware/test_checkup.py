"""What to do next, on recorded boards and a PC."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gft_edge.cli.main import main
from gft_edge.errors import ConfigError
from gft_edge.hardware.checkup import Memory, checkup, read_memory, software_actions
from gft_edge.hardware.installed import TensorRTParts, debian_packages, system_python, tensorrt_parts
from gft_edge.hardware.jetson import power_mode

DPKG = "var/lib/dpkg/status"


def commands(state):
    return [action.command for action in state.actions]


def problems(state):
    return [action.why for action in state.actions if action.is_problem]


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        ("orin-nano-super", ("Jetson Orin Nano 8GB (super)", "36.4.3", "6.2", "10.3.0.30", "3.10", "MAXN_SUPER", 1020)),
        ("agx-orin-64gb", ("Jetson AGX Orin 64GB", "36.4.0", "6.1", "10.3.0.30", "3.10", "MAXN", 930.75)),
        ("thor-t5000", ("Jetson Thor T5000", "38.2.0", "7.0", "10.13.3.9", "3.12", "120W", 1575)),
    ],
)
def test_state_of_a_board(plant, board, expected):
    state = checkup(plant(board))
    found = (state.module, state.l4t, state.jetpack, state.tensorrt.library, state.python, state.mode.name)
    assert (*found, state.gpu_mhz) == expected
    assert state.tensorrt == TensorRTParts(*[expected[3]] * 3)
    assert state.own_python is None
    assert state.locked_mhz is None
    assert problems(state) == []
    assert commands(state)[-3:] == [
        "sudo jetson_clocks",
        "gft-edge build ARTIFACT --target this-gpu",
        "gft-edge verify ARTIFACT --backend tensorrt",
    ]
    assert json.loads(json.dumps(state.to_json()))["module"] == expected[0]


def test_a_small_board_needs_swap_on_a_disk_and_free_memory(plant):
    state = checkup(plant("orin-nano-super"))
    assert state.memory == Memory(7619, 1435, 3809, 3809)
    why = [action.why for action in state.actions]
    assert "3809 MiB of swap are in memory too" in why[0]
    assert "fallocate" in state.actions[0].command
    assert "1435 MiB of memory are free" in why[1]
    assert "instantaneous over-current 7 times" in why[2]
    with_swap = plant(
        "orin-nano-super",
        **{"proc/swaps": "Filename Type Size Used Priority\n/swap file 8388604 0 -2\n"},
    )
    meminfo = (with_swap / "proc/meminfo").read_text().replace("3901392", "8388604").replace("1469440", "5469440")
    (with_swap / "proc/meminfo").write_text(meminfo)
    assert not any("swapon" in command or "isolate" in command for command in commands(checkup(with_swap)))
    (with_swap / "proc/swaps").unlink()
    (with_swap / "proc/meminfo").write_text("MemTotal:        7802876 kB\n")
    assert read_memory(with_swap) == Memory(7619, None, None, 0)
    assert "there is no swap" in checkup(with_swap).actions[0].why


def test_a_locked_board_in_its_fastest_mode_is_ready(plant):
    root = plant("agx-orin-64gb")
    (root / "sys/class/devfreq/17000000.gpu/min_freq").write_text("1300500000\n")
    state = checkup(root)
    assert state.locked_mhz == 1300.5
    assert commands(state) == [
        "gft-edge build ARTIFACT --target this-gpu",
        "gft-edge verify ARTIFACT --backend tensorrt",
    ]


def test_the_program_of_this_machine_does_not_answer_for_a_recorded_board(plant, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("bin")
    (folder / "nvpmodel").write_text('#!/bin/sh\nprintf "NV Power Mode: 7W\\n3\\n"\n')
    (folder / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert power_mode(plant("thor-t5000")).name == "7W"
    assert checkup(plant("thor-t5000")).mode.name == "120W"


def test_the_fastest_mode_is_offered_by_its_number_on_this_board(plant):
    assert "sudo nvpmodel -m 0" in commands(checkup(plant("thor-t5000")))
    root = plant("orin-nano-super", **{"var/lib/nvpmodel/status": "pmode:0003\n"})
    assert "sudo nvpmodel -m 2" in commands(checkup(root))


@pytest.mark.parametrize(("package", "part"), [("python3-libnvinfer", "bindings"), ("libnvinfer-bin", "trtexec")])
def test_parts_of_tensorrt_that_differ_are_a_problem(plant, package, part):
    root = plant("orin-nano-super")
    text = (root / DPKG).read_text()
    head, tail = text.split(f"Package: {package}\n")
    (root / DPKG).write_text(f"{head}Package: {package}\n{tail.replace('10.3.0.30', '10.7.0.23', 1)}")
    (problem,) = problems(checkup(root))
    assert f"{part} 10.7.0.23" in problem
    assert "library 10.3.0.30" in problem


def test_missing_parts_are_named_with_their_packages(plant):
    root = plant("agx-orin-64gb", **{DPKG: ""})
    state = checkup(root)
    assert state.tensorrt == TensorRTParts(None, None, None)
    assert state.actions[0].command == "sudo apt install tensorrt python3-libnvinfer libnvinfer-bin"
    file = root / "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0"
    file.parent.mkdir(parents=True)
    file.touch()
    (file.parent / "libnvinfer.so.10").touch()
    state = checkup(root)
    assert state.tensorrt.library == "10.3.0"
    assert state.actions[0].command == "sudo apt install python3-libnvinfer libnvinfer-bin"


def test_a_tensorrt_that_is_too_old_is_a_problem(plant):
    root = plant("agx-orin-64gb")
    (root / DPKG).write_text((root / DPKG).read_text().replace("10.3.0.30", "8.5.2"))
    assert any("TensorRT 8.5.2" in problem for problem in problems(checkup(root)))


def test_the_python_of_this_process_must_be_the_systems(plant):
    state = dataclasses.replace(checkup(plant("orin-nano-super")), own_python="3.11.2")
    (action,) = software_actions(state)
    assert "this is Python 3.11.2" in action.why
    assert action.command.startswith("python3.10 -m venv --system-site-packages")
    assert not software_actions(dataclasses.replace(state, own_python="3.10.12"))


def test_old_releases(plant):
    state = checkup(plant("xavier-nx-jp4"))
    (action,) = state.actions
    assert "L4T 32.7.1" in action.why
    assert "use another board" in action.why
    orin = plant("agx-orin-64gb", **{"etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 1\n"})
    (action,) = checkup(orin).actions
    assert "flash JetPack 6" in action.why


def test_a_container_without_the_release_file(plant, monkeypatch):
    monkeypatch.delenv("L4T_VERSION", raising=False)
    root = plant("orin-nano-super")
    (root / "etc/nv_tegra_release").unlink()
    first = checkup(root).actions[0]
    assert first.is_problem
    assert "nv_tegra_release" in first.command


def test_a_pc(plant):
    root = plant("pc-rtx")
    state = checkup(root)
    assert (state.board, state.driver, state.tensorrt.library) == (None, True, "10.13.3.9")
    assert commands(state) == ["gft-edge build ARTIFACT --target this-gpu"]
    (root / DPKG).write_text((root / DPKG).read_text().replace("10.13.3.9", "10.14.1.1", 1))
    assert problems(checkup(root))
    (root / DPKG).unlink()
    assert commands(checkup(root)) == ["pip install 'gft-edge[trt]'"]
    (root / "proc/driver/nvidia/version").unlink()
    assert "gft-edge build ARTIFACT --target orin-nano --plan" in commands(checkup(root))


def test_only_installed_packages_count(plant):
    root = plant("thor-t5000")
    assert debian_packages(("libnvinfer-samples", "python3"), root) == {"python3": "3.12.3"}
    assert (system_python(root), tensorrt_parts(root).trtexec) == ("3.12", "10.13.3.9")


def test_a_folder_without_a_system_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"no folder with proc/ or sys/"):
            checkup(folder)


def test_the_verb_shows_a_recorded_board(plant, capsys):
    root = str(plant("orin-nano-super"))
    assert main(["doctor", "--root", root]) == 0
    shown = capsys.readouterr().out
    for text in (
        "Jetson Orin Nano 8GB (super)",
        "L4T 36.4.3, JetPack 6.2, Python 3.10",
        "library 10.3.0.30, bindings 10.3.0.30, trtexec 10.3.0.30",
        "mode MAXN_SUPER, GPU 1020 MHz, not locked, hottest sensor 54 C",
        "1435 of 7619 MiB free, swap 3809 MiB, 3809 of it zram",
        "what to do next\n 1. 7619 MiB of memory and",
        "    sudo jetson_clocks",
    ):
        assert text in shown
    assert main(["doctor", "--root", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkup"]["mode"]["number"] == 2
    assert main(["doctor", "--root", f"{root}/none"]) == 2


def test_the_verb_shows_a_recorded_pc(plant, capsys):
    assert main(["doctor", "--root", str(plant("pc-rtx"))]) == 0
    shown = capsys.readouterr().out
    assert "none (a PC, with an NVIDIA driver)" in shown
    assert " 1. build engines for this GPU" in shown
