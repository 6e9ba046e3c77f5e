"""A model of a Triton repository with everything that its configuration names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import GFTEdgeError
from gft_edge.export.deploy.triton.config import CONFIG, TYPES, ConfigTensor, ModelConfig, read_model_config
from gft_edge.export.graph.dtypes import TYPES as GRAPH_TYPES
from gft_edge.export.lint_deployment.shared.served_graph import ServedGraph, ServedTensor, read_served_graph
from gft_edge.export.lint_deployment.shared.source import find_manifest
from gft_edge.export.lint_deployment.triton.pbtxt_lines import field_lines, line_of
from gft_edge.manifest import DeploymentManifest, TensorInfo

FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py", "pytorch": "model.pt"}
"""Name of the model's file by backend (Triton, model repository)."""
PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt", "pytorch_libtorch": "pytorch"}
"""Backend by platform, its older name."""
ENSEMBLE = "ensemble"
BUDGET, PREPROCESS, CHECKPOINT = "gft_edge_budget", "gft_edge_preprocess", "gft_edge_checkpoint"
"""Parameters of a configuration that name the artefact."""

_SHORT = {long: short for short, _, long in GRAPH_TYPES}
TRITON_TYPES = {_SHORT[name]: triton for name, triton in TYPES.items()}
"""Name in ``data_type`` by short name of a graph's type."""


@dataclass(frozen=True)
class TritonSubject:
    """A configuration and what it names.

    Args:
        config: as read.
        lines: of its fields, see :func:`field_lines`.
        versions: folders of the model with a number for a name, ascending.
        file: of the newest version, also where it does not exist; None for an ensemble and for unknown backends.
        inputs, outputs: of the graph, or of the artefact where the file is an engine; None where neither is known.
        graph: None for engines.
        manifest: of the artefact, None for a graph of another origin.
    """

    config: ModelConfig
    lines: dict[str, int]
    versions: tuple[Path, ...]
    file: Path | None
    inputs: tuple[ServedTensor, ...] | None
    outputs: tuple[ServedTensor, ...] | None
    graph: ServedGraph | None
    manifest: DeploymentManifest | None

    @property
    def backend(self) -> str:
        """Backend, also where the configuration names a platform; empty for none."""
        return self.config.backend or PLATFORMS.get(self.config.platform, self.config.platform)

    @property
    def is_ensemble(self) -> bool:
        """Has steps and no file of its own."""
        return self.config.platform == ENSEMBLE or bool(self.config.steps)

    @property
    def batch(self) -> int | None:
        """Images of a request if the batch axis of the graph is static, else None."""
        shape = self.inputs[0].shape if self.inputs else None
        return shape[0] if shape and isinstance(shape[0], int) else None

    def line(self, path: str) -> int:
        """Returns the line of a field, or of the message that it is missing from."""
        return line_of(self.lines, path)

    def expected(self, tensor: ServedTensor) -> tuple[int, ...] | None:
        """Returns the ``dims`` of a tensor: without the batch axis where the server joins requests, -1 for dynamic axes."""
        if tensor.shape is None:
            return None
        axes = tensor.shape[1:] if self.config.max_batch_size > 0 else tensor.shape
        return tuple(axis if isinstance(axis, int) else -1 for axis in axes)

    def neighbour(self, name: str) -> ModelConfig | None:
        """Returns the configuration of another model of the repository; None if it has none that can be read."""
        path = self.config.folder.parent / name / CONFIG
        try:
            return read_model_config(path) if path.is_file() else None
        except GFTEdgeError:
            return None  # reported when that file is checked


def read_triton(path: Path) -> TritonSubject:
    """Reads a configuration, and the graph, the labels and the manifest that belong to it.

    Raises:
        ArtifactError: no configuration of a model, or its file is no ONNX graph.
        MissingExtraError: tritonclient is not installed.
    """
    config = read_model_config(path)
    lines = field_lines(path.read_text(encoding="utf-8"))
    versions = _versions(config.folder)
    backend = config.backend or PLATFORMS.get(config.platform, "")
    name = config.message.default_model_filename or FILES.get(backend, "")
    wanted = tuple(config.message.version_policy.specific.versions)
    chosen = [folder for folder in versions if int(folder.name) in wanted] if wanted else list(versions)
    file = chosen[-1] / name if chosen and name else None
    is_graph = file is not None and file.suffix == ".onnx" and file.is_file()
    graph = read_served_graph(file) if file is not None and is_graph else None
    manifest = find_manifest(path, graph.file if graph else None, parameter(config, BUDGET))
    inputs, outputs = (graph.inputs, graph.outputs) if graph else (None, None)
    if graph is None and manifest is not None and backend == "tensorrt":
        inputs, outputs = _served(manifest.inputs), _served(manifest.outputs)
    return TritonSubject(config, lines, versions, file, inputs, outputs, graph, manifest)


def _versions(folder: Path) -> tuple[Path, ...]:
    try:
        found = [child for child in folder.iterdir() if child.is_dir() and _is_version(child.name)]
    except OSError:
        return ()
    return tuple(sorted(found, key=lambda child: int(child.name)))


def _is_version(name: str) -> bool:
    """Returns whether Triton takes a folder for a version: digits that do not begin with 0."""
    return name.isascii() and name.isdigit() and not name.startswith("0")


def _served(tensors: tuple[TensorInfo, ...]) -> tuple[ServedTensor, ...]:
    return tuple(ServedTensor(tensor.name, _SHORT.get(tensor.dtype, ""), tensor.shape) for tensor in tensors)


def parameter(config: ModelConfig, name: str) -> str:
    """Returns a parameter of the configuration, empty for none."""
    return config.message.parameters[name].string_value if name in config.message.parameters else ""


def fits(dims: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Returns whether dims are the wanted ones, where -1 takes any size."""
    return len(dims) == len(wanted) and all(a == b or b == -1 for a, b in zip(dims, wanted))


def tensors(subject: TritonSubject) -> tuple[tuple[str, ConfigTensor, tuple[ServedTensor, ...] | None], ...]:
    """Returns every input and output of the configuration with its path and the tensors of the graph that it may name."""
    config = subject.config
    inputs = [(f"input[{n}]", tensor, subject.inputs) for n, tensor in enumerate(config.inputs)]
    return (*inputs, *((f"output[{n}]", tensor, subject.outputs) for n, tensor in enumerate(config.outputs)))
