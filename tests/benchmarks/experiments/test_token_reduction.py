"""ToMe and EViT against slow implementations token by token, and through ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from gft_edge.benchmarks.experiments.peers import evit, tome
from gft_edge.benchmarks.experiments.peers.models import export_peer
from gft_edge.benchmarks.experiments.peers.vit_sizes import VitSizes
from gft_edge.config.model import preset

DIM, HEADS, DEPTH, CLASSES, SIDE = 32, 2, 4, 5, 80
PATCHES = 25
SIZES = VitSizes(DEPTH, PATCHES, DIM, HEADS, 3 * 16 * 16, CLASSES)
MERGED, KEEP, PLACES = (5, 4, 0, 3), (13, 7), (2, 3)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=CLASSES
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def _embedded(vit, image):
    patches = vit.patch_embed(image[None])[0]
    return torch.cat((vit.cls_token[0], patches)) + vit.pos_embed[0]


def _attention(block, x, bias):
    """One image, head by head: output rows, keys (T, H, d), weights (H, T, T)."""
    q, k, v = (block.attn.qkv(block.norm1(x))).reshape(len(x), 3, HEADS, DIM // HEADS).unbind(1)
    rows, weights = [], []
    for head in range(HEADS):
        w = torch.softmax(q[:, head] @ k[:, head].T / (DIM // HEADS) ** 0.5 + bias[None], dim=1)
        rows.append(w @ v[:, head])
        weights.append(w)
    return block.attn.proj(torch.cat(rows, dim=1)), k, torch.stack(weights)


def _slow_tome(vit, image):
    x, size = _embedded(vit, image), torch.ones(PATCHES + 1)
    for block, r in zip(vit.blocks, MERGED):
        out, k, _ = _attention(block, x, size.log())
        x = x + out
        metric = torch.nn.functional.normalize(k.mean(dim=1), dim=1)
        first, second = list(range(0, len(x), 2)), list(range(1, len(x), 2))
        pairs = []
        for a in first:
            if a != 0:
                similarities = [float(metric[a] @ metric[b]) for b in second]
                pairs.append((max(similarities), a, second[int(np.argmax(similarities))]))
        chosen = {a: b for _, a, b in sorted(pairs, reverse=True)[:r]}
        new_x, new_size = [], []
        for token in [a for a in first if a not in chosen] + second:
            group = [token] + [a for a, b in chosen.items() if b == token]
            new_size.append(sum(size[t] for t in group))
            new_x.append(sum(size[t] * x[t] for t in group) / new_size[-1])
        x, size = torch.stack(new_x), torch.stack(new_size)
        x = x + block.mlp(block.norm2(x))
    return vit.head(vit.norm(x[0]))


def _slow_evit(vit, image):
    x = _embedded(vit, image)
    keep = dict(zip(PLACES, KEEP))
    for number, block in enumerate(vit.blocks, start=1):
        out, _, weights = _attention(block, x, torch.zeros(len(x)))
        x = x + out
        if number in keep:
            attention = [float(weights[:, 0, 1 + i].mean()) for i in range(len(x) - 1)]
            best = sorted(np.argsort(attention)[::-1][: keep[number]])
            rest = [i for i in range(len(attention)) if i not in best]
            fused = sum(attention[i] * x[1 + i] for i in rest)
            x = torch.stack([x[0], *(x[1 + i] for i in best), fused])
        x = x + block.mlp(block.norm2(x))
    return vit.head(vit.norm(x[0]))


PEERS = {
    "ToMe": (lambda vit: tome.ToMe(vit, MERGED), _slow_tome),
    "EViT": (lambda vit: evit.EViT(vit, KEEP, PLACES), _slow_evit),
    "EViT, fused": (lambda vit: evit.EViT(vit, KEEP, PLACES, fused=True), _slow_evit),
}


@pytest.mark.parametrize("name", PEERS)
@torch.no_grad()
def test_peer_computes_what_the_paper_says(vit, images, name):
    make, slow = PEERS[name]
    expected = torch.stack([slow(vit, image) for image in images])
    torch.testing.assert_close(make(vit)(images), expected, rtol=1e-4, atol=1e-4)
    assert (vit(images) - expected).abs().max() > 0.01, "nothing was dropped"


@pytest.mark.parametrize("name", PEERS)
@torch.no_grad()
def test_exported_peer_runs_as_in_torch(vit, images, name):
    model = PEERS[name][0](vit)
    graph = export_peer(model, SIDE)
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        (found,) = session.run(None, {"image": batch.numpy()})
        np.testing.assert_allclose(found, model(batch), rtol=1e-3, atol=1e-4)


def test_merging_keeps_the_mass_and_the_class_token():
    generator = torch.Generator().manual_seed(0)
    x, metric = (torch.randn(2, 11, 4, generator=generator) for _ in range(2))
    size = torch.rand(2, 11, 1, generator=generator) + 1
    merged, sizes = tome.merge(x, size, metric, 4)
    assert merged.shape == (2, 7, 4)
    torch.testing.assert_close((merged * sizes).sum(1), (x * size).sum(1))
    torch.testing.assert_close(sizes.sum(1), size.sum(1))
    torch.testing.assert_close(merged[:, 0], x[:, 0])


def test_kept_and_fused_patches_hold_the_attention_weighted_sum():
    x, attention = torch.randn(2, 7, 4), torch.rand(2, 6).softmax(1)
    found = evit.keep_and_fuse(x, attention, 6)
    torch.testing.assert_close(found[:, 0], x[:, 0])
    torch.testing.assert_close(found[:, 1:-1].sort(dim=1).values, x[:, 1:].sort(dim=1).values)  # in any order
    assert found[:, -1].abs().max() < 1e-6, "there is no rest"


def _counted(model, images):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:1])
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["ToMe", "EViT"])
def test_macs_by_formula_are_those_of_the_counter(vit, images, name):
    vit.set_grad_checkpointing(False)
    for block in vit.blocks:
        block.attn.fused_attn = False
    macs = {
        "ToMe": tome.count_macs(MERGED, SIZES),
        "EViT": evit.count_macs(KEEP, SIZES, PLACES),
    }[name]
    assert macs == _counted(PEERS[name][0](vit), images)


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_schedules_come_within_a_per_cent_of_the_macs_asked_for(share):
    sizes = VitSizes(depth=12, patches=196, width=768, heads=12, patch_pixels=768, classes=1000)
    full = tome.count_macs([0] * 12, sizes)
    assert full == evit.count_macs((), sizes, ())
    merged = tome.schedule(int(share * full), sizes)
    assert tome.count_macs(merged, sizes) == pytest.approx(share * full, rel=0.01)
    kept = evit.keep_counts(int(share * full), sizes)
    assert evit.count_macs(kept, sizes) == pytest.approx(share * full, rel=0.01)
    assert kept == sorted(kept, reverse=True)


def test_same_tokens_leave_the_blocks_of_tome_as_those_of_the_model():
    merged = tome.same_tokens(preset("gft_base"))
    assert merged == [0, 0, 49, 0, 49, 0, 49, 0, 0, 0, 0, 0]
    assert evit.places(preset("gft_base")) == evit.PLACES
    assert evit.places(preset("gft_typeface")) == (2, 3, 4)
