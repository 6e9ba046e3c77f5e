"""An ONNX file of another program, float or quantized by ``quantize``, with all that its users need to run it.

A quantized model is a folder of ``model.onnx`` and ``quantization.json``; the record is sealed and holds the hash of the graph.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge import __version__
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import sha256
from gft_edge.manifest import MANIFEST, MODEL
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.backends.sessions import Session, onnxruntime_session
from gft_edge.storage.external_data import external_files
from gft_edge.storage.filekinds import FileKind, kind_of
from gft_edge.storage.seals import read_sealed, write_sealed

if TYPE_CHECKING:
    import onnx

SCHEMA = 1
RECORD = "quantization.json"
Layout = Literal["nchw", "nhwc"]
Shape = tuple[int | None, ...]
LOGITS = "logits"


@dataclass(frozen=True)
class ForeignLayer:
    """A layer of a foreign graph and how it was treated.

    Attributes:
        name: for people: ``blocks.0.qkv``.
        kind: its part in the network: ``"qkv"``, ``"proj"``, ``"fc1"``, ``"classifier"``, ...
        node: the graph's name of its node.
        precision: ``"int8"``, ``"int8-weights"`` or ``"high"``.
        reason: of the precision, in words.
        range: largest magnitude of its input that INT8 expresses; None where its input is not quantized.
    """

    name: str
    kind: str
    node: str
    precision: str
    reason: str
    range: float | None = None


@dataclass(frozen=True)
class ForeignQuantization:
    """The quantization of a foreign graph.

    Attributes:
        source, source_sha256: name and hash of the float file.
        precision: ``"int8"`` or ``"int8-weights"``.
        method: how ranges were found, ``"none"`` where none were needed.
        images: how many calibrated.
        card_id: identity of the calibration set, None without one.
        layers: all layers with weights, in the order of the graph.
        details: further plain JSON values: agreement with the float file, source of the preprocessing.
    """

    source: str
    source_sha256: str
    precision: str
    method: str
    images: int
    card_id: str | None
    layers: tuple[ForeignLayer, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ForeignModel:
    """A classifier in an ONNX file of another program.

    Attributes:
        path: as given: a file, or the folder of a quantized model.
        file: the ONNX file.
        sha256: of the file, joined with those of its files of weights where it has any.
        input_name: of the only input, float32.
        input_shape: (B, 3, H, W) or (B, H, W, 3); None is a batch of any size.
        layout: of the input.
        output_name: of the logits, (B, classes).
        classes: number of them.
        preprocess: of the pixels; None for a float file, which does not record it.
        labels: names of the classes; None for a float file.
        quantization: None for a float file.
    """

    path: Path
    file: Path
    sha256: str
    input_name: str
    input_shape: Shape
    layout: Layout
    output_name: str
    classes: int
    preprocess: PreprocessSpec | None = None
    labels: tuple[str, ...] | None = None
    quantization: ForeignQuantization | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the images."""
        rows, cols = self.input_shape[2:] if self.layout == "nchw" else self.input_shape[1:3]
        assert rows is not None
        assert cols is not None
        return rows, cols

    @property
    def batch(self) -> int | None:
        """Number of images that the graph takes; None for any."""
        return self.input_shape[0]

    def to_input(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Converts preprocessed images (B, 3, H, W) to the layout of the graph."""
        return images if self.layout == "nchw" else np.ascontiguousarray(np.moveaxis(images, 1, -1))

    def session(self, threads: int = 0) -> Session:
        """Opens the file in ONNX Runtime; the session takes preprocessed images (B, 3, H, W) of any number.

        Raises:
            ArtifactError: ONNX Runtime does not accept the file.
            MissingExtraError: onnxruntime is not installed.
        """
        opened = onnxruntime_session(self.file, self.quantization is not None, threads)
        return dataclasses.replace(opened, batch=self.batch, convert=self.to_input)

    def logits(self, session: Session, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns (B, classes) of preprocessed images (B, 3, H, W)."""
        return np.asarray(session(images)[self.output_name], np.float32)


def is_foreign(path: str | Path) -> bool:
    """Returns whether a path is an ONNX file outside of an artefact, or a folder of a quantized one."""
    path = Path(path)
    if path.is_dir():
        return (path / RECORD).is_file() and not (path / MANIFEST).exists()
    named = path.suffix.lower() == ".onnx"
    if named and not path.exists():
        return True  # so that the message is about a graph
    if not path.is_file() or (path.parent / MANIFEST).is_file():
        return False
    try:
        return named or kind_of(path) is FileKind.ONNX
    except OSError:
        return False


def load_foreign(path: str | Path, image_size: int | None = None) -> ForeignModel:
    """Reads an ONNX file of another program, or the folder of one that was quantized; no weights are read but for their hash.

    Args:
        path: ``MODEL.onnx``, or a folder of ``model.onnx`` and ``quantization.json``.
        image_size: rows and columns, for a graph that does not fix them.

    Raises:
        ArtifactError: missing or damaged, changed since it was quantized, or no classifier of float32 RGB images.
        ConfigError: another image size than the graph's.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_interface(path, path, image_size)
    file, record = path / MODEL, _read_record(path)
    model = _read_interface(path, file, image_size)
    if model.sha256 != record["model"]["sha256"]:
        raise ArtifactError(f"graph {file}: was changed since it was quantized (its hash differs); quantize it again")
    return dataclasses.replace(model, **_from_record(record, path / RECORD))


def foreign_sha256(file: Path) -> str:
    """Returns the sha256 of an ONNX file, joined with those of its files of weights where it has any.

    Raises:
        ArtifactError: one of them is missing.
    """
    own = sha256(file)
    others = sorted(external_files(file))
    try:
        parts = [f"{name}\n{sha256(file.parent / name)}" for name in others]
    except OSError as error:
        raise ArtifactError(
            f"graph {file}: {error.filename}, which holds weights, cannot be read ({error.strerror})"
        ) from None
    return hashlib.sha256("\n".join([own, *parts]).encode()).hexdigest() if parts else own


def _read_interface(path: Path, file: Path, image_size: int | None) -> ForeignModel:
    from gft_edge.export.graph.loading import load_graph

    graph = load_graph(file).graph
    where = f"graph {file}"
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ArtifactError(
            f"{where}: has {len(inputs)} inputs ({names}), expected one: images; export it with images alone"
        )
    shape, layout = _input_shape(inputs[0], where, image_size)
    name, classes = _output(graph, file, where)
    return ForeignModel(path, file, foreign_sha256(file), inputs[0].name, shape, layout, name, classes)


def _sizes(value: onnx.ValueInfoProto) -> Shape | None:
    """Returns the sizes of a tensor, None for dynamic ones; None without a rank."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)


def _input_shape(value: onnx.ValueInfoProto, where: str, image_size: int | None) -> tuple[Shape, Layout]:
    import onnx

    kind = value.type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        found = onnx.TensorProto.DataType.Name(kind).lower() if kind else "of no tensor type"
        raise ArtifactError(f"{where}: input {value.name} is {found}, expected float32; export the float32 model")
    shape = _sizes(value)
    if shape is None or len(shape) != 4:
        raise ArtifactError(f"{where}: input {value.name} has shape {shape}, expected images (batch, 3, height, width)")
    layout: Layout = "nhwc" if shape[3] == 3 and shape[1] != 3 else "nchw"
    batch, channels, rows, cols = shape if layout == "nchw" else (shape[0], shape[3], *shape[1:3])
    if channels not in (3, None):
        raise ArtifactError(f"{where}: input {value.name} has {channels} channels, expected RGB images with 3")
    if (rows is None or cols is None) and image_size is None:
        raise ArtifactError(
            f"{where}: input {value.name} does not fix the size of the images; give --image-size, or export it with a fixed size"
        )
    if image_size is not None and any(size not in (image_size, None) for size in (rows, cols)):
        raise ConfigError(f"{where}: input {value.name} takes images of {rows} x {cols}, not {image_size}")
    rows, cols = rows or image_size, cols or image_size
    return (batch, 3, rows, cols) if layout == "nchw" else (batch, rows, cols, 3), layout


def _output(graph: onnx.GraphProto, file: Path, where: str) -> tuple[str, int]:
    """Returns name and number of classes of the output with the logits."""
    found: dict[str, Shape | None] = {value.name: _sizes(value) for value in graph.output}
    if any(shape is None or (len(shape) == 2 and shape[1] is None) for shape in found.values()):
        from gft_edge.export.graph.loading import load_graph
        from gft_edge.export.graph.view import view

        inferred = view(load_graph(file))
        for name in found:
            sizes = inferred.shape(name)
            found[name] = None if sizes is None else tuple(s if isinstance(s, int) else None for s in sizes)
    logits = {name: shape[1] for name, shape in found.items() if shape and len(shape) == 2 and shape[1] is not None}
    if len(logits) > 1 and LOGITS in logits:
        logits = {LOGITS: logits[LOGITS]}
    if len(logits) != 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in found.items())
        raise ArtifactError(
            f"{where}: has {len(logits)} outputs of shape (batch, classes) among {listed}, expected one; export a "
            "classifier with its logits alone"
        )
    ((name, classes),) = logits.items()
    return name, classes


def write_record(folder: Path, model: ForeignModel) -> None:
    """Writes quantization.json of a quantized model beside its graph.

    Raises:
        OutputError: it cannot be written.
    """
    quantization, spec = model.quantization, model.preprocess
    assert quantization is not None
    assert spec is not None
    assert model.labels is not None
    write_sealed(
        folder / RECORD,
        {
            "schema": SCHEMA,
            "gft_edge": __version__,
            "model": {"file": MODEL, "sha256": model.sha256},
            "source": {"name": quantization.source, "sha256": quantization.source_sha256},
            "input": {"name": model.input_name, "shape": list(model.input_shape), "layout": model.layout},
            "output": {"name": model.output_name, "classes": model.classes},
            "preprocess": spec.to_json(),
            "labels": list(model.labels),
            "precision": quantization.precision,
            "method": quantization.method,
            "images": quantization.images,
            "card_id": quantization.card_id,
            "layers": [asdict(layer) for layer in quantization.layers],
            "details": dict(quantization.details),
        },
    )


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise ArtifactError(f"{folder}: has no {RECORD}; give an ONNX file, or a folder that quantize wrote for one")
    data = read_sealed(path, "quantization", "quantize the graph again")
    if data.get("schema") != SCHEMA or not isinstance(data.get("model"), dict) or "sha256" not in data["model"]:
        raise ArtifactError(f"quantization {path}: schema {data.get('schema')!r}, this version reads {SCHEMA}")
    return data


def _from_record(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the fields of :class:`ForeignModel` that the record holds."""
    try:
        return {
            "preprocess": PreprocessSpec.from_json(data["preprocess"]),
            "labels": tuple(data["labels"]),
            "quantization": ForeignQuantization(
                source=data["source"]["name"],
                source_sha256=data["source"]["sha256"],
                precision=data["precision"],
                method=data["method"],
                images=data["images"],
                card_id=data["card_id"],
                layers=_layers(data["layers"]),
                details=data["details"],
            ),
        }
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ArtifactError(f"quantization {path}: incomplete ({error})") from None


def _layers(data: Sequence[Mapping[str, Any]]) -> tuple[ForeignLayer, ...]:
    return tuple(ForeignLayer(**layer) for layer in data)
