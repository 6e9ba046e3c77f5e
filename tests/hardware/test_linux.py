from gft_edge.hardware.linux import read_clocks


def _write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_clocks_and_temperatures_of_a_tree(tmp_path):
    cpu, thermal = "sys/devices/system/cpu/cpufreq", "sys/class/thermal"
    _write(
        tmp_path,
        {
            f"{cpu}/policy0/scaling_governor": "schedutil\n",
            f"{cpu}/policy0/scaling_cur_freq": "1510400\n",
            f"{cpu}/policy4/scaling_governor": "performance\n",
            f"{cpu}/policy4/scaling_cur_freq": "junk\n",
            f"{thermal}/thermal_zone0/type": "cpu-thermal\n",
            f"{thermal}/thermal_zone0/temp": "53968\n",
        },
    )
    found = read_clocks(tmp_path)
    assert found["governors"] == {"policy0": "schedutil", "policy4": "performance"}
    assert found["cpu_mhz"] == {"policy0": 1510.4}
    assert found["temperatures_c"] == {"cpu": 53.968}
    assert found["gpu_mhz"] is None


def test_a_machine_that_tells_nothing(tmp_path):
    assert read_clocks(tmp_path) == {"governors": {}, "cpu_mhz": {}, "gpu_mhz": None, "temperatures_c": {}}
