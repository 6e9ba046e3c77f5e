"""Recorded lines of five boards; core lists shortened in their source are written out again, one keeps its ellipses."""

from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.benchmarks.power.tegrastats import (
    Core,
    Rail,
    TegraStats,
    TegrastatsProcess,
    parse_line,
    parse_log,
    read_log,
)
from gft_edge.errors import DataError

DATA = Path(__file__).parents[2] / "recorded/tegrastats"
LINES = {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(DATA.glob("*.txt"))}

EXPECTED = {
    "orin-nano-jp6": TegraStats(
        date=datetime(2024, 11, 15, 8, 38, 9),
        ram_used_mb=6185,
        ram_total_mb=7620,
        cores=tuple(Core(load, 729) for load in (15, 11, 14, 13, 11, 8)),
        emc_percent=43,
        emc_mhz=2133,
        gpu_percent=63,
        gpu_mhz=(621,),
        temperatures_c={
            "cpu": 53.968,
            "soc2": 52.437,
            "soc0": 50.75,
            "gpu": 53.343,
            "tj": 53.968,
            "soc1": 51.656,
        },
        rails={
            "VDD_IN": Rail(12479, 12479),
            "VDD_CPU_GPU_CV": Rail(4667, 4667),
            "VDD_SOC": Rail(2817, 2817),
        },
        other={
            "SWAP": "851/3810MB (cached 1MB)",
            "NVDEC": "off",
            "NVJPG": "off",
            "NVJPG1": "off",
            "VIC": "off",
            "OFA": "off",
            "APE": "200",
        },
    ),
    "agx-orin-32gb-r36-user": TegraStats(
        date=datetime(2025, 9, 1, 10, 55, 25),
        ram_used_mb=1313,
        ram_total_mb=30697,
        cores=(Core(0, 729),) * 4 + (Core(None, None),) * 4,
        gpu_percent=0,
        temperatures_c={"cpu": 43.343, "soc2": 39.812, "soc0": 40.312, "tj": 43.343, "soc1": 38.843},
        rails={
            "VDD_GPU_SOC": Rail(1995, 1995),
            "VDD_CPU_CV": Rail(0, 0),
            "VIN_SYS_5V0": Rail(2524, 2524),
        },
        other={"SWAP": "0/15348MB (cached 0MB)"},
    ),
    "agx-orin-r36-abridged": TegraStats(
        emc_percent=1,
        emc_mhz=2133,
        gpu_percent=0,
        gpu_mhz=(305, 305),
        temperatures_c={"cpu": 53.062},
        rails={
            "VDD_GPU_SOC": Rail(3205, 3205),
            "VDD_CPU_CV": Rail(4405, 4405),
            "VIN_SYS_5V0": Rail(4767, 4767),
        },
        other={
            "": "…",
            "NVENC": "off …",
            "NVDLA0": "off",
            "NVDLA1": "off",
            "PVA0_FREQ": "off",
            "APE": "174 …",
        },
    ),
    "agx-orin-jp72": TegraStats(
        date=datetime(2026, 7, 25, 9, 8, 28),
        ram_used_mb=20642,
        ram_total_mb=62817,
        cores=tuple(Core(load, 2201) for load in (23, 10, 4, 14, 30, 18, 10, 10, 33, 7, 5, 27)),
        emc_percent=3,
        emc_mhz=3199,
        gpu_percent=12,
        gpu_mhz=(1300, 1300),
        temperatures_c={"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625},
        rails={
            "VDD_GPU_SOC": Rail(5139, 5139, 5139),
            "VDD_CPU_CV": Rail(3268, 3268, 3268),
            "VIN_SYS_5V0": Rail(5500, 5500, 5500),
        },
        other={
            **dict.fromkeys(
                ("NVENC0", "NVDEC0", "NVJPG0", "NVJPG1", "VIC", "OFA", "NVDLA0", "NVDLA1", "PVA0_FREQ"), "off"
            ),
            "APE": "174",
        },
    ),
    "thor-r38": TegraStats(
        date=datetime(2026, 4, 21, 15, 50, 52),
        ram_used_mb=105265,
        ram_total_mb=125772,
        cores=(Core(0, 972),) * 14,
        emc_percent=0,
        emc_mhz=2750,
        gpu_mhz=(314, 314, 314),
        temperatures_c={"cpu": 37.343, "tj": 38.875, "soc012": 37.468, "gpu": 38.875, "soc345": 37.406},
        rails={
            "VDD_GPU": Rail(1962, 1962),
            "VDD_CPU_SOC_MSS": Rail(5887, 5887),
            "VIN_SYS_5V0": Rail(5635, 5635),
            "VIN": Rail(19780, 19780),
        },
        other={
            "NVENC0_FREQ": "@314",
            "NVENC1_FREQ": "@314",
            "NVDEC0_FREQ": "@314",
            "NVDEC1_FREQ": "@314",
            "NVJPG0_FREQ": "@314",
            "VIC": "off",
            "OFA_FREQ": "@315",
            "PVA0_FREQ": "off",
            "APE": "300",
        },
    ),
}


def test_every_recorded_line_has_its_expectation():
    assert set(LINES) == set(EXPECTED)


@pytest.mark.parametrize("name", LINES)
def test_recorded_lines(name):
    assert parse_line(LINES[name]) == EXPECTED[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CPU [0%,5%,off]@2601", {"cores": (Core(0, 2601), Core(5, 2601), Core(None, None))}),
        ("EMC_FREQ @4266", {"emc_mhz": 4266}),
        ("EMC_FREQ 12%", {"emc_percent": 12}),
        ("GR3D_FREQ 10%@1300", {"gpu_percent": 10, "gpu_mhz": (1300,)}),
        ("GR3D_FREQ @[318]", {"gpu_mhz": (318,)}),
        ("VDD_IN 3902/3611", {"rails": {"VDD_IN": Rail(3902, 3611)}}),
        ("POM_5V_IN 2012/1890", {"rails": {"POM_5V_IN": Rail(2012, 1890)}}),
        ("GPU 154/180 SYS5V 999/999", {"rails": {"GPU": Rail(154, 180), "SYS5V": Rail(999, 999)}}),
        ("BOARD_NEW 10mW/20mW/30mW", {"rails": {"BOARD_NEW": Rail(10, 20, 30)}}),
        ("CPU@-256C GPU@41.5C", {"temperatures_c": {"gpu": 41.5}}),
        ("CV0@-256C/-256C Tj@-3.5C/40C", {"temperatures_c": {"tj": -3.5}}),
        ("RAM 1048576/8388608kB", {"ram_used_mb": 1024, "ram_total_mb": 8192}),
        ("RAM 3/8GB (lfb 3x4MB)", {"ram_used_mb": 3072, "ram_total_mb": 8192}),
        ("MTS fg 0% bg 2% APE 150", {"other": {"MTS": "fg 0% bg 2%", "APE": "150"}}),
        ("CPU [hot]", {"other": {"CPU": "[hot]"}}),
        ("99-99-2024 08:38:09 EMC_FREQ 1%", {"emc_percent": 1, "other": {"": "99-99-2024 08:38:09"}}),
        ("", {}),
    ],
)
def test_other_forms(text, expected):
    assert parse_line(text) == TegraStats(**expected)


def test_numbers_longer_than_any_board_prints_are_no_numbers():
    digits = "9" * 6000
    line = (
        f"RAM {digits}/{digits}MB CPU [{digits}%@{digits}] EMC_FREQ {digits}%@{digits} GR3D_FREQ {digits}%@[{digits}]"
    )
    line += f" VDD_IN {digits}mW/{digits}mW cpu@{digits}C"
    stats = parse_line(line)
    assert stats.ram_used_mb is stats.emc_mhz is stats.gpu_percent is None
    assert not stats.rails
    assert not stats.temperatures_c


@given(st.text())
def test_any_text_is_parsed(text):
    assert isinstance(parse_line(text), TegraStats)


WORDS = st.sampled_from(" ".join(LINES.values()).split())
SNIPPETS = st.sampled_from(
    ["CPU [", "]@", "%@", "mW/", "RAM ", "(lfb ", "GR3D_FREQ @[", ",", "/", "@", "C", "-256C", "\0", "٣"]
)


@given(st.lists(st.one_of(WORDS, SNIPPETS, st.text(max_size=4)), max_size=40), st.sampled_from(["", " "]))
def test_shuffled_pieces_of_real_lines_are_parsed(pieces, glue):
    stats = parse_line(glue.join(pieces))
    for rail in stats.rails.values():
        assert rail.now_mw >= 0


@given(st.sampled_from(sorted(LINES)), st.integers(0, 600))
def test_truncated_lines_never_report_a_rail_that_was_not_there(name, length):
    stats = parse_line(LINES[name][:length])
    whole = EXPECTED[name]
    assert {k: r.now_mw for k, r in stats.rails.items()}.items() <= {
        k: r.now_mw for k, r in whole.rails.items()
    }.items()


@given(
    st.sampled_from(sorted(LINES)),
    st.integers(0, 60),
    st.from_regex(r"\A[A-Z][A-Z0-9_]{3,9}_NEW\Z"),
    st.sampled_from(["7", "@99", "on"]),
)
def test_unknown_fields_are_kept(name, position, field, value):
    words = LINES[name].split(" ")
    # Only between fields: after a complete reading such as gpu@53.343C.
    places = [i + 1 for i, word in enumerate(words) if "C" in word and "@" in word]
    place = places[position % len(places)]
    stats = parse_line(" ".join([*words[:place], field, value, *words[place:]]))
    assert stats.other[field].split()[0] == value
    assert stats.rails == EXPECTED[name].rails
    assert stats.temperatures_c == EXPECTED[name].temperatures_c


def test_log_skips_foreign_lines_and_a_cut_end(tmp_path):
    line = LINES["orin-nano-jp6"]
    log = tmp_path / "log"
    log.write_text(f"$ tegrastats\n{line}\n\n{line}\n{line[:300]}", encoding="utf-8")
    found = read_log(log)
    assert found[:2] == [EXPECTED["orin-nano-jp6"]] * 2
    assert len(found) == 3
    assert not found[2].rails


def test_log_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match="tegrastats log: holds no line of tegrastats; record one with"):
        parse_log("hello\nworld 12/13\n")
    with pytest.raises(DataError, match="missing: cannot be read"):
        read_log(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="binary: holds no line"):
        read_log(tmp_path / "binary")


def test_process_yields_lines_as_they_come_and_is_ended(tmp_path):
    program = tmp_path / "tegrastats"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nwhile true; do cat {DATA}/thor-r38.txt; sleep 0.01; done\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    process = TegrastatsProcess(str(program), interval_ms=100)
    times = []
    for arrived, stats in process:
        assert stats == EXPECTED["thor-r38"]
        times.append(arrived)
        if len(times) == 5:
            process.close()
            break
    assert times == sorted(times)
    assert process._process.returncode is not None
    assert (tmp_path / "arguments").read_text().split() == ["--interval", "100"]
