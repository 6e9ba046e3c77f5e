"""Settings of a run of trtexec: timing, streams and input shapes, as asked for and as in force."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gft_edge.hardware.tensorrt_versions import row_of

Shape = tuple[int, ...]

_REPORTED = {
    "cuda_graph": re.compile(r"\[I\] CUDA Graph: (Enabled|Disabled)"),
    "spin_wait": re.compile(r"\[I\] Spin-wait: (Enabled|Disabled)"),
    "transfers": re.compile(r"\[I\] Data transfers: (Enabled|Disabled)"),
}
_STREAMS = re.compile(r"\[I\] (?:Inference )?Streams: (\d{1,6})\s*$")
_IMPLICIT_BATCH = re.compile(r"\[I\] Batch: (\d{1,6})\s*$")
_IGNORED = re.compile(r"\[W\].*(?:ignor|disabl|without using|not be used|no effect)", re.IGNORECASE)
_OVERRULED = {
    "cuda_graph": (re.compile(r"cuda ?graph", re.IGNORECASE), False),
    "spin_wait": (re.compile(r"spin-?wait", re.IGNORECASE), False),
    "transfers": (re.compile(r"noDataTransfers"), True),
}
"""Words of a warning that a setting was ignored, and the value that holds then."""

_DIMENSIONS = r"(\d{1,9}(?:x\d{1,9})*)"
_BINDING = re.compile(rf"(?:Created input binding|Input binding) for (.+?) with dimensions {_DIMENSIONS}(?![\dx])")
_OVERRIDDEN = re.compile(rf"Dynamic dimensions required for input: (.+?), but .* shape to: {_DIMENSIONS}(?![\dx])")
_INFERENCE_SHAPE = re.compile(rf"\[I\] Input inference shape ?: (.+?)={_DIMENSIONS}\s*$")
_ITEM = re.compile(rf"""\s*['"]?([^'",]+?)['"]?\s*:\s*(?:{_DIMENSIONS}|scalar)\s*(?:,|$)""")


@dataclass(frozen=True)
class Settings:
    """Settings of a run that were in force, which may differ from those asked for.

    Attributes:
        timing: ``cuda_graph``, ``spin_wait``, ``transfers``; None if neither the log nor the version defines them.
        streams: queries in flight at a time.
        shapes: of the inputs, if known; scalars have none.
        implicit_batch: images per query of a network with an implicit batch (8.x and older), whose throughput counts
            images; None for all others.
        notes: settings that were asked for and not in force, one sentence each.
    """

    timing: Mapping[str, bool] | None
    streams: int = 1
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    implicit_batch: int | None = None
    notes: tuple[str, ...] = ()

    def batch(self, name: str | None = None) -> int | None:
        """Returns images per query; None if unknown, or if inputs disagree and none is an image.

        Args:
            name: of the input that takes the images, if known.
        """
        if self.implicit_batch:
            return self.implicit_batch
        if name is not None and name in self.shapes:
            return self.shapes[name][0]
        sizes = {shape[0] for shape in self.shapes.values() if len(shape) > 1}
        if len(sizes) > 1:
            sizes = {shape[0] for shape in self.shapes.values() if len(shape) == 4}
        return sizes.pop() if len(sizes) == 1 else None


def options_of(command: str) -> dict[str, str]:
    """Returns the options of a command line by name, without dashes; trtexec ignores the value of a switch."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return {name: value for name, _, value in (word[2:].partition("=") for word in words if word.startswith("--"))}


def timing_of(command: str, version: tuple[int, int] | None) -> dict[str, bool] | None:
    """Returns the timing settings of a command line with the defaults of the version; None for an unknown version.

    ``--useSpinWait=false`` switches it on: trtexec checks only whether a switch is present.
    """
    if version is None:
        return None
    given = options_of(command)
    new = row_of(version).inverted_trtexec
    return {
        "cuda_graph": "noCudaGraph" not in given if new else "useCudaGraph" in given,
        "spin_wait": "noSpinWait" not in given if new else "useSpinWait" in given,
        "transfers": "includeDataTransfers" in given if new else "noDataTransfers" not in given,
    }


def shapes_of(command: str) -> dict[str, Shape]:
    """Returns the input shapes of a command line: ``--shapes``, else ``--optShapes``.

    trtexec prints its command without its quotes, so names and lists may contain spaces.
    """
    words = re.split(r"\s(?=--[A-Za-z])", f" {command}")
    texts = dict(part[2:].partition("=")[::2] for part in words if part.startswith("--"))
    for option in ("shapes", "optShapes"):
        if option in texts:
            return {m[1].strip(): _shape(m[2]) for m in _ITEM.finditer(texts[option].strip(" \"'")) if m[2]}
    return {}


def _shape(text: str) -> Shape:
    return tuple(int(size) for size in text.split("x"))


def settings_of(lines: Sequence[str], command: str, version: tuple[int, int] | None) -> Settings:
    """Returns the settings in force: those the run reports, corrected by its warnings, else those of its command line."""
    asked = timing_of(command, version) if command else None
    reported = {name: state for name, pattern in _REPORTED.items() if (state := _last(pattern, lines)) is not None}
    in_force = {name: state == "Enabled" for name, state in reported.items()}
    timing = {**(asked or {}), **in_force}
    notes = []
    for line in lines:
        if _IGNORED.search(line):
            for name, (words, value) in _OVERRULED.items():
                if words.search(line) and timing.get(name, not value) != value:
                    timing[name] = value
                    notes.append(line.partition("[W]")[2].strip())
    options = options_of(command)
    profiled = bool({"dumpProfile", "exportProfile"} & set(options)) and "separateProfileRun" not in options
    if profiled and version is not None and version[0] < 11:
        notes.append("the profiler ran while it measured (no --separateProfileRun): times are too long")
    old = version is not None and version[0] < 10 and not any("[I] Batch: Explicit" in line for line in lines)
    batch = _last(_IMPLICIT_BATCH, lines) or (_digits(options.get("batch")) if old else None)
    streams = _last(_STREAMS, lines) or _digits(options.get("infStreams")) or _digits(options.get("streams"))
    complete = timing if len(timing) == len(_OVERRULED) else None
    return Settings(
        complete,
        max(1, int(streams or 1)),
        _shapes(lines, command),
        int(batch or 0) or None,
        tuple(dict.fromkeys(notes)),
    )


def _shapes(lines: Sequence[str], command: str) -> dict[str, Shape]:
    """Returns the shapes given to the engine, which take precedence over those asked for."""
    asked = shapes_of(command)
    for pattern in (_INFERENCE_SHAPE, _OVERRIDDEN, _BINDING):  # later ones are surer
        asked |= {match[1].strip(): _shape(match[2]) for line in lines if (match := pattern.search(line))}
    return asked


def _last(pattern: re.Pattern[str], lines: Sequence[str]) -> str | None:
    found = None
    for line in lines:
        if match := pattern.search(line):
            found = match[1]
    return found


def _digits(text: str | None) -> str | None:
    return text if text and re.fullmatch(r"\d{1,6}", text, re.ASCII) else None


def sections(lines: Sequence[str]) -> list[list[str]]:
    """Splits lines by runs of trtexec: from its banner, or from the end of the run before, to its verdict."""
    starts = [0]
    for number, line in enumerate(lines):
        if "&&&& RUNNING TensorRT.trtexec" in line:
            starts.append(number)
        elif "&&&& PASSED TensorRT.trtexec" in line or "&&&& FAILED TensorRT.trtexec" in line:
            starts.append(number + 1)
    return [list(lines[start:end]) for start, end in pairwise([*sorted(set(starts)), len(lines)]) if start < end]
