"""TensorRT's INT8 calibration caches (generations 8.x to 10.x): read, written, and bound to what they were made from.

A cache is text: ``TRT-8601-EntropyCalibration2``, then ``name: 3c010a14`` per tensor, the bits of the float32 scale
(range / 127) in hexadecimal. TensorRT checks the first line alone and takes any scales for any graph; hence a file
beside the cache that says what it belongs to. TensorRT 11 reads no caches: use the INT8 graph.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gft_edge.calibration.constants import QMAX, SMALLEST_RANGE
from gft_edge.calibration.ranges import Ranges
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import read_json, replacing, sha256, write_json

SCHEMA = 1
Algorithm = Literal["EntropyCalibration2", "MinMaxCalibration", "EntropyCalibration", "LegacyCalibration"]
"""Names in the first line; each is read by the calibrator of that name only. trtexec's is EntropyCalibration2."""

_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)")
_SCALE = re.compile(r"[0-9a-fA-F]{1,8}")


@dataclass(frozen=True)
class CalibrationCache:
    """What a cache file says.

    Attributes:
        tensorrt: version, for example ``"8.6.1"``.
        algorithm: of the calibrator that will accept it; not necessarily how the scales were found.
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
            if not 0 <= bits < 0x7F800000:
                raise ConfigError(f"TensorRT cache: scale of {name} is negative or not finite ({bits:08x})")

    def dumps(self) -> bytes:
        """The file's bytes."""
        lines = [f"TRT-{encode_version(self.tensorrt)}-{self.algorithm}"]
        lines += [f"{name}: {bits:08x}" for name, bits in self.scales.items()]
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def loads(cls, data: bytes, where: str = "TensorRT cache") -> CalibrationCache:
        """The inverse of :meth:`dumps`; also takes scales without leading zeros and a missing last newline.

        Raises:
            ArtifactError: naming the line that is none of a cache.
        """
        try:
            head, *lines = data.decode().replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError:
            raise ArtifactError(f"{where}: is no text, so no calibration cache") from None
        header = _HEADER.fullmatch(head)
        if header is None:
            raise ArtifactError(f"{where}: line 1 is {head[:60]!r}, expected for example TRT-8601-EntropyCalibration2")
        scales: dict[str, int] = {}
        for number, line in enumerate(lines, start=2):
            if not line and number == len(lines) + 1:
                continue
            name, colon, value = line.rpartition(": ")
            if not colon or not name or not _SCALE.fullmatch(value):
                raise ArtifactError(f"{where}: line {number} is {line[:60]!r}, expected NAME: 8 hexadecimal digits")
            if name in scales:
                raise ArtifactError(f"{where}: line {number} gives {name!r} a second scale")
            scales[name] = int(value, 16)
        try:
            return cls(decode_version(header[1]), header[2], scales)
        except ConfigError as error:
            raise ArtifactError(f"{where}: {error}") from None

    @classmethod
    def of_ranges(cls, ranges: Ranges, tensorrt: str, algorithm: str = "EntropyCalibration2") -> CalibrationCache:
        """Scales of ranges of an ONNX graph's tensors; a dead tensor gets the smallest usable one.

        Raises:
            ConfigError: ranges of modules, whose names TensorRT does not know.
        """
        if ranges.subject != "graph tensors":
            raise ConfigError("TensorRT cache: these ranges are of PyTorch modules; calibrate the exported artefact")
        values = {name: max(value, SMALLEST_RANGE) / QMAX for name, value in ranges.values.items()}
        return cls(tensorrt, algorithm, {name: _bits(value) for name, value in values.items()})

    def ranges(self, model_sha256: str, card_id: str | None = None, preprocess: str | None = None) -> Ranges:
        """The ranges the scales stand for; exact, so that the way back gives the same bits."""
        values = {name: _float(bits) * QMAX for name, bits in self.scales.items()}
        return Ranges(values, "graph tensors", "cache", 0, model_sha256, card_id, preprocess)


def _bits(value: float) -> int:
    return int(struct.unpack("!I", struct.pack("!f", value))[0])


def _float(bits: int) -> float:
    return float(struct.unpack("!f", struct.pack("!I", bits))[0])


def encode_version(version: str) -> int:
    """``"8.6.1"`` to 8601, ``"10.3.0"`` to 100300, as NV_TENSORRT_VERSION has it.

    Raises:
        ConfigError: no version, or one whose TensorRT has no calibration caches.
    """
    match = re.fullmatch(r"(\d+)\.(\d{1,2})(?:\.(\d{1,2}))?(?:\.\d+)?", version)
    major, minor, patch = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if not 5 <= major <= 10 or (major < 10 and minor > 9):
        raise ConfigError(f"TensorRT cache: version {version!r} has none; give one from 5.0 to 10.x, for example 8.6.1")
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


def decode_version(code: str) -> str:
    """The inverse of :func:`encode_version`."""
    number = int(code)
    major, rest = divmod(number, 10000 if number >= 100000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


@dataclass(frozen=True)
class CacheOrigin:
    """What a cache was made from; stands in ``<cache>.json``.

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
    """Writes a cache and, beside it, ``<cache>.json``."""
    origin = CacheOrigin(
        ranges.model_sha256, ranges.card_id, ranges.preprocess, ranges.method, cache.algorithm, cache.tensorrt
    )
    with replacing(path) as temporary:
        temporary.write_bytes(cache.dumps())
    write_json(sidecar(path), {"schema": SCHEMA, "cache_sha256": sha256(path), **asdict(origin)})


def read_cache(path: Path, **expected: str | None) -> CalibrationCache:
    """Reads a cache after comparing what it was made from with what is there.

    Args:
        path: of the cache.
        expected: fields of :class:`CacheOrigin` and what they must be.

    Raises:
        ArtifactError: naming everything that differs, a missing or changed file.
    """
    where = f"TensorRT cache {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{where}: cannot be read ({error.strerror})") from None
    cache = CalibrationCache.loads(data, where)
    record = read_json(sidecar(path), "origin of the TensorRT cache")
    known: dict[str, Any] = {key: record.get(key) for key in (*CacheOrigin.__annotations__, "cache_sha256")}
    wanted = {"cache_sha256": sha256(path), "algorithm": cache.algorithm, "tensorrt": cache.tensorrt, **expected}
    differing = [
        f"{key} is {str(known.get(key))[:24]}, here it is {str(value)[:24]}"
        for key, value in wanted.items()
        if known.get(key) != value
    ]
    if differing:
        raise ArtifactError(f"{where}: not made for this: {'; '.join(differing)}; calibrate again")
    return cache


def sidecar(path: Path) -> Path:
    """What says where a cache is from."""
    return path.with_name(path.name + ".json")
