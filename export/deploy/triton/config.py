"""Reads and writes the configuration of a model of Triton Inference Server (``config.pbtxt``), by the server's own protobuf.

The message is ``inference.ModelConfig`` of triton-inference-server/common, ``protobuf/model_config.proto``; tritonclient brings
it, and is imported when a function here is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError, MissingExtraError

CONFIG = "config.pbtxt"
MAX_BYTES = 1 << 20
"""Larger files are no configuration."""

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
"""Name in ``data_type`` by name of the type in a manifest."""


@dataclass(frozen=True)
class ConfigTensor:
    """An input or output in a configuration.

    Attributes:
        data_type: for example ``"TYPE_FP32"``.
        dims: without the batch axis where the model's ``max_batch_size`` is above 0; -1 is any size.
        label_filename: of an output, relative to the model's folder; empty for none.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    label_filename: str = ""


@dataclass(frozen=True)
class EnsembleStep:
    """A step of an ensemble.

    Attributes:
        input_map, output_map: tensor of the ensemble by tensor of the step's model.
    """

    model_name: str
    model_version: int
    input_map: dict[str, str]
    output_map: dict[str, str]


@dataclass(frozen=True)
class WarmUp:
    """A request that the server makes before it says that a model is ready.

    Attributes:
        batch_size: 0 for none: the shapes hold the batch axis then.
        inputs: data type and dims by name.
    """

    name: str
    batch_size: int
    inputs: dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ModelConfig:
    """A configuration as read from a file.

    Attributes:
        path: of the file.
        name: empty means the name of the folder.
        backend, platform: one of them is empty in most configurations; an ensemble has ``platform == "ensemble"``.
        max_batch_size: 0 for a model without a batch axis of the server's.
        dynamic_batching: the server joins requests.
        preferred_batch_sizes, max_queue_delay_us: of dynamic batching.
        instance_kinds: ``"KIND_CPU"``, ``"KIND_GPU"``, ``"KIND_AUTO"`` or ``"KIND_MODEL"`` of each instance group.
        accelerators: names of the accelerators on a GPU, for example ``"tensorrt"``.
        steps: of an ensemble.
        message: the whole ``inference.ModelConfig``.
    """

    path: Path
    name: str
    backend: str
    platform: str
    max_batch_size: int
    inputs: tuple[ConfigTensor, ...]
    outputs: tuple[ConfigTensor, ...]
    dynamic_batching: bool
    preferred_batch_sizes: tuple[int, ...]
    max_queue_delay_us: int
    instance_kinds: tuple[str, ...]
    accelerators: tuple[str, ...]
    warm_ups: tuple[WarmUp, ...]
    steps: tuple[EnsembleStep, ...]
    message: Any

    @property
    def folder(self) -> Path:
        """Folder of the model in the repository."""
        return self.path.parent


def messages() -> Any:
    """Returns tritonclient's module of protobuf messages.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """
    try:
        return importlib.import_module("tritonclient.grpc.model_config_pb2")
    except ImportError:
        raise MissingExtraError("tritonclient", "triton", "whose protobuf describes models for Triton") from None


def read_model_config(path: Path) -> ModelConfig:
    """Reads a ``config.pbtxt``.

    Raises:
        ArtifactError: missing, too large, no UTF-8 text, or no configuration: the first line that is wrong is named.
        MissingExtraError: tritonclient is not installed.
    """
    message_types = messages()
    from google.protobuf import text_format

    where = f"Triton configuration {path}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{where}: cannot be read ({error.strerror or error})") from None
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{where}: is larger than {MAX_BYTES} bytes, is it a configuration?")
    message = message_types.ModelConfig()
    try:
        text_format.Parse(data.decode("utf-8"), message)
    except UnicodeDecodeError:
        raise ArtifactError(f"{where}: is no UTF-8 text") from None
    except (text_format.ParseError, RecursionError) as error:
        raise ArtifactError(f"{where}: is no inference.ModelConfig ({' '.join(str(error).split())})") from None
    return _from_message(path, message, message_types)


def write_model_config(path: Path, message: Any) -> None:
    """Writes a message as ``config.pbtxt``; the same message gives the same bytes."""
    from google.protobuf import text_format

    path.write_text(text_format.MessageToString(message, as_utf8=True), encoding="utf-8", newline="\n")


def _from_message(path: Path, message: Any, types: Any) -> ModelConfig:
    batching = message.dynamic_batching
    accelerators = message.optimization.execution_accelerators
    return ModelConfig(
        path=path,
        name=message.name,
        backend=message.backend,
        platform=message.platform,
        max_batch_size=message.max_batch_size,
        inputs=_tensors(message.input, types),
        outputs=_tensors(message.output, types),
        dynamic_batching=message.HasField("dynamic_batching"),
        preferred_batch_sizes=tuple(batching.preferred_batch_size),
        max_queue_delay_us=batching.max_queue_delay_microseconds,
        instance_kinds=tuple(types.ModelInstanceGroup.Kind.Name(group.kind) for group in message.instance_group),
        accelerators=tuple(accelerator.name for accelerator in accelerators.gpu_execution_accelerator),
        warm_ups=tuple(
            WarmUp(
                warm_up.name,
                warm_up.batch_size,
                {
                    name: (types.DataType.Name(tensor.data_type), tuple(tensor.dims))
                    for name, tensor in sorted(warm_up.inputs.items())
                },
            )
            for warm_up in message.model_warmup
        ),
        steps=tuple(
            EnsembleStep(step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))
            for step in message.ensemble_scheduling.step
        ),
        message=message,
    )


def _tensors(tensors: Iterable[Any], types: Any) -> tuple[ConfigTensor, ...]:
    return tuple(
        ConfigTensor(
            tensor.name,
            types.DataType.Name(tensor.data_type),
            tuple(tensor.dims),
            getattr(tensor, "label_filename", ""),
        )
        for tensor in tensors
    )
