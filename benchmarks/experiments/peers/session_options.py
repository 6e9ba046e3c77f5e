"""The INT8 model under session options other than the shipped ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from gft_edge.benchmarks.experiments.peers import footprint
from gft_edge.benchmarks.experiments.peers.scale import Scale
from gft_edge.benchmarks.experiments.peers.timed_models import Images, TimedModel
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, ratio_interval
from gft_edge.progress import Track, silent
from gft_edge.runtime.backends.sessions import onnxruntime_session

SHIPPED = "as shipped"
TRANSPOSES = ("TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider")


@dataclass(frozen=True)
class Variant:
    """A session that is tried.

    Attributes:
        model: serialized ONNX.
        disabled: optimizers that are switched off.
        entries: of the session's configuration.
        level: of the graph optimization; None for the default.
    """

    model: bytes
    disabled: tuple[str, ...]
    entries: dict[str, str] = field(default_factory=dict)
    level: Any = None

    def open(self, image: Images) -> Callable[[], object]:
        """Returns a call that makes one request of one image on one thread."""
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 3
        for key, value in self.entries.items():
            options.add_session_config_entry(key, value)
        if self.level is not None:
            options.graph_optimization_level = self.level
        disabled = list(self.disabled) or None
        session = ort.InferenceSession(
            self.model, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        return functools.partial(session.run, None, {"image": image})


def variants(model: bytes) -> dict[str, Variant]:
    """Returns the sessions that are tried, by name."""
    shipped = tuple(onnxruntime_session(model, True, 1).options["disabled_optimizers"])
    basic = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return {
        SHIPPED: Variant(model, shipped),
        "MatMulAddFusion left on": Variant(model, tuple(name for name in shipped if name != "MatMulAddFusion")),
        "BiasGeluFusion left on": Variant(model, tuple(name for name in shipped if name != "BiasGeluFusion")),
        "MatMulScaleFusion off": Variant(model, (*shipped, "MatMulScaleFusion")),
        "transpose optimizers off": Variant(model, (*shipped, *TRANSPOSES)),
        "activations UINT8 with zero point 128": Variant(with_uint8_activations(model), shipped),
        "denormals as zero": Variant(model, shipped, {"session.set_denormal_as_zero": "1"}),
        "no pre-packed weights": Variant(model, shipped, {"session.disable_prepacking": "1"}),
        "graph optimization basic": Variant(model, shipped, level=basic),
        "as shipped, opened once more": Variant(model, shipped),
    }


def measure_options(timed: TimedModel, images: Images, scale: Scale, track: Track = silent) -> list[dict[str, Any]]:
    """Measures the INT8 model under other session options and with UINT8 activations, against the shipped form.

    Where in memory a session lies changes its time by some per cent; the shipped form opened a second time shows what a
    difference must exceed to be real.
    """
    calls = {name: variant.open(images[:1]) for name, variant in variants(timed.model).items()}
    protocol = BenchProtocol(rounds=scale.rounds, runs_per_round=scale.runs, warmup_seconds=scale.warmup_seconds / 2)
    found = measure(calls, protocol, track)
    rows = [
        {"option": name, "ms": latency.p50_ms, "speedup": ratio_interval(found[SHIPPED], latency)}
        for name, latency in found.items()
    ]
    pages = footprint.page_sizes(timed.model, images.shape[2], scale.repeats)
    speedup = ratio_interval(pages["small"], pages["huge"])
    name = "long-lived session (huge pages, products add their bias), against a process without"
    return [*rows, {"option": name, "ms": pages["huge"].p50_ms, "speedup": speedup}]


def with_uint8_activations(model: bytes) -> bytes:
    """Returns a model of the same arithmetic whose activations are shifted by 128."""
    graph = onnx.ModelProto.FromString(model)
    zero = onnx.numpy_helper.from_array(np.array(128, np.uint8), "zero_point_128")
    graph.graph.initializer.append(zero)
    produced = {output for node in graph.graph.node for output in node.output}
    for node in graph.graph.node:
        of_activation = node.op_type == "DequantizeLinear" and node.input[0] in produced
        if node.op_type == "QuantizeLinear" or of_activation:
            node.input[2] = zero.name
    del graph.graph.value_info[:]
    return bytes(graph.SerializeToString())
