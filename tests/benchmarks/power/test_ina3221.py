from __future__ import annotations

import pytest

from gft_edge.benchmarks.power.ina3221 import find_channels, read_rails


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        ("orin-nano-super", {"VDD_IN": 7905.216, "VDD_CPU_GPU_CV": 1203.84, "VDD_SOC": 2043.264}),
        (
            "agx-orin-64gb",
            {"VDD_GPU_SOC": 3198.72, "VDD_CPU_CV": 799.68, "VIN_SYS_5V0": 4514.4, "VDDQ_VDD2_1V8AO": 501.6},
        ),
        (
            "thor-t5000",
            {"VDD_GPU": 1964.064, "VDD_CPU_SOC_MSS": 5892.192, "VIN_SYS_5V0": 5632.968, "VIN": 19780.2},
        ),
        ("xavier-nx-jp4", {"VDD_IN": 3902.0, "VDD_CPU_GPU_CV": 610.0}),
    ],
)
def test_rails_of_each_layout(plant, board, expected):
    channels = find_channels(plant(board))
    assert [c.rail for c in channels] == sorted(expected)
    assert read_rails(channels) == pytest.approx(expected)


def test_the_same_monitor_reached_by_two_links_counts_once(plant):
    root = plant("orin-nano-super")
    devices = root / "sys/bus/i2c/devices"
    devices.mkdir(parents=True)
    (devices / "1-0040").symlink_to(root / "sys/bus/i2c/drivers/ina3221/1-0040")
    assert len(find_channels(root)) == 3


def test_monitors_without_the_driver_folder_are_found_by_the_bus(plant):
    root = plant("orin-nano-super")
    (root / "sys/bus/i2c/devices").mkdir(parents=True)
    (root / "sys/bus/i2c/drivers/ina3221/1-0040").rename(root / "sys/bus/i2c/devices/1-0040")
    assert [c.rail for c in find_channels(root)] == ["VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC"]


@pytest.mark.parametrize("text", ["", "soon", "--5", "5-", "9" * 30, "٣", None])
def test_channel_that_answers_no_number_is_left_out(plant, text):
    name = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"
    root = plant("xavier-nx-jp4")
    channels = find_channels(root)
    (root / "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0/in_power0_input").write_text("x")
    assert read_rails(channels) == {"VDD_CPU_GPU_CV": 610.0}
    root = plant("orin-nano-super", **{name: text})
    rails = read_rails(find_channels(root))
    assert "VDD_SOC" in rails
    assert "VDD_IN" not in rails


def test_nothing_on_other_machines(tmp_path):
    assert find_channels(tmp_path) == ()
    assert read_rails(()) == {}
