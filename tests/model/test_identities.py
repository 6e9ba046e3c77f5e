"""The identities that make the stages fast, each against the slow form in float64, over random shapes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.model import gala
from gft_edge.model.gft import FocalStage
from gft_edge.model.selection import select_patches

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@st.composite
def stages(draw):
    """A stage with random weights, its input (B, prefix + N, C) and a number of patches to keep."""
    heads, head_dim = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    patches, prefix = draw(st.integers(2, 30)), draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    stage = FocalStage(heads * head_dim, heads, patches, prefix).double().eval()
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x = torch.randn(draw(st.integers(1, 3)), prefix + patches, heads * head_dim, dtype=torch.float64)
    return stage, x, draw(st.integers(2, patches))


def slow_scores(stage, z):
    """Step by step from the whole attention matrix of the patches."""
    heads, dim = stage.attn.num_heads, z.shape[-1]
    q = (z @ stage.attn.q.weight.T).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = (z @ stage.attn.kv.weight[:dim].T).unflatten(-1, (heads, -1)).transpose(1, 2)
    mean = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).mean(dim=3)
    gradient = torch.gradient(mean, dim=2)[0].abs().mean(dim=1)
    smooth = torch.nn.functional.conv1d(gradient[:, None], stage.smooth.weight, padding=1)[:, 0]
    return (smooth - smooth.mean(1, keepdim=True)) / (smooth.std(1, keepdim=True) + 1e-6)


def slow_stage(stage, x):
    """Every token attends to every token; values gated."""
    z = stage.norm(x)
    prefix = stage.num_prefix_tokens
    scores = slow_scores(stage, z[:, prefix:])
    heads, dim = stage.attn.num_heads, x.shape[-1]
    gate = torch.cat((scores.new_ones(len(scores), prefix), 2 * scores.sigmoid()), dim=1)
    q = z @ stage.attn.q.weight.T
    k, v = (z @ stage.attn.kv.weight.T).split(dim, dim=2)
    v = v * gate[..., None]
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    attended = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return x + stage.attn.proj(attended.transpose(1, 2).flatten(2)), scores


@given(stages())
@torch.no_grad()
def test_mean_key_importance_equals_the_attention_matrix(case):
    stage, x, _ = case
    z = stage.norm(x)[:, stage.num_prefix_tokens :]
    torch.testing.assert_close(stage.scores(z), slow_scores(stage, z), **EXACT)
    q_weight, k_weight = stage.attn.q.weight, stage.attn.kv.weight[: z.shape[-1]]
    heads = stage.attn.num_heads
    q, k = (torch.stack((z @ w.T).chunk(heads, -1)) for w in (q_weight, k_weight))
    slow = (q @ k.transpose(2, 3)).mean(3).permute(1, 2, 0) / q.shape[-1] ** 0.5
    torch.testing.assert_close(gala.mean_scores(z, q_weight, k_weight, heads), slow, **EXACT)


@given(stages())
@torch.no_grad()
def test_select_then_attend_equals_attend_then_select(case):
    stage, x, k = case
    y, scores, kept = stage(x, k, None, class_row_only=False)
    slow, _ = slow_stage(stage, x)
    prefix = stage.num_prefix_tokens
    chosen = torch.arange(x.shape[1] - prefix).expand(len(x), -1) if kept is None else kept
    rows = torch.cat((torch.arange(prefix).expand(len(x), -1), chosen + prefix), dim=1)
    expected = torch.stack([image[index] for image, index in zip(slow, rows)])
    torch.testing.assert_close(y, expected, **EXACT)
    assert torch.equal(chosen, select_patches(scores, k))


@given(stages())
@torch.no_grad()
def test_class_row_alone_equals_the_class_row_of_all(case):
    stage, x, k = case
    alone, _, _ = stage(x, k, None, class_row_only=True)
    every, _, _ = stage(x, k, None, class_row_only=False)
    torch.testing.assert_close(alone, every[:, :1], **EXACT)
