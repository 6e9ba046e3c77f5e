"""Board trees follow the documentation of the kernel and of Jetson Linux; their values are chosen."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.hardware.jetson import (
    Clock,
    PowerMode,
    ThrottleCounts,
    board_conditions,
    cpu_clocks,
    gpu_clock,
    gpu_load,
    jetpack,
    l4t,
    locked_mhz,
    power_mode,
    power_mode_mark,
    power_modes,
    temperatures_c,
    throttle_counts,
    throttling,
    watch_board,
)
from gft_edge.hardware.this_device import device_here

BOARDS = Path(__file__).parents[1] / "recorded/boards"
NAMES = sorted(path.stem for path in BOARDS.glob("*.json") if not path.stem.startswith("pc-"))


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script on PATH, before everything else."""

    def make(name, script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return make


@pytest.mark.parametrize(
    ("board", "device", "release", "version"),
    [
        ("orin-nano-super", "orin-nano-8gb-super", "36.4.3", "6.2"),
        ("agx-orin-64gb", "agx-orin-64gb", "36.4.0", "6.1"),
        ("thor-t5000", "thor-t5000", "38.2.0", "7.0"),
        ("xavier-nx-jp4", "xavier-nx", "32.7.1", None),
    ],
)
def test_device_and_software(plant, board, device, release, version):
    root = plant(board)
    assert device_here(root).profile.name == device
    assert l4t(root) == release
    assert jetpack(l4t(root)) == version


@pytest.mark.parametrize(
    ("release", "version"),
    [("36.4.7", "6.2.1"), ("35.6.4", "5.1.6"), ("39.2.0", "7.2"), ("36.4.99", None), ("36", None), (None, None)],
)
def test_jetpack_is_not_guessed(release, version):
    assert jetpack(release) == version


def test_clocks_and_load(plant):
    root = plant("orin-nano-super")
    assert gpu_clock(root) == Clock(1020, 306, 1020)
    assert gpu_load(root) == 63.7
    assert cpu_clocks(root) == dict.fromkeys(("policy0", "policy4"), Clock(729.6, 729.6, 1728))


def test_a_lock_is_seen_by_equal_limits(plant):
    root = plant("orin-nano-super")
    assert locked_mhz(root) is None
    folder = next(root.glob("sys/class/devfreq/*/max_freq")).parent
    (folder / "min_freq").write_text((folder / "max_freq").read_text())
    assert locked_mhz(root) == gpu_clock(root).max


def test_thor_and_agx_paths(plant):
    root = plant("thor-t5000")
    assert gpu_clock(root) == Clock(1575, 315, 1575)
    assert gpu_load(root) is None
    assert gpu_load(plant("agx-orin-64gb")) == 100


def test_sleeping_and_absent_sensors_are_left_out(plant):
    assert temperatures_c(plant("orin-nano-super")) == {"cpu": 53.968, "gpu": 53.343, "tj": 53.968}


def test_throttle_counters(plant):
    root = plant("orin-nano-super")
    before = throttle_counts(root)
    assert before == ThrottleCounts({"oc1": 0, "oc2": 0, "oc3": 7}, {"cpu-throttle-alert": 0, "gpu-throttle-alert": 0})
    assert throttling(before, throttle_counts(root)) == []
    (root / "sys/class/hwmon/hwmon5/oc3_event_cnt").write_text("9\n")
    (root / "sys/class/hwmon/hwmon5/oc1_event_cnt").write_text("1\n")
    (root / "sys/class/thermal/cooling_device3/cur_state").write_text("1\n")
    assert throttling(before, throttle_counts(root)) == [
        "under-voltage: 1 throttle event (oc1)",
        "instantaneous over-current: 2 throttle events (oc3)",
        "gpu-throttle-alert is raised",
    ]


def test_counters_that_were_reset_count_from_zero():
    before, after = ThrottleCounts({"oc3": 7}, {}), ThrottleCounts({"oc3": 2}, {})
    assert throttling(before, after) == ["instantaneous over-current: 2 throttle events (oc3)"]
    assert throttling(before, ThrottleCounts({"oc3": 0}, {})) == []


def test_power_mode_by_the_program(plant, program):
    program("nvpmodel", 'test "$*" = "-q" && printf "NV Fan Mode:quiet\\nNV Power Mode: MAXN_SUPER\\n2\\n"')
    assert power_mode(plant("orin-nano-super")) == PowerMode("MAXN_SUPER", 2, "quiet")


@pytest.mark.parametrize(
    "script", ["exit 1", "echo permission denied >&2; exit 255", "echo NV Power Mode:", "exec sleep 30"]
)
def test_power_mode_by_the_files_when_the_program_fails(plant, program, script):
    program("nvpmodel", script)
    assert power_mode(plant("thor-t5000"), timeout_s=0.3) == PowerMode("120W", 1, "cool")


@pytest.mark.parametrize(
    ("text", "mark"), [("pmode:0002 fmode:quiet\n", "mode2"), ("pmode:0", "mode0"), ("?", None), (None, None)]
)
def test_mark_of_the_power_mode(tmp_path, text, mark):
    if text is not None:
        (tmp_path / "var/lib/nvpmodel").mkdir(parents=True)
        (tmp_path / "var/lib/nvpmodel/status").write_text(text)
    assert power_mode_mark(tmp_path) == mark


def test_power_mode_unknown(tmp_path):
    assert power_mode(tmp_path) == PowerMode(None, None, None)


def test_modes_of_a_board_by_name(plant):
    assert power_modes(plant("orin-nano-super")) == {"15W": 0, "25W": 1, "MAXN_SUPER": 2, "7W": 3}


@pytest.mark.parametrize("board", NAMES)
def test_conditions_are_plain_json(plant, board):
    conditions = board_conditions(plant(board))
    assert json.loads(json.dumps(conditions, allow_nan=False)) == conditions
    assert conditions["board"].startswith("NVIDIA Jetson")


def test_conditions_of_a_board(plant):
    conditions = board_conditions(plant("orin-nano-super"))
    assert conditions["device"] == "orin-nano-8gb-super"
    assert conditions["power_mode"] == {"name": "MAXN_SUPER", "number": 2, "fan": "quiet"}
    assert conditions["gpu_mhz"] == {"now": 1020, "min": 306, "max": 1020}
    assert conditions["memory_mb"] == 7619
    assert conditions["throttle"]["events"] == {"oc1": 0, "oc2": 0, "oc3": 7}


def test_board_is_watched_through_a_run(plant):
    root = plant("orin-nano-super")
    with watch_board(root) as record:
        assert record == {}
        (root / "sys/class/hwmon/hwmon5/oc3_event_cnt").write_text("10\n")
        (root / "sys/class/thermal/thermal_zone0/temp").write_text("70000\n")
    assert record["throttled"] == ["instantaneous over-current: 3 throttle events (oc3)"]
    assert (record["before"]["temperatures_c"]["cpu"], record["after"]["temperatures_c"]["cpu"]) == (53.968, 70)
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("variable", "release"),
    [("36.4.7", "36.4.7"), ("r36.4.3", "36.4.3"), ("39.2", "39.2"), ("unknown", None), ("", None)],
)
def test_release_in_a_container(tmp_path, monkeypatch, variable, release):
    monkeypatch.setenv("L4T_VERSION", variable)
    assert l4t(tmp_path) == release


def test_no_conditions_on_other_machines(tmp_path):
    assert board_conditions(tmp_path) == {}
    with watch_board(tmp_path) as record:
        pass
    assert record == {}
    assert board_conditions() == {}


@given(
    st.dictionaries(
        st.sampled_from(sorted(json.loads((BOARDS / "orin-nano-super.json").read_text()))), st.binary(max_size=60)
    )
)
def test_any_content_of_the_files_is_survived(tmp_path_factory, contents):
    root = tmp_path_factory.mktemp("board")
    tree = json.loads((BOARDS / "orin-nano-super.json").read_text())
    for path, text in tree.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents.get(path, (text or "").encode()))
    json.dumps(board_conditions(root), allow_nan=False)
    assert throttling(throttle_counts(root), throttle_counts(root)) is not None
