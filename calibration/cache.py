"""TensorRT's INT8 calibration caches (generations 8.x to 10.x): reads and writes them, with a record of their origin.

A cache is text: ``TRT-8601-EntropyCalibration2``, then ``name: 3c010a14`` per tensor, the bits of the float32 scale
(range / 127) in hexadecimal. TensorRT checks the first line only and accepts any scales for any graph, so a sidecar records
the graph and the images. TensorRT 11 reads no caches: use the INT8 graph.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gft_edge.calibration.ranges import Ranges
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import decode_text, replacing, sha256
from gft_edge.quant.levels import QMAX, SMALLEST_RANGE
from gft_edge.storage.seals import read_sealed, write_sealed

SCHEMA = 1
Algorithm = Literal["EntropyCalibration2", "MinMaxCalibration", "EntropyCalibration", "LegacyCalibration"]
"""Names in the first line; only the calibrator of the same name reads the cache. trtexec uses EntropyCalibration2."""

_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")
_SCALE = re.compile(r"[0-9a-fA-F]{1,8}")


@dataclass(frozen=True)
class CalibrationCache:
    """The content of a cache file.

    Attributes:
        tensorrt: version, for example ``"8.6.1"``.
        algorithm: of the calibrator that accepts it; the scales may have been found by another method.
        scales: bits of the float32 scale of each tensor, in the order of the file.
    """

    tensorrt: str
    algorithm: str
    scales: Mapping[str, int]

    def __post_init__(self) -> None:
        encode_version(self.tensorrt)
        if self.algorithm not in get_args(Algorithm):
            raise ConfigError(
                f"TensorRT cache: algorithm must be one of {', '.join(get_args(Algorithm))}, found {self.algorithm!r}"
            )
        for name, bits in self.scales.items():
            if not name or any(character in name for character in "\r\n"):
                raise ConfigError(f"TensorRT cache: {name!r} cannot be the name of a tensor in it")
            if problem := _problem(bits):
                raise ConfigError(f"TensorRT cache: scale of {name} is {problem}")

    @property
    def header(self) -> str:
        """The first line."""
        return f"TRT-{encode_version(self.tensorrt)}-{self.algorithm}"

    def dumps(self) -> bytes:
        """The file's bytes."""
        lines = [self.header]
        lines += [f"{name}: {bits:08x}" for name, bits in self.scales.items()]
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def loads(cls, data: bytes, where: str = "TensorRT cache") -> CalibrationCache:
        """Reads what :meth:`dumps` returns, also after an editor changed the text.

        Accepts scales without leading zeros, a byte order mark, UTF-16, Windows line ends, and blank lines at the end.

        Raises:
            ArtifactError: naming the line that is malformed or whose scale is not positive and finite.
        """
        try:
            head, *lines = decode_text(data).replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError:
            raise ArtifactError(f"{where}: is not a text file, so not a calibration cache") from None
        header = _HEADER.fullmatch(head.rstrip())
        if header is None:
            raise ArtifactError(f"{where}: line 1 is {head[:60]!r}, expected for example TRT-8601-EntropyCalibration2")
        while lines and not lines[-1].strip():
            lines.pop()
        scales: dict[str, int] = {}
        at: dict[str, int] = {}
        for number, line in enumerate(lines, start=2):
            name, colon, value = line.rstrip().rpartition(": ")
            if not colon or not name or not _SCALE.fullmatch(value):
                raise ArtifactError(f"{where}: line {number} is {line[:60]!r}, expected NAME: 8 hexadecimal digits")
            if name in scales:
                raise ArtifactError(f"{where}: line {number} gives {name!r} a second scale, line {at[name]} has one")
            bits = int(value, 16)
            if problem := _problem(bits):
                raise ArtifactError(f"{where}: line {number}: scale of {name!r} is {problem}; calibrate again")
            scales[name], at[name] = bits, number
        try:
            return cls(decode_version(header[1]), header[2], scales)
        except ConfigError as error:
            raise ArtifactError(f"{where}: {error}") from None

    @classmethod
    def of_ranges(cls, ranges: Ranges, tensorrt: str, algorithm: str = "EntropyCalibration2") -> CalibrationCache:
        """Returns the scales of ranges of an ONNX graph's tensors; a dead tensor gets the smallest usable one.

        Raises:
            ConfigError: ranges of modules, whose names TensorRT does not know.
        """
        if ranges.subject != "graph tensors":
            raise ConfigError("TensorRT cache: these ranges belong to PyTorch modules; calibrate the exported artefact")
        values = {name: max(value, SMALLEST_RANGE) / QMAX for name, value in ranges.values.items()}
        return cls(tensorrt, algorithm, {name: _bits(value) for name, value in values.items()})


def _problem(bits: int) -> str | None:
    """Returns why a scale is invalid; None for a positive finite number."""
    if 0 < bits < 0x7F800000:
        return None
    kind = "zero" if bits in (0, 0x80000000) else "infinite" if bits & 0x7FFFFFFF == 0x7F800000 else "negative"
    return f"{'NaN' if bits & 0x7FFFFFFF > 0x7F800000 else kind} ({bits:08x})"


def _bits(value: float) -> int:
    return int(struct.unpack("!I", struct.pack("!f", value))[0])


def encode_version(version: str) -> int:
    """Encodes ``"8.6.1"`` as 8601 and ``"10.3.0"`` as 100300, like NV_TENSORRT_VERSION.

    Raises:
        ConfigError: not a version, or one whose TensorRT has no calibration caches.
    """
    match = re.fullmatch(r"(\d+)\.(\d{1,2})(?:\.(\d{1,2}))?(?:\.\d+)?", version)
    major, minor, patch = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if not 5 <= major <= 10 or (major < 10 and minor > 9):
        raise ConfigError(f"TensorRT cache: version {version!r} has none; give one from 5.0 to 10.x, for example 8.6.1")
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


def decode_version(code: str) -> str:
    """Reverses :func:`encode_version`."""
    number = int(code)
    major, rest = divmod(number, 10000 if number >= 100000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


@dataclass(frozen=True)
class CacheOrigin:
    """The origin of a cache, the content of its sidecar ``<cache>.json``.

    Attributes:
        graph_sha256: of the ONNX file.
        card_id: of the calibration set.
        preprocess: id of the preprocessing.
        method: how ranges were found.
        algorithm, tensorrt: of the first line.
    """

    graph_sha256: str
    card_id: str | None
    preprocess: str | None
    method: str
    algorithm: str
    tensorrt: str


def write_cache(path: Path, cache: CalibrationCache, ranges: Ranges) -> None:
    """Writes a cache and its sidecar ``<cache>.json``."""
    origin = CacheOrigin(
        ranges.model_sha256, ranges.card_id, ranges.preprocess, ranges.method, cache.algorithm, cache.tensorrt
    )
    with replacing(path) as temporary:
        temporary.write_bytes(cache.dumps())
    write_sealed(sidecar(path), {"schema": SCHEMA, "cache_sha256": sha256(path), **asdict(origin)})


def load_cache(path: Path) -> CalibrationCache:
    """Reads a cache without checking its origin.

    Raises:
        ArtifactError: it cannot be read, or is not a cache.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"TensorRT cache {path}: cannot be read ({error.strerror or error})") from None
    return CalibrationCache.loads(data, f"TensorRT cache {path}")


UNNAMED = "(Unnamed Layer*"
"""Start of TensorRT's own names, of layers that its importer adds and no graph contains."""


def require_fit(cache: CalibrationCache, tensors: Collection[str], tensorrt: str | None, where: str) -> tuple[str, ...]:
    """Refuses a cache of another graph or another generation, which TensorRT would accept.

    Args:
        cache: of any origin.
        tensors: names of the graph's inputs and of the outputs of its nodes.
        tensorrt: version that will read it; None if unknown.
        where: for messages.

    Returns:
        sentences on tensors without a scale; empty if the cache covers the graph.

    Raises:
        ArtifactError: naming the line.
    """
    if tensorrt and tensorrt.partition(".")[0] != cache.tensorrt.partition(".")[0]:
        raise ArtifactError(
            f"{where}: line 1: is for TensorRT {cache.tensorrt}, this build for TensorRT {tensorrt}; calibrate for that version"
        )
    foreign = [(line, name) for line, name in enumerate(cache.scales, 2) if not _known(name, tensors)]
    if foreign:
        line, name = foreign[0]
        more = f", nor {len(foreign) - 1} more of its {len(cache.scales)} names" if len(foreign) > 1 else ""
        raise ArtifactError(
            f"{where}: line {line}: {name!r} is not a tensor of this graph{more}; the cache was calibrated on another graph"
        )
    covered = sum(name in cache.scales for name in tensors)
    if not covered:
        raise ArtifactError(f"{where}: has no scale for any tensor of this graph; calibrate again")
    missing = len(tensors) - covered
    return (
        (
            f"the cache has scales for {covered} of {len(tensors)} tensors; layers with any other tensor do not run in INT8",
        )
        if missing
        else ()
    )


def _known(name: str, tensors: Collection[str]) -> bool:
    return name in tensors or name.startswith(UNNAMED)


def read_cache(path: Path, **expected: str | None) -> CalibrationCache:
    """Reads a cache after comparing its origin with the expected one.

    Args:
        path: of the cache.
        expected: fields of :class:`CacheOrigin` and their required values.

    Raises:
        ArtifactError: naming everything that differs, a missing or changed file.
    """
    where = f"TensorRT cache {path}"
    cache = load_cache(path)
    record = read_sealed(sidecar(path), "origin of the TensorRT cache", "calibrate again")
    known: dict[str, Any] = {key: record.get(key) for key in (*CacheOrigin.__annotations__, "cache_sha256")}
    wanted = {"cache_sha256": sha256(path), "algorithm": cache.algorithm, "tensorrt": cache.tensorrt, **expected}
    differing = [
        f"{key} is {str(known.get(key))[:24]}, here it is {str(value)[:24]}"
        for key, value in wanted.items()
        if known.get(key) != value
    ]
    if differing:
        raise ArtifactError(f"{where}: its origin differs: {'; '.join(differing)}; calibrate again")
    return cache


def sidecar(path: Path) -> Path:
    """Returns the path of the record of a cache's origin."""
    return path.with_name(path.name + ".json")
