"""When the lines of a log of tegrastats were written."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from gft_edge.benchmarks.power.log_times import line_times
from gft_edge.benchmarks.power.recorded_log import log_energy
from gft_edge.benchmarks.power.tegrastats import parse_line, read_log
from gft_edge.errors import ConfigError, DataError

DATA = Path(__file__).parents[2] / "recorded/tegrastats"
START = datetime(2025, 4, 2, 9, 12, 30)


def at(*seconds):
    return [None if s is None else START + timedelta(seconds=int(s)) for s in seconds]


def test_dates_one_second_apart_decide_against_the_default_interval():
    energy = log_energy(DATA / "orin_nx_1s_dates.log", 0.1, 60.4)
    assert (energy.duration_s, energy.num_samples) == (59, 60)
    assert energy.energy_mj == pytest.approx(12120 * 59)
    assert "a line every 1 s, not every 0.1 s" in energy.notes[0]
    assert log_energy(DATA / "orin_nx_1s_dates.log", 1.0, 60.4).notes == ()


def test_a_log_of_powershell_is_read():
    assert len(read_log(DATA / "utf16.log")) == 7


@pytest.mark.parametrize("interval", [0.1, 0.25, 0.5, 1, 2, 5])
@pytest.mark.parametrize("given", [0.1, 1, 5])
def test_any_interval_is_found_by_the_dates(interval, given):
    count = 200
    lines = line_times(at(*(index * interval for index in range(count))), given)
    assert lines.times_s[-1] == pytest.approx((count - 1) * interval, abs=1.01)
    assert lines.gaps == ()
    assert bool(lines.notes) == (given != interval)


def test_dates_that_agree_leave_the_interval_as_given():
    lines = line_times(at(*(index * 0.104 for index in range(300))), 0.1)
    assert (lines.interval_s, lines.times_s[10], lines.notes) == (0.1, 1.0, ())


def test_gaps_and_other_days_are_said():
    day = 86400
    lines = line_times(at(*range(20), *range(60, 80), *range(day, day + 20)), 1.0)
    assert lines.times_s[20] == 60
    assert lines.times_s[-1] == day + 19
    assert lines.gaps[0] == "a gap of 41 s, from 2025-04-02 09:12:49 to 2025-04-02 09:13:30"
    assert "2025-04-03" in lines.gaps[1]


def test_a_gap_refuses_the_energy_and_is_named(tmp_path):
    line = (DATA / "orin_nx_1s_dates.log").read_text().splitlines()[0].split(" ", 2)[2]
    stamps = [*range(20), *range(600, 620)]
    text = "\n".join(f"{(START + timedelta(seconds=s)):%m-%d-%Y %H:%M:%S} {line}" for s in stamps)
    (tmp_path / "t.log").write_text(text)
    energy = log_energy(tmp_path / "t.log", 1.0, 60)
    assert energy.energy_mj is None
    assert "the log has a gap of 581 s" in energy.refused
    (tmp_path / "t.log").write_bytes(b"\xff\xfe" + "\n".join(text.splitlines()[:20]).encode("utf-16-le"))
    assert log_energy(tmp_path / "t.log", 1.0, 60).energy_mj == pytest.approx(12120 * 19)


def test_summer_time_is_named():
    assert "an hour as when summer time begins" in line_times(at(*range(20), *range(3620, 3640)), 1.0).gaps[0]
    with pytest.raises(DataError, match="an hour as when summer time begins or ends, at line 21"):
        line_times(at(*range(20), *range(-3580, -3560)), 1.0)
    with pytest.raises(DataError, match="the clock goes backwards, from .* to .*, at line 3; record it again"):
        line_times(at(0, 1, 0), 1.0)


def test_lines_without_a_date_lie_between_those_that_have_one():
    lines = line_times(at(None, 0, None, 2, 3, None, 5, None), 0.1)
    assert lines.times_s == pytest.approx((0, 1, 2, 3, 4, 5, 6, 7))
    assert "4 of its 8 lines have no date" in lines.notes[1]
    assert line_times([None] * 5, 0.5).times_s == (0, 0.5, 1, 1.5, 2)


def test_dates_that_stand_still_decide_nothing_and_it_is_said():
    lines = line_times(at(*[0] * 61), 0.1)
    assert lines.times_s[-1] == 6
    assert "all its dates are 2025-04-02 09:12:30" in lines.notes[0]
    assert line_times(at(*[0] * 9), 0.1).notes == ()


def test_an_interval_that_is_none():
    for interval in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="interval must be above 0 s"):
            line_times(at(0, 1), interval)


def test_no_throughput_no_energy():
    energy = log_energy(DATA / "orin_nx_1s_dates.log", 1.0, 0.0)
    assert (energy.energy_mj, energy.mj_per_image) == (None, None)
    assert "throughput of the load is 0 images/s" in energy.refused


@pytest.mark.parametrize("piece", ["CPU [", "CPU [1%@", "RAM 1/", "VDD_IN 12mW/", "a@1C ", "GR3D_FREQ @[1,", "9"])
@pytest.mark.parametrize("length", [60_000, 2_000_000])
def test_a_long_line_takes_no_long_time(piece, length):
    start = time.process_time()
    parse_line(piece * (length // len(piece)))
    assert time.process_time() - start < 1


def test_a_date_behind_another_programs_prefix_is_found():
    stats = parse_line("Apr 02 09:12:30 orin tegrastats[81]: 04-02-2025 09:12:30 RAM 1/2MB")
    assert (stats.date, stats.ram_used_mb) == (START, 1)
