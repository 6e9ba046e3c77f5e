from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gft_edge.benchmarks.power import energy, ina3221
from gft_edge.benchmarks.power.meter import Load, measure_energy, open_meter
from gft_edge.benchmarks.power.recorded_log import log_energy
from gft_edge.benchmarks.power.source import Machine, total_rails
from gft_edge.errors import ConfigError, DataError
from gft_edge.hardware.environment import board, has_nvidia_driver
from gft_edge.hardware.jetson import board_conditions
from gft_edge.hardware.this_device import module_here

PATIENCE = 20
"""Seconds: on a busy machine the program that is started takes its time."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """A busy machine may hold up the sampling thread for much longer than its interval."""
    monkeypatch.setattr(energy, "MAX_GAP", 100)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """Nothing on PATH but the shell's own tools."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


def is_gone(file):
    """Whether the process of that number has ended and been waited for."""
    return not Path(f"/proc/{file.read_text().strip()}").exists()


def test_this_machine_has_no_power_source_and_says_why():
    if Path("/proc/driver/nvidia/version").exists() or Path("/etc/nv_tegra_release").exists():
        pytest.skip("this machine may have one")
    with open_meter("auto") as meter:
        assert not meter
        assert meter.source == "none"
        assert [reason.partition(":")[0] for reason in meter.reasons][:2] == ["ina3221", "tegrastats"]
        assert len(meter.reasons) == 3
        assert meter.unavailable.startswith("no power source (ina3221: no labelled power monitor below /sys/bus/i2c; ")
        ran = []
        measured = measure_energy(lambda: ran.append(1), meter, Load(1, accuracy=0.9), meter.idle())
    assert not ran
    assert measured.refused == meter.unavailable
    assert measured.mj_per_image is measured.idle_mw is None
    json.dumps(measured.to_json(), allow_nan=False)


def test_no_power_was_asked_for():
    with open_meter("none") as meter:
        assert meter.unavailable == "no power source (not asked for)"


@pytest.mark.parametrize("source", ["ina3221", "tegrastats"])
def test_source_asked_for_by_name_must_be_there(bare, source):
    with pytest.raises(ConfigError, match=f"^{source}: "), open_meter(source, Machine(bare)):
        raise AssertionError


def test_unknown_source():
    with (
        pytest.raises(ConfigError, match=r"unknown power source 'tegrastat' \(did you mean 'tegrastats'\?\)"),
        open_meter("tegrastat"),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("board", "rails", "milliwatts"),
    [
        ("orin-nano-super", ("VDD_IN",), 7905.216),
        ("agx-orin-64gb", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 3198.72 + 799.68 + 4514.4),
        ("thor-t5000", ("VIN",), 19780.2),
        ("xavier-nx-jp4", ("VDD_IN",), 3902),
    ],
)
def test_sysfs_of_each_board(plant, board, rails, milliwatts, monkeypatch):
    monkeypatch.setattr(ina3221, "INTERVAL_S", 0.005)
    with open_meter("auto", Machine(plant(board))) as meter:
        assert meter.source == "ina3221"
        idle = meter.idle(0.2)
        trace = meter.trace()
    assert trace.rails == rails
    assert idle.mean_mw == pytest.approx(milliwatts)
    assert trace.power_mw == pytest.approx([milliwatts] * len(trace.power_mw))
    assert trace.gpu_mhz[0] in (1020, 930.75, 1575, 1109.25)


def test_energy_of_requests(plant, monkeypatch):
    monkeypatch.setattr(ina3221, "INTERVAL_S", 0.005)
    with open_meter("ina3221", Machine(plant("orin-nano-super"))) as meter:
        idle = meter.idle(0.2)
        load = Load(4, seconds=0.2, settle_seconds=0.02, accuracy=0.5)
        measured = measure_energy(lambda: time.sleep(0.01), meter, load, idle)
    assert measured.refused is measured.idle_refused is None
    assert measured.num_images % 4 == 0
    assert measured.duration_s >= 0.2
    assert measured.coverage > 0.95
    assert measured.mj_per_image == pytest.approx(7905.216 * measured.duration_s / measured.num_images)
    assert measured.mj_per_correct_image == pytest.approx(2 * measured.mj_per_image)
    assert measured.net_mj_per_image == pytest.approx(0, abs=1e-6)


def test_power_that_changes_during_the_run_is_followed(plant, monkeypatch):
    monkeypatch.setattr(ina3221, "INTERVAL_S", 0.005)
    root = plant("orin-nano-super")
    current = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"

    def write(milliamperes):
        current.with_suffix(".new").write_text(str(milliamperes))
        current.with_suffix(".new").replace(current)

    with open_meter("ina3221", Machine(root)) as meter:
        write(1000)
        time.sleep(0.05)
        idle = meter.idle(0.2)
        load = Load(1, seconds=0.2, settle_seconds=0.05)
        measured = measure_energy(lambda: (write(3000), time.sleep(0.02)), meter, load, idle)
    assert measured.idle_mw == pytest.approx(5016)
    assert measured.mean_mw == pytest.approx(3 * 5016)
    assert measured.net_mj_per_image == pytest.approx(2 / 3 * measured.mj_per_image)


def test_rail_that_falls_silent_is_refused(plant, monkeypatch):
    monkeypatch.setattr(ina3221, "INTERVAL_S", 0.005)
    root = plant("orin-nano-super")
    folder = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    with open_meter("ina3221", Machine(root)) as meter:
        time.sleep(0.05)
        start = time.perf_counter()
        (folder / "curr1_input").unlink()
        time.sleep(0.15)
        window = meter.window(start, time.perf_counter())
    assert window.mean_mw is None
    assert "samples" in window.refused


def test_rails_without_a_known_total_are_refused(plant):
    root = plant("orin-nano-super")
    (root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label").write_text("VDD_NEW\n")
    with (
        pytest.raises(ConfigError, match="ina3221: rails VDD_CPU_GPU_CV, VDD_NEW, VDD_SOC are not known to make up"),
        open_meter("ina3221", Machine(root)),
    ):
        raise AssertionError


def test_forbidden_sysfs_says_sudo(plant, monkeypatch):
    root = plant("orin-nano-super")

    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, whom no file mode stops.
    channels = ina3221.find_channels(root)
    monkeypatch.setattr(ina3221, "find_channels", lambda root: channels)
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with (
        pytest.raises(ConfigError, match="ina3221: no permission to read .*; run with sudo"),
        open_meter("ina3221", Machine(root)),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("recorded", "milliwatts", "mhz"),
    [
        ("orin-nano-jp6", 12479, 621),
        ("agx-orin-32gb-r36-user", 1995 + 0 + 2524, None),
        ("agx-orin-jp72", 5139 + 3268 + 5500, 1300),
        ("thor-r38", 19780, 314),
    ],
)
def test_tegrastats_of_each_dialect(tegrastats, tmp_path, recorded, milliwatts, mhz, recorded_line):
    tegrastats(recorded_line(recorded))
    with open_meter("auto", Machine(tmp_path)) as meter:
        assert meter.source == "tegrastats"
        start = time.perf_counter()
        window = meter.window(start, start)
        while window.mean_mw is None and time.perf_counter() - start < PATIENCE:
            time.sleep(0.1)
            window = meter.window(start, time.perf_counter())
        trace = meter.trace()
    assert window.mean_mw == pytest.approx(milliwatts)
    assert set(trace.gpu_mhz) == {mhz}
    assert not [t for t in threading.enumerate() if t.name == "power meter"]
    assert is_gone(tmp_path / "pid")


def test_tegrastats_without_rails_says_sudo(tegrastats, tmp_path):
    tegrastats("RAM 1313/30697MB (lfb 37x4MB) CPU [0%@729,off] GR3D_FREQ 0% cpu@43.343C")
    with (
        pytest.raises(ConfigError, match="tegrastats: rails none are not known to make up .*; run with sudo"),
        open_meter("tegrastats"),
    ):
        raise AssertionError


@pytest.mark.parametrize(("text", "times"), [("must be run as root", 100), ("", 0)])
def test_tegrastats_that_says_nothing_useful(tegrastats, tmp_path, text, times):
    tegrastats(text, times)
    with (
        pytest.raises(ConfigError, match="tegrastats: .* prints nothing that can be read"),
        open_meter("tegrastats"),
    ):
        raise AssertionError


def test_tegrastats_that_dies_is_refused(tegrastats, tmp_path, recorded_line):
    tegrastats(recorded_line("thor-r38"), times=5)
    with open_meter("tegrastats") as meter:
        start = time.perf_counter()
        while meter.unavailable is None and time.perf_counter() - start < PATIENCE:
            time.sleep(0.05)
        window = meter.window(0, time.perf_counter())
        assert meter.unavailable == window.refused == "tegrastats stopped: the program ended"


def test_totals():
    assert total_rails(["VDD_SOC", "VDD_IN", "VDD_CPU_GPU_CV"]) == ("VDD_IN",)
    assert total_rails(["VIN_SYS_5V0", "VDD_GPU", "VIN"]) == ("VIN",)
    assert total_rails(["VIN_SYS_5V0", "VDD_GPU_SOC"]) is None
    assert total_rails([]) is None


@pytest.mark.parametrize(("name", "value"), [("seconds", 0), ("settle_seconds", -1), ("images_per_run", 0)])
def test_nothing_to_measure(name, value):
    with pytest.raises(ConfigError, match=rf"{name} must .*found .*{value}"):
        Load(**{"images_per_run": 1, name: value})


def test_recorded_log(recorded_line, tmp_path):
    recorded, file = recorded_line("agx-orin-jp72"), tmp_path / "tegrastats.log"
    file.write_text("\n".join([recorded] * 30 + [recorded.replace("5500mW/", "7500mW/", 1)] * 30 + [recorded[:200]]))
    found = log_energy(file, 0.1, 100)
    assert found.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert (found.num_samples, found.num_images) == (60, 590), "the line that is cut off has no sample"
    assert found.mean_mw == pytest.approx((13907 + 15907) / 2)


def test_recorded_log_that_cannot_be_used(recorded_line, tmp_path):
    def energy_of_log(text, interval_s=0.1):
        (tmp_path / "tegrastats.log").write_text(text)
        return log_energy(tmp_path / "tegrastats.log", interval_s, 100)

    late, early = recorded_line("agx-orin-jp72"), recorded_line("agx-orin-jp72").replace("09:08:28", "09:08:27")
    with pytest.raises(DataError, match="the clock goes backwards, from 2026-07-25 09:08:28 to 2026-07-25 09:08:27"):
        energy_of_log(f"{late}\n{early}")
    with pytest.raises(ConfigError, match="tegrastats log: rails none are not known"):
        energy_of_log("GR3D_FREQ 0%")
    with pytest.raises(ConfigError, match="interval must be above 0 s, found 0"):
        energy_of_log(late, 0)


def test_imports_neither_torch_nor_the_binding():
    code = "import sys, gft_edge.benchmarks.power.meter, gft_edge.benchmarks.roofline\n"
    code += "print('torch' in sys.modules, 'pynvml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.gpu
@pytest.mark.jetson
def test_power_of_this_gpu_or_board():
    if not has_nvidia_driver():
        pytest.skip("no NVIDIA driver here")
    with open_meter("auto") as meter:
        assert meter, meter.unavailable
        idle = meter.idle(3)
    assert idle.refused is None
    assert 500 < idle.mean_mw < 1_000_000
    if board() is not None:
        assert module_here() is not None
        assert board_conditions()["power_mode"]["name"]


def test_a_gpu_below_its_lock_is_told_with_the_energy(tegrastats, tmp_path, recorded_line):
    tegrastats(recorded_line("orin-nano-jp6"))
    with open_meter("tegrastats") as meter:
        slow, free = (
            measure_energy(lambda: time.sleep(0.01), meter, Load(1, 0.3, settle_seconds=0, locked_mhz=mhz))
            for mhz in (1020, None)
        )
    assert "GPU below its locked 1020 MHz in " in slow.to_json()["throttled"][0]
    assert "down to 621 MHz: it was throttled" in slow.throttled[0]
    assert free.throttled == ()


def test_energy_of_a_recorded_log(tmp_path, recorded_line):
    file = tmp_path / "tegra.log"
    file.write_text("\n".join([recorded_line("orin-nano-jp6")] * 61))
    measured = log_energy(file, 0.1, images_per_s=50, accuracy=0.8)
    assert measured.mj_per_image == pytest.approx(12479 / 50)
    assert measured.mj_per_correct_image == pytest.approx(12479 / 50 / 0.8)
    assert measured.num_images == 300
    file.write_text(recorded_line("orin-nano-jp6"))
    assert log_energy(file, 0.1, 50).refused == "the timed window lasts 0 s"
