"""The artefact: a folder with a manifest that names, describes and hashes every file in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.config.reader import load_dataclass
from gft_edge.errors import ArtifactError, ConfigError, GFTEdgeError
from gft_edge.external_data import external_files
from gft_edge.filekinds import describe_file
from gft_edge.files import canonical_json, sha256
from gft_edge.labels import require_names
from gft_edge.locks import locked
from gft_edge.preprocess import PreprocessSpec
from gft_edge.seals import read_sealed, write_sealed

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
GOLDEN = "golden.npz"
WEIGHTS = "weights.bin"
"""What the graphs of a family share."""

MapsMode = Literal["none", "compact", "dense"]
HighPrecision = Literal["fp32", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-weights", "fp8"]
InputKind = Literal["float", "uint8"]
Dialect = Literal["trt10", "trt8"]
"""What TensorRT 10, 11 and RTX read, and what 8.6 reads; ONNX Runtime reads both."""

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
    """One of several token budgets in an artefact: its graph and what that gives.

    Args:
        budget: compiled into the graph.
        outputs: the graph's.
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
        model, labels, preprocess: what the checkpoint said.
        budget: the static token budget compiled into the graph.
        precision: of the linear layers.
        rest: of everything else but the importance path, which is float32 always.
        maps: which importance outputs the graph has.
        batch: smallest, usual and largest number of images of a request; the batch axis is static where all are the same.
        opset: ONNX operator set.
        dialect: form of the graph, by the generation of TensorRT that needs it.
        inputs, outputs: the graph's interface.
        checkpoint_sha256: identity of the checkpoint the graph was made from (weights and quantization).
        quantization: summary, or None.
        parity: figures of the comparison made when exporting.
        tools: versions of the tools involved.
        files: every other file of the folder, by relative path.
        data: name of the data set the model was trained on, empty when it is not known.
        golden_images: what the images of golden.npz are, empty when it is not known.
        family: further token budgets of the same weights, by id; their graphs share the file of the weights.

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
            problems.append(f"precision {self.precision!r} goes with the same rest, found {self.rest!r}")
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
        """Whether linear layers compute in 8 bits."""
        return self.precision in QUANTIZED

    @property
    def static_batch(self) -> int | None:
        """Images that the graph takes if its batch axis is static, else None."""
        return static_batch(self.batch)

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
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
        """The inverse of :meth:`to_json`.

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
                model=load_dataclass(GFTConfig, data["model"], where),
                labels=tuple(data["labels"]),
                preprocess=spec,
                budget=TokenBudget.from_json(data["budget"]),
                precision=data["precision"],
                rest=data["rest"],
                maps=data["maps"],
                batch=tuple(data["batch"]),
                opset=data["opset"],
                dialect=data.get("dialect", "trt10"),  # older artefacts know one dialect
                inputs=tuple(_tensor(t) for t in data["inputs"]),
                outputs=tuple(_tensor(t) for t in data["outputs"]),
                checkpoint_sha256=data["checkpoint_sha256"],
                quantization=None if data["quantization"] is None else _object(data, "quantization"),
                parity=_object(data, "parity"),
                tools=_object(data, "tools"),
                data=_text(data, "data"),
                golden_images=_text(data, "golden_images"),
                files={_safe_name(name): FileInfo(**info) for name, info in data["files"].items()},
                family={
                    name: Member(
                        TokenBudget.from_json(member["budget"]),
                        tuple(_tensor(t) for t in member["outputs"]),
                        _safe_name(member["model"]),
                        _safe_name(member["golden"]),
                    )
                    for name, member in data["family"].items()
                },
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{where}: incomplete or malformed ({error!r})") from None
        except GFTEdgeError as error:
            raise ArtifactError(f"{where}: {error}") from None


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
    """An object of finite numbers, which can be written again."""
    value = data[key]
    if not isinstance(value, dict):
        raise TypeError(f"{key} must be an object, found {type(value).__name__}")
    try:
        canonical_json(value)
    except ValueError:
        raise TypeError(f"{key} holds numbers that are not finite") from None
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    """An optional text: manifests of older versions do not have it."""
    value = data.get(key, "")
    if not isinstance(value, str):
        raise TypeError(f"{key} must be a text, found {value!r}")
    return value


def _safe_name(name: str) -> str:
    """Refuses names that lead out of the artefact's folder."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or not parts:
        raise ArtifactError(f"file name {name!r} leads out of the artefact's folder")
    return name


@dataclass(frozen=True)
class Artifact:
    """An artefact on disk, with its manifest read.

    Attributes:
        path: the folder.
        manifest: what it says; of a member of a family, with that member's budget, outputs and graph.
        member: id of the member's budget, empty for the artefact itself.
    """

    path: Path
    manifest: DeploymentManifest
    member: str = ""

    def file(self, name: str) -> Path:
        """Path of a file after its size and hash were checked, and for a graph those of every file that it reads.

        Raises:
            ArtifactError: not in the manifest, missing, or changed since it was written.
        """
        info = self.manifest.files.get(name)
        path = self.path / self._on_disk(name)
        if info is None:
            raise ArtifactError(f"artefact {self.path}: {name} is not in its manifest; export it again")
        if not path.is_file():
            raise ArtifactError(f"artefact {self.path}: {path.name} is missing; export it again")
        if path.stat().st_size != info.size or sha256(path) != info.sha256:
            raise ArtifactError(
                f"artefact {self.path}: {path.name} was changed since it was written (its hash differs)"
            )
        if name == MODEL:
            for location in sorted(external_files(path)):
                if location not in self.manifest.files:
                    raise ArtifactError(
                        f"artefact {self.path}: {path.name} reads {location!r}, which is not in its manifest; export it again"
                    )
                self.file(location)
        return path

    def own(self, name: str) -> str:
        """Name of a file that is written for this artefact or member: members do not overwrite each other's."""
        path = Path(name)
        return str(path.with_name(f"{path.stem}-{self.member}{path.suffix}")) if self.member else name

    def _on_disk(self, name: str) -> str:
        member = self.manifest.family.get(self.member)
        return name if member is None else {MODEL: member.model, GOLDEN: member.golden}.get(name, name)

    @property
    def address(self) -> str:
        """What :func:`load_artifact` takes to open the same again."""
        return f"{self.path}@{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """Short name for tables: the folder's, with the member's budget."""
        folder = self.path.resolve().name
        return f"{folder}@{self.member}" if self.member else folder


def split_member(path: str | Path) -> tuple[Path, str]:
    """Folder and member of ``"folder@147-98-49"``; no member where the path is a folder as it stands."""
    folder, _, member = str(path).rpartition("@")
    return (Path(folder), member) if folder and not Path(path).is_dir() else (Path(path), "")


def load_artifact(path: str | Path) -> Artifact:
    """Reads and checks an artefact's manifest; files are checked when they are asked for.

    Args:
        path: folder; ``folder@147-98-49`` for a member of a family.

    Raises:
        ArtifactError: no such folder or member, no manifest, or a damaged one.
    """
    folder, name = split_member(path)
    if folder.is_file():
        raise ArtifactError(
            f"artefact {folder}: is {describe_file(folder)}; an artefact is a folder, made with gft-edge export"
        )
    if not folder.is_dir():
        kind = "is the checkpoint of the package" if str(folder) == "builtin" else "no such folder"
        raise ArtifactError(f"artefact {folder}: {kind}; make one with gft-edge export")
    file = folder / MANIFEST
    if not file.is_file():
        is_checkpoint = all((folder / name).is_file() for name in ("config.json", "model.safetensors"))
        kind = f"is a checkpoint; make an artefact of it with gft-edge export {folder}"
        raise ArtifactError(
            f"artefact {folder}: {kind if is_checkpoint else f'has no {MANIFEST}; make one with gft-edge export'}"
        )
    for inside in sorted(folder.iterdir()):
        if inside.is_symlink() and not inside.is_file():  # reports and engines would be written wherever it leads
            raise ArtifactError(f"artefact {folder}: {inside.name} is a link out of it; put a folder in its place")
    manifest = DeploymentManifest.from_json(
        read_sealed(file, "manifest", "export the artefact again"), f"manifest {file}"
    )
    if not name or name == manifest.budget.id:
        return Artifact(folder, manifest)
    member = manifest.family.get(name)
    missing = [] if member is None else [n for n in (member.model, member.golden) if n not in manifest.files]
    if member is None or missing:
        there = ", ".join((manifest.budget.id, *manifest.family))
        raise ArtifactError(f"artefact {folder}: has no graph of budget {name}; there are: {there}")
    files = {**manifest.files, MODEL: manifest.files[member.model], GOLDEN: manifest.files[member.golden]}
    return Artifact(folder, replace(manifest, budget=member.budget, outputs=member.outputs, files=files), name)


def register_files(artifact: Artifact, names: list[str], parity: dict[str, Any] | None = None) -> Artifact:
    """Adds files that lie in the folder to the manifest (or renews their hashes), and writes it.

    The manifest is read again first, under the folder's lock, so that what other processes added meanwhile stays. A caller that
    writes files others may write too holds the lock (:func:`gft_edge.locks.locked`) from before it writes them.
    """
    with locked(artifact.path):
        whole = load_artifact(artifact.path).manifest
        files = {**whole.files, **{_safe_name(n): FileInfo.of(artifact.path / n) for n in names}}
        manifest = replace(whole, files=files, parity={**whole.parity, **(parity or {})})
        write_sealed(artifact.path / MANIFEST, manifest.to_json())
    return load_artifact(f"{artifact.path}@{artifact.member}" if artifact.member else artifact.path)
