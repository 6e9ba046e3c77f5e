"""Checkpoints: a folder of model.safetensors (weights) and config.json (everything else)."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gft_edge import __version__
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import canonical_json, replacing, sha256
from gft_edge.labels import require_names
from gft_edge.manifest import MANIFEST, Artifact
from gft_edge.preprocess import PreprocessSpec
from gft_edge.storage.filekinds import describe_file
from gft_edge.storage.seals import read_sealed, write_sealed

if TYPE_CHECKING:  # torch takes seconds to import: what config.json says is read without it
    from torch import Tensor, nn

SCHEMA = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SEALED_WEIGHTS = "weights_sha256"
BUILTIN = "builtin"
SMALL = 64_000_000
"""Bytes of weights up to which any machine can build the model, even a wrong one."""


@dataclass(frozen=True)
class CheckpointInfo:
    """The contents of config.json.

    Args:
        model: configuration of the model.
        labels: class names, one per output.
        preprocess: preprocessing of the pixels.
        metrics: measured figures, free form.
        provenance: recipe, seeds, versions.
        quantization: summary of the quantization, or None for a full-precision model.

    Raises:
        ConfigError: the labels do not fit the model, or one is not a name.
    """

    model: GFTConfig
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.labels) != self.model.num_classes:
            raise ConfigError(f"checkpoint: {len(self.labels)} labels for {self.model.num_classes} classes")
        require_names(self.labels, "checkpoint")

    @property
    def data(self) -> str:
        """Name of the data set the model was trained on, empty when unknown."""
        recipe = self.provenance.get("recipe")
        data = recipe.get("data") if isinstance(recipe, dict) else None
        name = data.get("name") if isinstance(data, dict) else None
        return name if isinstance(name, str) else ""

    def to_json(self) -> dict[str, Any]:
        """Returns the information as plain JSON values."""
        return {
            "schema": SCHEMA,
            "gft_edge": __version__,
            "model": self.model.to_json(),
            "labels": list(self.labels),
            "preprocess": self.preprocess.to_json(),
            "metrics": self.metrics,
            "provenance": self.provenance,
            "quantization": self.quantization,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> CheckpointInfo:
        """Reads what :meth:`to_json` returns."""
        if data.get("schema") != SCHEMA:
            raise ArtifactError(f"{where}: schema {data.get('schema')!r}, this version reads {SCHEMA}")
        try:
            return cls(
                model=GFTConfig.from_json(data["model"]),
                labels=tuple(data["labels"]),
                preprocess=PreprocessSpec.from_json(data["preprocess"]),
                metrics=data.get("metrics", {}),
                provenance=data.get("provenance", {}),
                quantization=data.get("quantization"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{where}: incomplete ({error})") from None
        except ConfigError as error:
            raise ArtifactError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Checkpoint:
    """A model read from disk, in eval mode, with its information and its :func:`checkpoint_hash`."""

    info: CheckpointInfo
    model: nn.Module
    sha256: str
    path: Path


def builtin_path() -> Path:
    """Returns the folder of the trained checkpoint of the built-in task."""
    return Path(__file__).parent / "builtin"


def resolve_checkpoint(name: str | Path) -> Path:
    """Returns a checkpoint folder for a path or the word ``builtin``.

    Raises:
        ArtifactError: there is no such folder.
    """
    path = builtin_path() if str(name) == BUILTIN else Path(name)
    takes = f"give a folder with {WEIGHTS} and {CONFIG}, or '{BUILTIN}'"
    if path.is_file():
        raise ArtifactError(f"checkpoint {path}: is {describe_file(path)}; {takes}")
    if not path.is_dir():
        raise ArtifactError(f"checkpoint {path}: no such folder; {takes}")
    if not (path / CONFIG).is_file():
        if (path / MANIFEST).is_file():
            raise ArtifactError(f"checkpoint {path}: is an exported artefact, not a checkpoint; {takes}")
        if (path / "quantization.json").is_file():
            raise ArtifactError(
                f"checkpoint {path}: is a quantized ONNX file of another program, no checkpoint; {takes}"
            )
        raise ArtifactError(f"checkpoint {path / CONFIG}: no such file; {takes}")
    return path


def read_info(path: Path) -> CheckpointInfo:
    """Reads config.json of a checkpoint folder."""
    file = path / CONFIG
    return CheckpointInfo.from_json(_read_config(path), f"checkpoint {file}")


def require_full_precision(info: CheckpointInfo, path: Path) -> None:
    """Refuses a quantized checkpoint.

    Raises:
        ConfigError: it is quantized.
    """
    if info.quantization is not None:
        raise ConfigError(f"checkpoint {path} is quantized already; give the full-precision one")


def require_parent(artifact: Artifact, checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint that an artefact was not made from.

    Raises:
        ArtifactError: with what to give, or how to make the artefact again.
    """
    made_from = artifact.manifest.checkpoint_sha256
    if checkpoint.sha256 != made_from:
        raise ArtifactError(
            f"artefact {artifact.path} was made from weights {made_from[:12]}, checkpoint {checkpoint.path} has "
            f"{checkpoint.sha256[:12]}; give the one that it was exported from (of an INT8 artefact the quantized one), or export "
            f"this one: gft-edge export {shlex.quote(str(checkpoint.path))} --out DIR"
        )


def _read_config(path: Path) -> dict[str, Any]:
    return read_sealed(path / CONFIG, "checkpoint", "train or import the checkpoint again, or restore the file")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads model.safetensors; half-precision storage comes back as float32.

    Raises:
        ArtifactError: the file is missing, damaged or not the one that config.json seals, or a value is not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / WEIGHTS
    if not file.is_file():
        raise ArtifactError(f"checkpoint {file}: no such file")
    try:
        weights = load_file(str(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"checkpoint {file}: damaged or not a safetensors file ({error})") from None
    if sha256(file) != _read_config(path).get(SEALED_WEIGHTS):
        raise ArtifactError(
            f"checkpoint {file}: is not the file that {CONFIG} was written with (its hash differs); the weights changed, or "
            "writing was interrupted: train or import the checkpoint again"
        )
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            if not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"checkpoint {file}: {name} holds NaN or infinity")
            weights[name] = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Fills a model strictly.

    Raises:
        ArtifactError: naming the first missing, unknown or misshapen tensor.
    """
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        raise ArtifactError(f"{where}: missing tensors {missing[:3]}, unknown tensors {unknown[:3]}")
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise ArtifactError(f"{where}: {name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}")
    model.load_state_dict(dict(weights))


def save_checkpoint(path: Path, info: CheckpointInfo, model: nn.Module, half: bool = False) -> None:
    """Writes a checkpoint folder, each file atomically; config.json seals the weights and itself.

    Args:
        path: folder, created if missing.
        info: contents of config.json.
        model: weights are copied to the CPU.
        half: store floating-point tensors as float16.
    """
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        tensors[name] = tensor.half() if half and tensor.is_floating_point() else tensor.clone()
    for leftover in path.glob(".tmp??????"):  # safetensors' own temporaries of a killed process
        leftover.unlink(missing_ok=True)
    with replacing(path / WEIGHTS) as temporary:
        save_file(tensors, str(temporary))
        weights = sha256(temporary)
    write_sealed(path / CONFIG, {**info.to_json(), SEALED_WEIGHTS: weights})


def checkpoint_hash(path: Path, info: CheckpointInfo) -> str:
    """Returns the identity of a checkpoint's function: the sha256 of its weights, joined with its quantization if any.

    The hash of the weights is the sealed one, which :func:`read_weights` compares with the file.
    """
    weights = str(_read_config(path)[SEALED_WEIGHTS])
    if info.quantization is None:
        return weights
    return hashlib.sha256((weights + canonical_json(info.quantization)).encode()).hexdigest()


def num_parameters(model: nn.Module) -> int:
    """Returns the number of trainable values."""
    return int(np.sum([p.numel() for p in model.parameters()], dtype=np.int64))


def _require_size(config: GFTConfig, path: Path) -> None:
    """Refuses a configuration far larger than the weights, before a model of that size is built.

    Raises:
        ArtifactError: the configuration is too large.
    """
    file = path / WEIGHTS
    least = 2 * 4 * config.embed_dim**2 * config.depth  # products of the attention alone, in half precision
    if file.is_file() and least > max(file.stat().st_size, SMALL):
        raise ArtifactError(
            f"checkpoint {path}: {CONFIG} declares {config.depth} blocks of width {config.embed_dim}, at least "
            f"{least // 10**6} MB, {WEIGHTS} has {file.stat().st_size / 1e6:.1f} MB; they do not belong together"
        )


def load_checkpoint(name: str | Path) -> Checkpoint:
    """Reads a checkpoint folder (or ``"builtin"``), quantized or not, into a model in eval mode.

    Raises:
        ArtifactError: the checkpoint is missing, damaged or of another schema.
    """
    path = resolve_checkpoint(name)
    info = read_info(path)
    _require_size(info.model, path)
    from gft_edge.model.build import build_model  # needs torch

    try:
        model = build_model(info.model)
    except ConfigError as error:
        raise ArtifactError(f"checkpoint {path}: {error}") from None
    load_weights(model, read_weights(path), f"checkpoint {path}")
    if info.quantization is not None:
        from gft_edge.quant.modules import insert_quantizers

        try:
            insert_quantizers(model, info.quantization["ranges"], info.quantization.get("precisions"))
        except (ConfigError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"checkpoint {path / CONFIG}: its quantization cannot be used ({error})") from None
    return Checkpoint(info, model.eval(), checkpoint_hash(path, info), path)
