"""No tensor of (tokens, tokens) is made, in training or in eval: neither by attention nor by importance."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gft_edge.budget import TokenBudget
from gft_edge.config.model import SCORES, preset
from gft_edge.model import scores
from gft_edge.model.build import build_model


class Shapes(TorchDispatchMode):
    """Records the shape of everything an operator returns."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {tuple(t.shape) for t in tree_leaves(result) if isinstance(t, torch.Tensor)}
        return result


def quadratic(shapes, tokens):
    sizes = {n for count in tokens for n in (count, count + 1)}
    return [s for s in shapes if len(s) >= 2 and s[-1] in sizes and s[-2] in sizes]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_has_two_axes_of_tokens(score, training):
    sizes = {"embed_dim": 32, "num_heads": 2, "depth": 4, "stages": (1, 2, 3)}
    model = build_model(preset("gft_tiny", image_size=112, num_classes=3, score=score, **sizes))
    budget = TokenBudget((36, 23, 11), 49)
    with Shapes() as trace:
        out = model.train(training)(torch.randn(2, 3, 112, 112), budget, maps=True)
        if training:
            out.logits.sum().backward()
    assert len(trace.seen) > 50
    assert quadratic(trace.seen, (49, 36, 23, 11)) == []


@pytest.mark.parametrize("score", [name for name in SCORES if name != "random"])
def test_quantized_layers_rank_without_a_matrix(score):
    z, weight = torch.randn(2, 50, 24), torch.randn(72, 24)
    with Shapes() as trace:
        scores.SCORES[score].folded(z, weight, None, 3, 1)
    assert quadratic(trace.seen, (49,)) == []


def test_the_trace_would_see_an_attention_matrix():
    with Shapes() as trace:
        q = torch.randn(2, 2, 50, 16)
        (q @ q.transpose(-2, -1)).softmax(-1)
    assert quadratic(trace.seen, (49,)) != []
