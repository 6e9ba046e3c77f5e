"""The program trtexec: where it is, and arguments that time alike in every TensorRT generation."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.benchmarks.trtexec.failure import cause_of_failure
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.hardware.tensorrt_versions import row_of

PLACES = (Path("/usr/src/tensorrt/bin"), Path("/opt/tensorrt/bin"), Path("/usr/local/tensorrt/bin"))
"""Folders of trtexec on JetPack and in containers, none of which is on PATH."""
TIMEOUT_S = 600


@dataclass(frozen=True)
class Timing:
    """Settings of a timing run, independent of the generation of TensorRT.

    Args:
        cuda_graph: launch the whole engine at once; otherwise the CPU limits a ViT of many small kernels.
        spin_wait: poll for the end of a query instead of sleeping.
        transfers: copy inputs and outputs for every query.
        warmup_ms, duration_s: time before and time of the measurement.
        streams: queries in flight.
        shapes: of the inputs, ``"image:1x3x224x224"``, for engines with a dynamic batch.
    """

    cuda_graph: bool = True
    spin_wait: bool = True
    transfers: bool = False
    warmup_ms: int = 1000
    duration_s: int = 10
    streams: int = 1
    shapes: str | None = None


DEFAULT = Timing()


def timing_arguments(
    engine: Path, version: tuple[int, int], timing: Timing = DEFAULT, times: Path | None = None
) -> list[str]:
    """Returns arguments that time an engine the same way in TensorRT 8.5, 8.6, 10 and 11.

    TensorRT 11 inverted three defaults: CUDA graph on, spin wait on, transfers off.
    """
    arguments = [f"--loadEngine={engine}"]
    if row_of(version).inverted_trtexec:
        arguments += [] if timing.cuda_graph else ["--noCudaGraph"]
        arguments += [] if timing.spin_wait else ["--noSpinWait"]
        arguments += ["--includeDataTransfers"] if timing.transfers else []
    else:
        arguments += ["--useCudaGraph"] if timing.cuda_graph else []
        arguments += ["--useSpinWait"] if timing.spin_wait else []
        arguments += [] if timing.transfers else ["--noDataTransfers"]
    arguments += [f"--warmUp={timing.warmup_ms}", f"--duration={timing.duration_s}", "--percentile=50,90,95,99"]
    arguments += [f"--infStreams={timing.streams}"] if timing.streams != 1 else []
    arguments += [f"--shapes={timing.shapes}"] if timing.shapes else []
    return arguments + ([f"--exportTimes={times}"] if times else [])


def profile_arguments(engine: Path, version: tuple[int, int], profile: Path, layers: Path) -> list[str]:
    """Returns arguments that export times and descriptions of the layers; these times are inflated and never a latency.

    Descriptions need an engine built with ``--profilingVerbosity=detailed``.
    """
    apart = [] if row_of(version).inverted_trtexec else ["--separateProfileRun"]
    return [
        f"--loadEngine={engine}",
        "--dumpProfile",
        *apart,
        f"--exportProfile={profile}",
        f"--exportLayerInfo={layers}",
    ]


def find_trtexec(given: Path | None = None, places: Sequence[Path] = PLACES) -> Path:
    """Returns the trtexec binary: the given one, or that on PATH, of JetPack or of the containers.

    Raises:
        ConfigError: not found.
    """
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"trtexec {given}: no such file")
        return given
    found = shutil.which("trtexec")
    candidates = [Path(found)] if found else [place / "trtexec" for place in places]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    where = ", ".join(["PATH", *map(str, places)])
    raise ConfigError(
        f"trtexec is not in {where}; give its path with --trtexec, or a log from another machine with --trtexec-log"
    )


def run_trtexec(binary: Path, arguments: Sequence[str]) -> str:
    """Runs trtexec and returns what it printed; not verified on hardware.

    Raises:
        ArtifactError: it failed or did not end; the message has the error line with the cause.
    """
    try:
        done = subprocess.run(
            [str(binary), *arguments], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArtifactError(f"{binary}: {error}") from None
    text = done.stdout + done.stderr
    if done.returncode:
        raise ArtifactError(f"{binary}: ended with code {done.returncode}: {cause_of_failure(text)}")
    return text
