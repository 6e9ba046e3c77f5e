"""The manifest of an artefact: its fields, their checks and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.config.reader import load_dataclass
from gft_edge.errors import ArtifactError, ConfigError, GFTEdgeError
from gft_edge.files import canonical_json, sha256
from gft_edge.labels import require_names
from gft_edge.preprocess import PreprocessSpec

SCHEMA = 1

MapsMode = Literal["none", "compact", "dense"]
"""Map outputs of the graph: none, importance of kept patches with their positions, or maps on the full grid."""
HighPrecision = Literal["fp32", "fp16", "bf16"]
"""Floating-point formats without quantization."""
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-weights", "fp8"]
"""Arithmetic of the linear layers of an artefact: ``"int8"`` and ``"fp8"`` quantize weights and activations, ``"int8-weights"``
quantizes the weights alone. Devices and quantization policies have sets of their own."""
InputKind = Literal["float", "uint8", "float255"]
"""Input of the graph: normalised images (B, 3, H, W); or RGB pixels that the graph normalises, (B, H, W, 3) uint8 or (B, 3, H, W)
float32 of 0 to 255."""
IMAGE, PIXELS = "image", "pixels"
"""Names of a graph's input. ``float255`` has its own: type and shape are those of normalised images, and the name alone lets a
runtime refuse the one for the other."""
LOGITS, PROBABILITIES = "logits", "probabilities"
"""Names of a graph's first output."""
Dialect = Literal["trt10", "trt8"]
"""Form of the graph for TensorRT 10, 11 and RTX, or for 8.6; ONNX Runtime reads both."""

Batch = tuple[int, int, int]
QUANTIZED: tuple[Precision, ...] = ("int8", "int8-weights", "fp8")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the graph; a shape's text entries are dynamic axes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class FileInfo:
    """Hash and size of a file."""

    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> FileInfo:
        """Hashes a file."""
        return cls(sha256(path), path.stat().st_size)


@dataclass(frozen=True)
class Member:
    """A further token budget of an artefact, with its graph.

    Args:
        budget: compiled into the graph.
        outputs: of the graph.
        model, golden: file names.
    """

    budget: TokenBudget
    outputs: tuple[TensorInfo, ...]
    model: str
    golden: str


@dataclass(frozen=True)
class DeploymentManifest:
    """Everything needed to use, check or rebuild an artefact.

    Args:
        model, labels, preprocess: copied from the checkpoint.
        budget: the static token budget compiled into the graph.
        precision: of the linear layers.
        rest: precision of everything else but the importance path, which is always float32.
        maps: importance outputs of the graph.
        batch: smallest, usual and largest number of images of a request; the batch axis is static if all are equal.
        opset: ONNX operator set.
        dialect: form of the graph.
        inputs, outputs: the graph's interface.
        checkpoint_sha256: identity of the checkpoint the graph was made from (weights and quantization).
        quantization: summary, or None.
        parity: figures of the comparison at export.
        tools: versions of the tools involved.
        files: every other file of the folder, by relative path.
        data: name of the data set that the model was trained on, empty if unknown.
        golden_images: description of the images of golden.npz, empty if unknown.
        family: further token budgets of the same weights, by id; their graphs share one file of weights.

    Raises:
        ConfigError: listing every problem found.
    """

    model: GFTConfig
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    budget: TokenBudget
    precision: Precision
    maps: MapsMode
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    checkpoint_sha256: str
    rest: HighPrecision = "fp32"
    dialect: Dialect = "trt10"
    batch: Batch = (1, 1, 8)
    quantization: dict[str, Any] | None = None
    parity: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileInfo] = field(default_factory=dict)
    family: dict[str, Member] = field(default_factory=dict)
    data: str = ""
    golden_images: str = ""

    def __post_init__(self) -> None:
        problems = []
        if self.precision not in get_args(Precision):
            problems.append(f"precision must be one of {', '.join(get_args(Precision))}, found {self.precision!r}")
        if self.rest not in get_args(HighPrecision):
            problems.append(f"rest must be one of {', '.join(get_args(HighPrecision))}, found {self.rest!r}")
        elif self.precision not in QUANTIZED and self.precision != self.rest:
            problems.append(f"precision {self.precision!r} requires the same rest, found {self.rest!r}")
        problems += batch_problems(self.batch)
        if self.maps not in get_args(MapsMode):
            problems.append(f"maps must be one of {', '.join(get_args(MapsMode))}, found {self.maps!r}")
        if self.dialect not in get_args(Dialect):
            problems.append(f"dialect must be one of {', '.join(get_args(Dialect))}, found {self.dialect!r}")
        if not self.inputs or not self.outputs:
            problems.append("inputs and outputs must name at least one tensor each")
        if not isinstance(self.opset, int):
            problems.append(f"opset must be an integer, found {self.opset!r}")
        if len(self.labels) != self.model.num_classes:
            problems.append(f"{len(self.labels)} labels for {self.model.num_classes} classes")
        try:
            require_names(self.labels, "labels")
        except ConfigError as error:
            problems.append(str(error))
        if self.budget.num_patches != self.model.num_patches or len(self.budget.keep) != len(self.model.stages):
            problems.append(f"budget {self.budget.id} of {self.budget.num_patches} patches does not fit the model")
        if problems:
            raise ConfigError("manifest: " + "; ".join(problems))

    @property
    def is_quantized(self) -> bool:
        """True if linear layers have 8-bit weights."""
        return self.precision in QUANTIZED

    @property
    def input_kind(self) -> InputKind:
        """What the graph takes."""
        return input_kind(self.inputs[0].name, self.inputs[0].dtype)

    @property
    def gives_probabilities(self) -> bool:
        """True if the graph has the softmax inside: its first output is ``probabilities`` in place of ``logits``."""
        return any(output.name == PROBABILITIES for output in self.outputs)

    @property
    def static_batch(self) -> int | None:
        """Images that the graph takes if its batch axis is static, else None."""
        return static_batch(self.batch)

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as plain JSON values."""
        return {
            "schema": SCHEMA,
            "model": self.model.to_json(),
            "variant": self.model.variant,
            "labels": list(self.labels),
            "preprocess": {**self.preprocess.to_json(), "id": self.preprocess.id},
            "budget": self.budget.to_json(),
            "precision": self.precision,
            "rest": self.rest,
            "maps": self.maps,
            "batch": list(self.batch),
            "opset": self.opset,
            "dialect": self.dialect,
            "inputs": _tensors_json(self.inputs),
            "outputs": _tensors_json(self.outputs),
            "checkpoint_sha256": self.checkpoint_sha256,
            "quantization": self.quantization,
            "parity": self.parity,
            "tools": self.tools,
            "data": self.data,
            "golden_images": self.golden_images,
            "files": {name: asdict(info) for name, info in self.files.items()},
            "family": {
                name: {
                    "budget": member.budget.to_json(),
                    "outputs": _tensors_json(member.outputs),
                    "model": member.model,
                    "golden": member.golden,
                }
                for name, member in self.family.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "manifest") -> DeploymentManifest:
        """Reads what :meth:`to_json` returns.

        Raises:
            ArtifactError: another schema, a missing or malformed entry.
        """
        if data.get("schema") != SCHEMA:
            raise ArtifactError(f"{where}: schema {data.get('schema')!r}, this version reads {SCHEMA}")
        try:
            preprocess = {key: value for key, value in data["preprocess"].items() if key != "id"}
            spec = PreprocessSpec.from_json(preprocess)
            if spec.id != data["preprocess"]["id"]:
                raise ArtifactError(f"{where}: preprocessing does not match its id {data['preprocess']['id']!r}")
            return cls(
                model=GFTConfig.from_json(data["model"]),
                labels=tuple(data["labels"]),
                preprocess=spec,
                budget=TokenBudget.from_json(data["budget"]),
                precision=data["precision"],
                rest=data["rest"],
                maps=data["maps"],
                batch=tuple(data["batch"]),
                opset=data["opset"],
                dialect=data.get("dialect", "trt10"),  # older artefacts have one dialect
                inputs=tuple(_tensor(t) for t in data["inputs"]),
                outputs=tuple(_tensor(t) for t in data["outputs"]),
                checkpoint_sha256=data["checkpoint_sha256"],
                quantization=None if data["quantization"] is None else _object(data, "quantization"),
                parity=_object(data, "parity"),
                tools=_object(data, "tools"),
                data=_text(data, "data"),
                golden_images=_text(data, "golden_images"),
                files={
                    safe_name(name): load_dataclass(FileInfo, info, f"{where}: files: {name}")
                    for name, info in data["files"].items()
                },
                family={
                    name: Member(
                        TokenBudget.from_json(member["budget"]),
                        tuple(_tensor(t) for t in member["outputs"]),
                        safe_name(member["model"]),
                        safe_name(member["golden"]),
                    )
                    for name, member in data["family"].items()
                },
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{where}: incomplete or malformed ({error!r})") from None
        except GFTEdgeError as error:
            raise ArtifactError(f"{where}: {error}") from None


def input_kind(name: str, dtype: str) -> InputKind:
    """Returns the kind of a graph's input with this name and type."""
    if dtype == "uint8":
        return "uint8"
    return "float255" if name == PIXELS else "float"


def static_batch(batch: Batch) -> int | None:
    """Returns the only batch size of a range, None for a range of several sizes."""
    return batch[0] if batch[0] == batch[2] else None


def batch_problems(batch: Batch) -> list[str]:
    """Returns the problems of a range of batch sizes."""
    whole = len(batch) == 3 and all(isinstance(size, int) and not isinstance(size, bool) for size in batch)
    if not whole or not 1 <= batch[0] <= batch[1] <= batch[2]:
        return [f"batch {':'.join(map(str, batch))}: expected 1 <= smallest <= usual <= largest"]
    return []


def _tensors_json(tensors: tuple[TensorInfo, ...]) -> list[dict[str, Any]]:
    return [{**asdict(tensor), "shape": list(tensor.shape)} for tensor in tensors]


def _tensor(data: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(data["name"], data["dtype"], tuple(data["shape"]), data["meaning"])


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns an object of finite numbers, which can be written again."""
    value = data[key]
    if not isinstance(value, dict):
        raise TypeError(f"{key} must be an object, found {type(value).__name__}")
    try:
        canonical_json(value)
    except ValueError:
        raise TypeError(f"{key} holds numbers that are not finite") from None
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    """Returns an optional text; manifests of older versions do not have it."""
    value = data.get(key, "")
    if not isinstance(value, str):
        raise TypeError(f"{key} must be a text, found {value!r}")
    return value


def safe_name(name: str) -> str:
    """Returns a file name of the artefact.

    Raises:
        ArtifactError: the name leads out of the artefact's folder.
    """
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or not parts:
        raise ArtifactError(f"file name {name!r} leads out of the artefact's folder")
    return name
