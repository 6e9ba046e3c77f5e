"""Reads weights that other programs saved, as data and never as code, and removes their wrappers and prefixes."""

from __future__ import annotations

import _codecs
import argparse
import datetime
import pickletools
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gft_edge.errors import ArtifactError
from gft_edge.storage.filekinds import FileKind, kind_of

WRAPPERS = (
    "model_state_dict",
    "state_dict",
    "model",
    "net",
    "network",
    "model_state",
    "weights",
    "params",
    "module",
    "student",
    "teacher",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "ema_model",
)
"""Keys under which training programs keep a state dict, preferred ones first; averages come last."""
_STATES = ("optim", "sched", "scaler", "config", "cfg", "args", "hparams", "rng", "callbacks", "loops", "criterion")
"""Prefixes of keys that do not hold a model."""
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts that torch.compile and FSDP insert into names, before any module."""
MANY_CONVOLUTIONS = 8
"""A ViT has one, a ViT with a convolutional stem a few."""
_HINTS = {
    FileKind.TORCHSCRIPT: "; save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
    FileKind.ONNX: "; give the weights that it was exported from, or quantize the graph: gft-edge quantize",
}


@dataclass(frozen=True)
class StateDict:
    """Weights of one model.

    Attributes:
        weights: tensors by name, without wrappers and prefixes.
        notes: the choices made and the tensors left out, one sentence each.
        beside: tensors outside the prefix of the model, by their names in the file, such as a classifier or a text encoder.
        choices: those of the notes that say which of several state dicts was taken.
    """

    weights: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    choices: tuple[str, ...] = ()


def read_weights_file(path: Path, anchors: Sequence[str] = ()) -> StateDict:
    """Reads a state dict from a PyTorch or safetensors file, independent of its file name extension.

    Args:
        path: of the file.
        anchors: names in the model's state dict; any text before them is a prefix. Without them, only prefixes that
            all names share are removed.

    Raises:
        ArtifactError: the file is missing, of another kind or damaged, contains objects that are code, or has no tensors
            or a tensor with NaN or infinity.
    """
    found = state_dict_of(_load(path), str(path), anchors)
    for name, tensor in found.weights.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise ArtifactError(f"{path}: {name} is not a plain tensor (sparse, quantized or without values)")
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor.float()).all()):
            raise ArtifactError(f"{path}: {name} holds NaN or infinity; the training that saved it failed")
    return found


def _load(path: Path) -> object:
    try:
        kind = kind_of(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error})") from None
    if kind is FileKind.SAFETENSORS:
        try:
            return load_file(str(path))
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path}: damaged or cut off ({' '.join(str(error).split())})") from None
    if kind not in (FileKind.PYTORCH, FileKind.PICKLE):
        raise ArtifactError(f"{path}: cannot be read as a file of tensors: it is {kind}{_HINTS.get(kind, '')}")
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises any exception, and its message advises to run the bytes
        foreign = _foreign(path)
        if foreign:
            raise ArtifactError(
                f"{path}: cannot be read as a file of tensors: it holds an object of {foreign}, which is code and is not "
                "run; save the weights alone: torch.save(model.state_dict(), FILE)"
            ) from None
        raise ArtifactError(
            f"{path}: cannot be read as a file of tensors: it is damaged or cut off ({type(error).__name__})"
        ) from None


def _harmless() -> list[Any]:
    """Returns types that training programs save beside weights and that are safe to read: NumPy numbers, arguments, dates."""
    scalar = np.float64(0).__reduce__()[0]
    rebuild = np.zeros(0).__reduce__()[0]
    found: list[Any] = [argparse.Namespace, types.SimpleNamespace, np.dtype, np.ndarray, _codecs.encode]
    found += [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFDSU"]
    found += [datetime.date, datetime.datetime, datetime.timedelta]
    for name in ("pathlib", "pathlib._local"):  # before and from Python 3.13
        found += [(PurePosixPath, f"{name}.PosixPath"), (PureWindowsPath, f"{name}.WindowsPath")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and from NumPy 2
        found += [(scalar, f"{module}.scalar"), (rebuild, f"{module}._reconstruct")]
    return found


def _foreign(path: Path) -> str | None:
    """Returns the first class or function that reading the file would run."""
    plain = ("torch.", "collections.OrderedDict", "collections.Counter")
    known = {f"{module}.{kind}" for module in ("__builtin__", "builtins") for kind in ("set", "bytearray", "complex")}
    known |= {_name_of(entry) for entry in _harmless()}
    try:
        names = list(_globals_of(path))
    except Exception:  # bytes of any kind
        return None
    for name in names:
        own = name.startswith("torch.nn.") and not name.startswith("torch.nn.parameter.Parameter")
        if name not in known and (own or not name.startswith(plain)):
            return name
    return None


def _name_of(entry: Any) -> str:
    return str(entry[1]) if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def _globals_of(path: Path) -> Iterator[str]:
    """Yields the names of the classes and functions in a file's pickles, in order; runs nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    else:
        parts = [path.read_bytes()]
    for part in parts:
        rest = part
        while rest[:1] == b"\x80":
            texts: list[str] = []
            end = len(rest)
            for opcode, argument, position in pickletools.genops(rest):
                if opcode.name == "GLOBAL":
                    yield str(argument).replace(" ", ".", 1)
                elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
                    yield f"{texts[-2]}.{texts[-1]}"
                elif isinstance(argument, str):
                    texts.append(argument)
                end = (position or 0) + 1
            rest = rest[end:]


def state_dict_of(tree: object, where: str, anchors: Sequence[str] = ()) -> StateDict:
    """Returns the weights in the contents of a file, without wrappers and prefixes in any nesting.

    Args:
        tree: of mappings and tensors.
        where: for messages.
        anchors: as in :func:`read_weights_file`.

    Raises:
        ArtifactError: there are no tensors with names.
    """
    if not isinstance(tree, Mapping):
        raise ArtifactError(f"{where}: holds a {type(tree).__name__}, not a state dict")
    notes: list[str] = []
    state: Mapping[Any, Any] = tree
    while candidates := [key for key, value in state.items() if _is_state(key, value)]:
        candidates.sort(key=lambda key: WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS))
        if len(candidates) > 1:
            notes.append(f"took {candidates[0]!r}, left out {', '.join(repr(key) for key in candidates[1:])}")
        state = state[candidates[0]]
    unnamed = [key for key in state if not isinstance(key, str)]
    if unnamed:
        raise ArtifactError(
            f"{where}: not a state dict: its keys are numbers such as {unnamed[0]!r}, not names of tensors"
        )
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        keys = ", ".join(repr(key) for key in list(state)[:3]) or "nothing"
        raise ArtifactError(f"{where}: not a state dict: it has no tensors, it holds {keys}")
    found = strip_prefixes(weights, anchors)
    return StateDict(found.weights, (*notes, *found.notes), found.beside, (*notes, *found.choices))


def _is_state(key: object, value: object) -> bool:
    """Returns True when a value is, or wraps, a state dict."""
    if not isinstance(key, str) or not isinstance(value, Mapping) or key.lower().startswith(_STATES):
        return False
    named = [inner for name, inner in value.items() if isinstance(name, str)]
    return any(isinstance(inner, Tensor) for inner in named) or any(
        _is_state(name, inner) for name, inner in value.items()
    )


def strip_prefixes(weights: Mapping[str, Tensor], anchors: Sequence[str] = ()) -> StateDict:
    """Removes the prefixes that DataParallel, torch.compile, Lightning and similar programs add to names."""
    named = {}
    for name, tensor in weights.items():
        plain = name
        for mark in _ANYWHERE:
            plain = plain.replace(mark, "")
        named[plain] = tensor
    prefixes = sorted(
        {prefix for name in named for anchor in anchors if (prefix := _before(name, anchor)) is not None}, key=_rank
    )
    if prefixes:
        kept = {name[len(prefixes[0]) :]: tensor for name, tensor in named.items() if name.startswith(prefixes[0])}
        left = {name: named[name] for name in sorted(named) if not name.startswith(prefixes[0])}
        choices: tuple[str, ...] = ()
        notes: tuple[str, ...] = ()
        if len(prefixes) > 1:
            others = ", ".join(repr(prefix) for prefix in prefixes[1:])
            notes = choices = (f"took {prefixes[0] or 'no prefix'!r}, left out {others}",)
        elif left:
            notes = (f"left out {len(left)} tensors beside the model ({', '.join(list(left)[:3])})",)
        return StateDict(kept, notes, left, choices)
    while (shared := _shared_prefix(named)) is not None:
        named = {name[len(shared) :]: tensor for name, tensor in named.items()}
    return StateDict(named)


_SHELLS = (
    "module",
    "model",
    "net",
    "network",
    "backbone",
    "encoder",
    "student",
    "teacher",
    "ema",
    "ema_model",
    "model_ema",
)


def _shared_prefix(names: Mapping[str, object]) -> str | None:
    first = {name.partition(".")[0] for name in names if "." in name}
    if len(first) != 1 or not all("." in name for name in names):
        return None
    (word,) = first
    return f"{word}." if word in _SHELLS else None


def _before(name: str, anchor: str) -> str | None:
    """Returns the text before an anchor in a name; None when the name does not end in the whole anchor."""
    prefix = name.removesuffix(anchor)
    return prefix if prefix != name and (not prefix or prefix.endswith(".")) else None


def _rank(prefix: str) -> tuple[bool, int, str]:
    return any(word in prefix for word in ("ema", "teacher")), len(prefix), prefix


def looks_like(weights: Mapping[str, Tensor]) -> str | None:
    """Describes the known model that a state dict belongs to, in words that follow "it looks like"; None for an unknown one."""

    def size(name: str, axis: int = 0) -> int | None:
        tensor = weights.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else None

    def count(start: str) -> int:
        numbers = {name.removeprefix(start).partition(".")[0] for name in weights if name.startswith(start)}
        return len([number for number in numbers if number.isdecimal()])

    if "patch_embed.proj.weight" in weights and "blocks.0.attn.qkv.weight" in weights:
        kind = "distilled DeiT" if "dist_token" in weights else "ViT"
        sizes = [f"embed dim {size('blocks.0.attn.qkv.weight', 1)}", f"depth {count('blocks.')}"]
        sizes += [f"{size('head.weight')} classes"] * ("head.weight" in weights)
        return f"a plain timm {kind} ({', '.join(sizes)})"
    layers = next((start for start in ("vit.encoder.layer.", "encoder.layer.") if count(start)), None)
    if layers and any(name.endswith("embeddings.cls_token") for name in weights):
        return f"a ViT of Hugging Face transformers (depth {count(layers)})"
    if "conv_proj.weight" in weights:
        return f"a ViT of torchvision (depth {count('encoder.layers.encoder_layer_') or count('encoder.layers.')})"
    if "conv1.weight" in weights and "layer1.0.conv1.weight" in weights:
        blocks = sum(count(f"layer{stage}.") for stage in range(1, 5))
        classes = size("fc.weight")
        return f"a plain ResNet of timm or torchvision ({blocks} blocks{f', {classes} classes' if classes else ''})"
    if any("relative_position_bias_table" in name for name in weights):
        return "a Swin Transformer"
    convolutions = sum(tensor.ndim == 4 for tensor in weights.values())
    if convolutions >= MANY_CONVOLUTIONS:
        return f"a convolutional network ({convolutions} convolutions)"
    return None
