from __future__ import annotations

import functools

import numpy as np
import pytest
from onnx import numpy_helper

from gft_edge.budget import TokenBudget
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.export.onnx.tracing import export_graph
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.backends.sessions import onnxruntime_session
from gft_edge.search.graphs import at_budget, pattern_of, traced_budget

SPEC = PreprocessSpec(32, 32)


def budget(*keep):
    return TokenBudget(keep, 16)


def images(count=1):
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), dtype=np.float32)


def structure(graph):
    """Operators, attributes and small integer constants: everything in which graphs of two budgets may differ."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    return [
        (
            node.op_type,
            [
                constants[name].tolist()
                for name in node.input
                if name in constants and constants[name].dtype == np.int64
            ],
            [attribute.SerializeToString() for attribute in node.attribute],
        )
        for node in graph.graph.node
    ]


def require_equal(changed, own, quantized=False):
    """The same graphs; the logits differ by the rounding of sums in another order, and of INT8 steps behind it."""
    assert structure(changed) == structure(own)
    found, expected = logits(changed, quantized), logits(own, quantized)
    assert np.abs(found - expected).max() <= (2e-2 if quantized else 1e-5) * np.abs(expected).max()


def logits(graph, quantized=False):
    return onnxruntime_session(graph.SerializeToString(), quantized, 1)(images(3))["logits"]


@pytest.fixture(scope="module")
def graph_of(tiny_model):
    """The tiny model's graph traced at a budget, each once."""
    return functools.cache(lambda traced: export_graph(tiny_model, SPEC, traced))


@pytest.mark.parametrize("keep", [(15, 2), (7, 7), (16, 5)])
def test_a_graph_at_another_budget_computes_what_its_own_export_computes(tiny_config, tiny_model, graph_of, keep):
    wanted = budget(*keep)
    traced = traced_budget(tiny_config, pattern_of(wanted))
    assert traced != wanted
    changed = at_budget(graph_of(traced), traced, wanted, tiny_config.num_prefix_tokens)
    require_equal(changed, export_graph(tiny_model, SPEC, wanted))


def test_an_int8_graph_too(tiny_config, tiny_model):
    model = quantize_int8(tiny_model, [images(2)]).model
    wanted, traced = budget(13, 4), traced_budget(tiny_config, (True, True))
    changed = at_budget(export_graph(model, SPEC, traced), traced, wanted, 1)
    require_equal(changed, export_graph(model, SPEC, wanted), quantized=True)


def test_other_stages_that_drop_patches_are_refused(tiny_config, graph_of):
    traced = traced_budget(tiny_config, (True, True))
    graph = graph_of(traced)
    with pytest.raises(ConfigError, match="other stages drop patches at 7-7"):
        at_budget(graph, traced, budget(7, 7), 1)
    with pytest.raises(ConfigError, match="are not those of this budget"):
        at_budget(graph, budget(12, 6), budget(9, 4), 1)


@pytest.mark.parametrize("name", ["gft_scenes", "gft_base", "gft_base_448"])
@pytest.mark.parametrize(
    "pattern", [(True, True, True), (True, False, False), (False, False, False), (False, True, False)]
)
def test_counts_of_a_traced_budget_are_no_other_size_of_the_model(name, pattern):
    config = preset(name)
    traced = traced_budget(config, pattern)
    assert pattern_of(traced) == pattern
    tokens = {k + config.num_prefix_tokens for k, drops in zip(traced.keep, pattern) if drops}
    assert len(tokens) == sum(pattern)
    assert not tokens & {config.num_heads, config.embed_dim, config.num_patches + config.num_prefix_tokens}
