"""Cost of ways to quantize one checkpoint: each is calibrated, exported, run by ONNX Runtime, and compared with FP32.

All use the same calibration images (one pass serves every method) and the same test images, as many as a paired test needs to
show a loss of 0.3 points.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from gft_edge.benchmarks.experiments.backbone.power import ALLOWED_LOSS, detection_power
from gft_edge.benchmarks.experiments.backbone.schemes import EVERYTHING, QuantScheme
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, ratio_interval
from gft_edge.budget import TokenBudget
from gft_edge.calibration.observing.collect import Collector, collect, observe
from gft_edge.calibration.observing.thresholds import threshold
from gft_edge.calibration.ptq import observed_names, quantize_with
from gft_edge.calibration.repair import LEAST_JACCARD, LEAST_SQNR_DB, layer_macs
from gft_edge.calibration.smoothquant import folds, smooth
from gft_edge.data.datasets import ImageSet
from gft_edge.errors import ArtifactError
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.tracing import export_graph
from gft_edge.files import read_json, write_json
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, is_attend
from gft_edge.runtime.backends.sessions import onnxruntime_session
from gft_edge.stats.agreement import Arrays, Comparison, Computation, compare
from gft_edge.stats.metrics import sqnr_db

BATCH = 16
PROTOCOL = BenchProtocol(rounds=20, runs_per_round=3)

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ComparisonImages:
    """Test images in memory, resized, so that they are read once.

    Attributes:
        spec: preprocessing.
        pixels: (n, H, W, 3) uint8.
        labels: class numbers, (n,).
        label_names: names of the classes.
    """

    spec: PreprocessSpec
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    label_names: tuple[str, ...] = ()

    @classmethod
    def read(cls, images: ImageSet, spec: PreprocessSpec, label_names: tuple[str, ...] = ()) -> ComparisonImages:
        """Reads all images of a set."""
        pairs = [images[index] for index in range(len(images))]
        pixels = np.stack([spec.geometry(image) for image, _ in pairs])
        return cls(spec, pixels, np.array([label for _, label in pairs]), label_names)

    @classmethod
    def empty(cls, spec: PreprocessSpec) -> ComparisonImages:
        """Returns no images."""
        return cls(spec, np.empty((0, spec.height, spec.width, 3), np.uint8), np.empty(0, np.int64))

    def batches(self) -> Iterator[Images]:
        """Yields preprocessed images, (B, 3, H, W) each."""
        for start in range(0, len(self.pixels), BATCH):
            yield self.spec.normalize(self.pixels[start : start + BATCH])

    def first(self, count: int) -> ComparisonImages:
        """Returns the first images."""
        return replace(self, pixels=self.pixels[:count], labels=self.labels[:count])


class Calibration:
    """Ranges of a model by any method, from one pass over the images; another pass for attention and for the model after
    SmoothQuant.

    Args:
        model: in eval mode, float32.
        images: returns preprocessed images; called once per pass.
    """

    def __init__(self, model: nn.Module, images: Callable[[], Iterable[Images]]) -> None:
        self.model, self._images = model, images
        self._collected: dict[tuple[float | None, bool, tuple[str, ...]], tuple[nn.Module, Collector]] = {}

    def quantized(self, scheme: QuantScheme) -> nn.Module:
        """Returns a quantized copy of the model."""
        model, collector = self._observed(scheme.policy)
        ranges = {
            name: threshold(stats.magnitudes, stats.largest, scheme.method, scheme.share)
            for name, stats in collector.stats.items()
        }
        return quantize_with(model, ranges, scheme.policy, scheme.method, collector.images).model

    def _observed(self, policy: QuantPolicy) -> tuple[nn.Module, Collector]:
        alpha = policy.smoothquant
        attention = any(is_attend(rule.pattern) and rule.precision != "high" for rule in policy.rules)
        key = (
            alpha,
            attention,
            () if alpha is None else tuple(folds(self.model, policy)),
        )  # raised layers are not smoothed
        if key not in self._collected:
            model = self.model if alpha is None else smooth(self.model, self._images(), policy)
            collector = Collector(observed_names(model, EVERYTHING if attention else DEFAULT_POLICY), "mse")
            self._collected[key] = model, collect(collector, observe(model, collector, self._images()))
        return self._collected[key]


def exported(model: nn.Module, spec: PreprocessSpec) -> bytes:
    """Returns the graph of a model at its own budget, with importance and kept patches."""
    config: Any = model.config
    return export_graph(model, spec, config.budget, GraphOptions(maps="compact")).SerializeToString()


def outputs(graph: bytes, batches: Iterable[Images], quantized: bool) -> Arrays:
    """Runs a graph on ONNX Runtime, one thread; returns logits, importance, kept patches."""
    session = onnxruntime_session(graph, quantized, threads=1)
    parts = [session(batch) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in session.outputs}


def graph_costs(graph: bytes, reference: bytes, image: Images) -> dict[str, Any]:
    """Returns bytes, operators and the time of one image on ONNX Runtime over that of the FP32 graph, interleaved, one thread.

    Args:
        graph: quantized.
        reference: the FP32 graph.
        image: preprocessed, (1, 3, H, W).
    """
    nodes = onnx.load_from_string(graph).graph.node
    dequantized = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    products = [node for node in nodes if node.op_type in ("MatMul", "Gemm", "Conv")]
    both = [node for node in products if all(name in dequantized for name in node.input[:2])]
    sessions = {"fp32": (reference, False), "quantized": (graph, True)}
    opened = {name: onnxruntime_session(data, flag, threads=1) for name, (data, flag) in sessions.items()}
    times = measure({name: functools.partial(run, image) for name, run in opened.items()}, PROTOCOL)
    ratio, low, high = ratio_interval(times["quantized"], times["fp32"])
    return {
        "bytes": len(graph),
        "fp32_bytes": len(reference),
        "products": len(both),
        "all_products": len(products),
        "quantize": sum(node.op_type == "QuantizeLinear" for node in nodes),
        "dequantize": sum(node.op_type == "DequantizeLinear" for node in nodes),
        "latency": [ratio, low, high],
    }


def row(scheme: QuantScheme, comparison: Comparison, layers: int, costs: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of one comparison and the costs of its graph, plain JSON values."""
    top1 = comparison.top1
    assert top1 is not None
    low, high = top1.interval
    sqnr = math.inf if comparison.logit_sqnr_db is None else comparison.logit_sqnr_db
    kept = comparison.stages[-1].jaccard if comparison.stages else 1.0
    missed = high < -ALLOWED_LOSS or sqnr < LEAST_SQNR_DB or kept < LEAST_JACCARD
    return {
        "key": scheme.key,
        "title": scheme.title,
        "method": scheme.method,
        "share": scheme.share,
        "policy": scheme.policy.to_json(),
        "layers": layers,
        "comparison": asdict(comparison),
        "costs": costs,
        "power": detection_power(top1.only_reference, top1.only_candidate, top1.images),
        "target": "missed" if missed else "met" if low >= -ALLOWED_LOSS else "undecided",
    }


@dataclass(frozen=True)
class RowFolder:
    """A folder of finished rows and of the FP32 outputs, so that an interrupted study resumes.

    Attributes:
        path: of the folder.
        identity: of model and images; rows of another identity are refused.
    """

    path: Path
    identity: dict[str, Any]

    def row(self, scheme: QuantScheme) -> dict[str, Any] | None:
        """Returns a finished row, None if there is none.

        Raises:
            ArtifactError: it is of another model, policy or other images.
        """
        file = self._file(scheme)
        if not file.exists():
            return None
        known = read_json(file, "row")
        if known.get("identity") != self.identity or known["row"]["policy"] != scheme.policy.to_json():
            raise ArtifactError(f"row {file}: is of another model, images or policy; remove it")
        row: dict[str, Any] = known["row"]
        return row

    def write(self, scheme: QuantScheme, row: dict[str, Any]) -> None:
        """Writes a finished row."""
        write_json(self._file(scheme), {"identity": self.identity, "row": row})

    def reference(self, model: nn.Module, test: ComparisonImages) -> tuple[bytes, Arrays]:
        """Returns the FP32 graph and its outputs, computed once."""
        graph, file, mark = (self.path / f"fp32.{kind}" for kind in ("onnx", "npz", "json"))
        if not (mark.exists() and read_json(mark, "reference") == self.identity):
            data = exported(model, test.spec)
            np.savez(file, allow_pickle=False, **outputs(data, test.batches(), quantized=False))
            graph.write_bytes(data)
            write_json(mark, self.identity)
        with np.load(file, allow_pickle=False) as stored:
            return graph.read_bytes(), dict(stored)

    def _file(self, scheme: QuantScheme) -> Path:
        return self.path / f"{scheme.key}.json"


def measure_rows(
    calibration: Calibration,
    test: ComparisonImages,
    chosen: Sequence[QuantScheme],
    folder: RowFolder,
    reference: Callable[[], tuple[bytes, Arrays]],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Returns one row per scheme; each is written as soon as it is finished, and finished rows are not measured again.

    Args:
        calibration: of the full-precision model.
        test: images to compare on.
        chosen: ways to quantize.
        folder: of finished rows.
        reference: returns the FP32 graph and its outputs on the test images or on more that follow them.
        say: receives a line per measured row.

    Raises:
        ArtifactError: the folder has rows of another model, policy or other images.
    """
    rows = []
    for scheme in chosen:
        known = folder.row(scheme)
        if known is None:
            known = _measured(calibration, test, scheme, reference())
            folder.write(scheme, known)
            found = known["comparison"]
            say(
                f"{scheme.title}: top-1 {found['top1_candidate']:.2%} of {found['top1_reference']:.2%}, "
                f"SQNR {found['logit_sqnr_db']} dB"
            )
        rows.append(known)
    return rows


def _measured(
    calibration: Calibration, test: ComparisonImages, scheme: QuantScheme, known: tuple[bytes, Arrays]
) -> dict[str, Any]:
    config: Any = calibration.model.config
    graph = exported(calibration.quantized(scheme), test.spec)
    found = outputs(graph, test.batches(), quantized=True)
    reference = {name: values[: len(test.labels)] for name, values in known[1].items()}
    sides = (Computation("torch", "fp32", "FP32"), Computation("onnxruntime", "int8", scheme.title))
    comparison = compare(sides, reference, found, test.labels, config.num_patches, test.label_names)
    image = next(test.batches())[:1]
    macs, names = layer_macs(calibration.model, image), quantized_names(calibration.model, scheme.policy)
    costs = {
        **graph_costs(graph, known[0], image),
        "quantized_macs": sum(macs[name] for name in names) / sum(macs.values()),
    }
    return row(scheme, comparison, len(names), costs)


KINDS = {
    "qkv": ("blocks.*.attn.qkv",),
    "proj": ("blocks.*.attn.proj",),
    "fc1": ("blocks.*.mlp.fc1",),
    "fc2": ("blocks.*.mlp.fc2",),
}
"""Layers of a focal model by kind."""


@torch.no_grad()
def kinds_alone(calibration: Calibration, images: Sequence[Images]) -> list[dict[str, Any]]:
    """Returns logit SQNR with one kind of layer in INT8 (max) and the rest in FP32; in PyTorch."""
    reference = _logits(calibration.model, images)
    rows = []
    for kind, patterns in KINDS.items():
        policy = QuantPolicy(tuple(QuantRule(pattern, "int8", "alone") for pattern in patterns))
        found = _logits(calibration.quantized(QuantScheme("alone", kind, policy)), images)
        layers = len(quantized_names(calibration.model, policy))
        rows.append({"kind": kind, "layers": layers, "sqnr_db": sqnr_db(reference, found)})
    return rows


@torch.no_grad()
def with_all_patches(
    calibration: Calibration, images: Sequence[Images], chosen: Sequence[QuantScheme]
) -> list[dict[str, Any]]:
    """Returns logit SQNR at the model's own budget and with all patches kept; in PyTorch.

    If no patch is dropped, none can be exchanged: the loss between the two is the loss by selection.
    """
    config: Any = calibration.model.config
    budgets = (config.budget, config.full_budget)
    reference = [_logits(calibration.model, images, budget) for budget in budgets]
    rows = []
    for scheme in chosen:
        model = calibration.quantized(scheme)
        own, full = (sqnr_db(known, _logits(model, images, budget)) for known, budget in zip(reference, budgets))
        rows.append({"key": scheme.key, "sqnr_db": own, "all_patches_sqnr_db": full})
    return rows


def _logits(model: nn.Module, images: Sequence[Images], budget: TokenBudget | None = None) -> npt.NDArray[np.float32]:
    return np.concatenate([model(torch.from_numpy(batch), budget).numpy() for batch in images])
