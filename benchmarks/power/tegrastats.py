"""Lines of NVIDIA's ``tegrastats``: a parser for every dialect seen, and the program as a stream of samples.

JetPack 5 and 6 print rails as ``now/average``, JetPack 7.2 as ``now/average/max`` with temperatures as ``now/max``, JetPack 4
without units and date. Fields are missing without root. Unknown fields are kept as text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gft_edge.benchmarks.logs import read_log_text
from gft_edge.benchmarks.power.source import FIRST_SAMPLE_S, Machine, Reading, Source, require_total
from gft_edge.errors import ConfigError, DataError

DATE = re.compile(r"(?<!\S)(\d{2}-\d{2}-\d{4} \d{2}:\d{2}:\d{2})(?!\S)", re.ASCII)
"""Also behind the prefix of journald or of a container's log."""
RAM = re.compile(r"\bRAM (\d+)/(\d+)([kMG])B(?: \(lfb (\d+)x(\d+)([kMG])B\))?", re.ASCII)
CPU = re.compile(r"\bCPU \[([^\[\]]*)\](?:@(\d+))?", re.ASCII)
CORE = re.compile(r"(off)|(\d+)%(?:@(\d+))?", re.ASCII)
EMC = re.compile(r"\bEMC_FREQ (?:(\d+)%)?(?:@(\d+))?", re.ASCII)
GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@(?:\[([\d,]*)\]|(\d+)))?", re.ASCII)
TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w.-]*)@(-?\d{1,6}(?:\.\d+)?)C(?:/(-?\d{1,6}(?:\.\d+)?)C)?(?!\S)", re.ASCII)
RAIL = re.compile(
    r"(?<!\S)((?:VDD|VIN|VDDQ|POM|CV|GPU|CPU|SOC|SYS5V|NC)\w*) (\d+)(?:mW)?/(\d+)(?:mW)?(?:/(\d+)(?:mW)?)?(?!\S)"
    r"|(?<!\S)([A-Za-z]\w*) (\d+)mW/(\d+)mW(?:/(\d+)mW)?(?!\S)",  # a rail of an unknown name
    re.ASCII,
)
ABSENT_C = -256.0
"""Reading of a sensor that is switched off."""

INTERVAL_MS = 100
"""Below about this, the program itself takes noticeable power."""
TO_MB = {"k": 1 / 1024, "M": 1.0, "G": 1024.0}
MAX_DIGITS = 12
MAX_LINE = 1 << 16
"""Characters; a board's line has about 600."""


@dataclass(frozen=True)
class Core:
    """A CPU core; both None when it is off."""

    load_percent: int | None
    mhz: int | None


@dataclass(frozen=True)
class Rail:
    """A power rail: now, and average (and maximum) since tegrastats was started."""

    now_mw: int
    average_mw: int
    max_mw: int | None = None


@dataclass(frozen=True)
class TegraStats:
    """The fields of one line; None or empty where they are missing.

    Attributes:
        date: local time of the board, whole seconds.
        ram_used_mb, ram_total_mb: of the memory that CPU and GPU share.
        cores: of the CPU.
        emc_percent, emc_mhz: load and clock of the memory controller.
        gpu_percent, gpu_mhz: load, and clock of each graphics cluster.
        temperatures_c: present ones, by sensor name in lower case; switched off sensors are left out.
        rails: by name as printed.
        other: every other field, name to text.
    """

    date: datetime | None = None
    ram_used_mb: float | None = None
    ram_total_mb: float | None = None
    cores: tuple[Core, ...] = ()
    emc_percent: int | None = None
    emc_mhz: int | None = None
    gpu_percent: int | None = None
    gpu_mhz: tuple[int, ...] = ()
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    rails: Mapping[str, Rail] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True if the line has no known field, so that it is not one of tegrastats."""
        return self == TegraStats(other=self.other)


def parse_line(line: str) -> TegraStats:
    """Reads one line of any dialect; text of another program ends up in ``other``. Never raises."""
    rest = line.strip()
    if len(rest) > MAX_LINE:
        return TegraStats(other={"": rest[:80]})
    date = None
    if match := DATE.search(rest):
        try:
            date = datetime.strptime(match[1], "%m-%d-%Y %H:%M:%S")
            rest = rest[: match.start()] + rest[match.end() :]
        except ValueError:
            pass  # not a date: the digits stay in the rest
    ram, rest = _take(RAM, rest)
    cores, rest = _take_cores(rest)
    emc, rest = _take(EMC, rest)
    gpu, rest = _take(GPU, rest)
    rails: dict[str, Rail] = {}
    for match in RAIL.finditer(rest):
        name, now, average, most = match.groups()[:4] if match[1] else match.groups()[4:]
        if (now_mw := _int(now)) is not None and (average_mw := _int(average)) is not None:
            rails.setdefault(name, Rail(now_mw, average_mw, _int(most)))
    rest = RAIL.sub(lambda m: "" if (m[1] or m[5]) in rails else m[0], rest)
    readings = {m[1].lower(): float(m[2]) for m in TEMPERATURE.finditer(rest)}
    rest = TEMPERATURE.sub("", rest)
    return TegraStats(
        date=date,
        ram_used_mb=_megabytes(ram[1], ram[3]) if ram else None,
        ram_total_mb=_megabytes(ram[2], ram[3]) if ram else None,
        cores=cores,
        emc_percent=_int(emc[1]) if emc else None,
        emc_mhz=_int(emc[2]) if emc else None,
        gpu_percent=_int(gpu[1]) if gpu else None,
        gpu_mhz=_clocks(gpu[2] if gpu[2] is not None else gpu[3]) if gpu else (),
        temperatures_c={name: value for name, value in readings.items() if value != ABSENT_C},
        rails=rails,
        other=_fields(rest),
    )


def _take(pattern: re.Pattern[str], text: str) -> tuple[re.Match[str] | None, str]:
    """Returns the first match, and the text without it."""
    match = pattern.search(text)
    return (match, text[: match.start()] + text[match.end() :]) if match else (None, text)


def _take_cores(text: str) -> tuple[tuple[Core, ...], str]:
    match = CPU.search(text)
    items = [CORE.fullmatch(item.strip()) for item in match[1].split(",")] if match else []
    if match is None or not all(items):
        return (), text  # a list of another form is kept as text
    cores = tuple(
        Core(None, None) if item[1] else Core(_int(item[2]), _int(item[3] or match[2])) for item in items if item
    )
    return cores, text[: match.start()] + text[match.end() :]


def _clocks(text: str | None) -> tuple[int, ...]:
    values = (_int(part) for part in (text or "").split(","))
    return tuple(value for value in values if value is not None)


def _int(digits: str | None) -> int | None:
    return int(digits) if digits and len(digits) <= MAX_DIGITS else None


def _megabytes(digits: str, unit: str) -> float | None:
    value = _int(digits)
    return None if value is None else value * TO_MB[unit]


def _fields(text: str) -> dict[str, str]:
    """Groups the remaining words: one outside brackets that begins with a capital names a field, the others are its text."""
    found: dict[str, list[str]] = {}
    name = ""
    depth = 0
    for word in text.split():
        if depth <= 0 and re.fullmatch(r"[A-Z]\w*", word, re.ASCII):
            name = word
            found.setdefault(name, [])
        else:
            found.setdefault(name, []).append(word)
        depth += word.count("(") + word.count("[") - word.count(")") - word.count("]")
    return {key: " ".join(words) for key, words in found.items()}


def parse_log(text: str, where: str = "tegrastats log") -> list[TegraStats]:
    """Reads every line of a recorded log that tegrastats wrote; others (prompts, a cut first line) are skipped.

    Raises:
        DataError: no line is one of tegrastats.
    """
    parsed = [parse_line(line) for line in text.splitlines()]
    found = [stats for stats in parsed if not stats.is_empty]
    if not found:
        raise DataError(
            f"{where}: holds no line of tegrastats; record one with: tegrastats --interval 100 --logfile FILE"
        )
    return found


def read_log(path: Path) -> list[TegraStats]:
    """Reads a log written by ``tegrastats --logfile``.

    Raises:
        DataError: unreadable, or not a log of tegrastats.
    """
    return parse_log(read_log_text(path, "tegrastats log", DataError), f"tegrastats log {path}")


class TegrastatsProcess:
    """A running ``tegrastats``, as an iterator of arrival times (``time.perf_counter``) and lines.

    Args:
        executable: path of the program.
        interval_ms: between lines.
    """

    def __init__(self, executable: str, interval_ms: int = INTERVAL_MS) -> None:
        self._process = subprocess.Popen(
            [executable, "--interval", str(interval_ms)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )

    def __iter__(self) -> Iterator[tuple[float, TegraStats]]:
        stream = self._process.stdout
        if stream is None:
            return
        with stream:
            for line in stream:
                yield time.perf_counter(), parse_line(line)

    def close(self) -> None:
        """Ends the program, by force if it does not end within two seconds."""
        self._process.terminate()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def open_source(machine: Machine) -> Source:
    """Starts the program.

    Raises:
        ConfigError: no program, no readable output, or no known total.
    """
    program = shutil.which("tegrastats")
    if program is None:
        raise ConfigError("tegrastats: not on PATH; it comes with Jetson Linux")
    process = TegrastatsProcess(program)
    watchdog = threading.Timer(FIRST_SAMPLE_S, process.close)
    watchdog.start()
    stream = iter(process)
    try:
        first = next(stream, None)
    finally:
        watchdog.cancel()
    if first is None or first[1].is_empty:
        process.close()
        raise ConfigError(f"tegrastats: {program} prints nothing that can be read")
    try:
        rails = require_total(first[1].rails, "tegrastats")
    except ConfigError as error:
        process.close()
        raise ConfigError(f"{error}; run with sudo") from None

    def readings(stop: threading.Event) -> Iterator[Reading]:
        for arrived, stats in stream:
            power = {name: float(rail.now_mw) for name, rail in stats.rails.items()}
            yield Reading(arrived, power, float(stats.gpu_mhz[0]) if stats.gpu_mhz else None)

    return Source("tegrastats", rails, INTERVAL_MS / 1e3, readings, process.close)
