"""What ways of quantizing one checkpoint cost it: each is calibrated, exported, run by ONNX Runtime, compared with FP32.

All use the same calibration images (one pass serves every method) and the same test images, as many as a paired test needs to
tell a loss of half a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.calibration.observe import Collector, collect, observe
from gft_edge.calibration.options import Method
from gft_edge.calibration.ptq import observed_names, quantize_with
from gft_edge.calibration.smoothquant import smooth
from gft_edge.calibration.thresholds import threshold
from gft_edge.data.datasets import ImageSet
from gft_edge.errors import ArtifactError
from gft_edge.export.onnx.tracing import GraphOptions, export_graph
from gft_edge.files import read_json, write_json
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, uniform_policy
from gft_edge.runtime.sessions import onnxruntime_session
from gft_edge.stats.agreement import Arrays, Comparison, Computation, compare
from gft_edge.stats.metrics import sqnr_db
from gft_edge.stats.paired import Z_INTERVAL

ALLOWED_LOSS = 0.005
LEAST_SQNR_DB = 20.0
POWER = 0.9
BATCH = 16
SMOOTHING = 0.5

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A way to quantize.

    Attributes:
        key: short name, also of files.
        title: for people.
        policy: which layers, in what precision, SmoothQuant or not.
        method: how ranges are found.
        share: of the values in per cent, for ``"percentile"``.
    """

    key: str
    title: str
    policy: QuantPolicy
    method: Method = "max"
    share: float = 99.99


EVERYTHING = uniform_policy("int8", attention="int8")
"""Needs the range of everything any policy needs."""
DEFAULT = Candidate("int8-max", "INT8, max (default)", DEFAULT_POLICY)


def keeping_high(*patterns: str) -> QuantPolicy:
    """The default policy with some layers in high precision."""
    rules = tuple(QuantRule(pattern, "high", "its input has outliers") for pattern in patterns)
    return QuantPolicy(rules + DEFAULT_POLICY.rules)


def candidates() -> list[Candidate]:
    """The ways that are compared."""
    smoothed = QuantPolicy(DEFAULT_POLICY.rules, SMOOTHING)
    return [
        DEFAULT,
        Candidate("int8-percentile", "INT8, percentile 99.99", DEFAULT_POLICY, "percentile"),
        Candidate("int8-percentile-99.9", "INT8, percentile 99.9", DEFAULT_POLICY, "percentile", 99.9),
        Candidate("int8-entropy", "INT8, entropy", DEFAULT_POLICY, "entropy"),
        Candidate("int8-mse", "INT8, MSE", DEFAULT_POLICY, "mse"),
        Candidate("int8-smoothquant", f"INT8, SmoothQuant {SMOOTHING}, max", smoothed),
        Candidate("int8-smoothquant-mse", f"INT8, SmoothQuant {SMOOTHING}, MSE", smoothed, "mse"),
        Candidate("int8-fc2-high", "INT8, fc2 in high precision, max", keeping_high("*.mlp.fc2")),
        Candidate("int8-first-mlp-high", "INT8, MLP of the first block high, max", keeping_high("blocks.0.mlp.*")),
        Candidate("int8-attention", "INT8 with attention, max", EVERYTHING),
        Candidate(
            "int8-attention-smoothquant-mse",
            f"INT8 with attention, SmoothQuant {SMOOTHING}, MSE",
            QuantPolicy(EVERYTHING.rules, SMOOTHING),
            "mse",
        ),
        Candidate("int8-weights", "INT8 weights only", uniform_policy("int8-weights")),
        Candidate("fp8-max", "FP8 E4M3, max", uniform_policy("fp8")),
        Candidate("fp8-attention", "FP8 E4M3 with attention, max", uniform_policy("fp8", attention="fp8")),
    ]


@dataclass(frozen=True)
class Pixels:
    """Test images in memory, resized, so that they are made once: (n, H, W, 3) uint8 and classes (n,)."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, images: ImageSet, spec: PreprocessSpec) -> Pixels:
        """Reads all images of a set."""
        pairs = [images[index] for index in range(len(images))]
        return cls(np.stack([spec.geometry(image) for image, _ in pairs]), np.array([label for _, label in pairs]))

    def batches(self, spec: PreprocessSpec) -> Iterator[Images]:
        """Preprocessed, (B, 3, H, W) each."""
        for start in range(0, len(self.pixels), BATCH):
            yield spec.normalize(self.pixels[start : start + BATCH])


class Calibration:
    """Ranges of a model by any method, from one pass over the images; likewise of the model after SmoothQuant.

    Args:
        model: in eval mode, float32.
        images: preprocessed, gone through anew for each pass.
    """

    def __init__(self, model: nn.Module, images: Callable[[], Iterable[Images]]) -> None:
        self.model, self._images = model, images
        self._seen: dict[float | None, tuple[nn.Module, Collector]] = {}

    def quantized(self, candidate: Candidate) -> nn.Module:
        """A quantized copy of the model."""
        model, collector = self._observed(candidate.policy)
        ranges = {
            name: threshold(stats.magnitudes, stats.largest, candidate.method, candidate.share)
            for name, stats in collector.stats.items()
        }
        return quantize_with(model, ranges, candidate.policy, candidate.method, collector.images).model

    def _observed(self, policy: QuantPolicy) -> tuple[nn.Module, Collector]:
        alpha = policy.smoothquant
        if alpha not in self._seen:
            model = self.model if alpha is None else smooth(self.model, self._images(), policy)
            collector = Collector(observed_names(model, EVERYTHING), "mse")
            self._seen[alpha] = model, collect(collector, observe(model, collector, self._images()))
        return self._seen[alpha]


def run_graph(model: nn.Module, spec: PreprocessSpec, batches: Iterable[Images], quantized: bool) -> Arrays:
    """Exports a model at its own budget and runs the graph on ONNX Runtime, one thread: logits, importance, kept patches."""
    config: Any = model.config
    graph = export_graph(model, spec, config.budget, GraphOptions(maps="compact"))
    session = onnxruntime_session(graph.SerializeToString(), quantized, threads=1)
    parts = [session(batch) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in session.outputs}


def power(only_reference: int, only_candidate: int, images: int, margin: float = ALLOWED_LOSS) -> float:
    """Probability that the 95 % interval of the difference leaves ``-margin`` out when truly nothing is lost.

    Normal approximation with the discordance d that was seen: the difference has variance d / n (see
    :func:`~gft_edge.stats.paired.images_needed`).
    """
    discordance = (only_reference + only_candidate) / images
    if discordance == 0:
        return 1.0
    return NormalDist().cdf(margin * math.sqrt(images / discordance) - Z_INTERVAL)


def images_for(discordant: int, images: int, margin: float = ALLOWED_LOSS, aim: float = POWER) -> int:
    """Images at which :func:`power` reaches ``aim`` with the discordance of a pilot, (d + 1) / (n + 2) as none may be seen."""
    share = (discordant + 1) / (images + 2)
    return math.ceil((Z_INTERVAL + NormalDist().inv_cdf(aim)) ** 2 * share / margin**2)


def row(candidate: Candidate, comparison: Comparison, layers: int) -> dict[str, Any]:
    """What is kept of one comparison, plain JSON values."""
    top1 = comparison.top1
    assert top1 is not None
    low, high = top1.interval
    sqnr = math.inf if comparison.logit_sqnr_db is None else comparison.logit_sqnr_db
    missed = high < -ALLOWED_LOSS or sqnr < LEAST_SQNR_DB
    return {
        "key": candidate.key,
        "title": candidate.title,
        "method": candidate.method,
        "share": candidate.share,
        "policy": candidate.policy.to_json(),
        "layers": layers,
        "comparison": asdict(comparison),
        "power": power(top1.only_reference, top1.only_candidate, top1.images),
        "target": "missed" if missed else "met" if low >= -ALLOWED_LOSS else "undecided",
    }


def measure_rows(
    calibration: Calibration,
    spec: PreprocessSpec,
    test: Pixels,
    chosen: Sequence[Candidate],
    out: Path,
    identity: dict[str, Any],
    say: Callable[[str], None],
    label_names: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """One row per candidate, each kept in ``out`` as soon as it is there and not measured again.

    Args:
        calibration: of the full-precision model.
        spec: its preprocessing.
        test: images to compare on.
        chosen: ways to quantize.
        out: folder of rows and of the FP32 outputs.
        identity: of model and images; what is there must be of the same.
        say: receives a line now and then.
        label_names: of the classes.

    Raises:
        ArtifactError: ``out`` has rows of another model or other images.
    """
    out.mkdir(parents=True, exist_ok=True)
    reference: Arrays | None = None
    rows = []
    config: Any = calibration.model.config
    for candidate in chosen:
        file = out / f"{candidate.key}.json"
        if file.exists():
            known = read_json(file, "row")
            if known.get("identity") != identity or known["row"]["policy"] != candidate.policy.to_json():
                raise ArtifactError(f"row {file}: is of another model, images or policy; remove it")
            rows.append(known["row"])
            continue
        if reference is None:
            reference = _reference(calibration.model, spec, test, out / "fp32.npz", identity)
        quantized = calibration.quantized(candidate)
        found = run_graph(quantized, spec, test.batches(spec), quantized=True)
        sides = (Computation("torch", "fp32", "FP32"), Computation("onnxruntime", "int8", candidate.title))
        comparison = compare(sides, reference, found, test.labels, config.num_patches, label_names)
        rows.append(row(candidate, comparison, len(quantized_names(calibration.model, candidate.policy))))
        write_json(file, {"identity": identity, "row": rows[-1]})
        say(
            f"{candidate.title}: top-1 {comparison.top1_candidate:.2%} of {comparison.top1_reference:.2%}, "
            f"SQNR {comparison.logit_sqnr_db} dB"
        )
    return rows


def _reference(model: nn.Module, spec: PreprocessSpec, test: Pixels, file: Path, identity: dict[str, Any]) -> Arrays:
    """Outputs of the FP32 graph, run once."""
    mark = file.with_suffix(".json")
    if mark.exists() and file.exists() and read_json(mark, "reference") == identity:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    arrays = run_graph(model, spec, test.batches(spec), quantized=False)
    np.savez(file, allow_pickle=False, **arrays)
    write_json(mark, identity)
    return arrays


KINDS = {
    "qkv, q, kv": ("blocks.*.attn.q*", "blocks.*.attn.kv"),
    "proj": ("blocks.*.attn.proj",),
    "fc1": ("blocks.*.mlp.fc1",),
    "fc2": ("blocks.*.mlp.fc2",),
    "stages": ("stages.*",),
}
"""The layers of a focal model, by what they are."""


@torch.no_grad()
def kinds_alone(calibration: Calibration, images: Sequence[Images]) -> list[dict[str, Any]]:
    """Logit SQNR with one kind of layer in INT8 (max) and the rest in FP32; in PyTorch."""
    reference = _logits(calibration.model, images)
    rows = []
    for kind, patterns in KINDS.items():
        policy = QuantPolicy(tuple(QuantRule(pattern, "int8", "alone") for pattern in patterns))
        found = _logits(calibration.quantized(Candidate("alone", kind, policy)), images)
        layers = len(quantized_names(calibration.model, policy))
        rows.append({"kind": kind, "layers": layers, "sqnr_db": sqnr_db(reference, found)})
    return rows


@torch.no_grad()
def with_all_patches(
    calibration: Calibration, images: Sequence[Images], chosen: Sequence[Candidate]
) -> list[dict[str, Any]]:
    """Logit SQNR at the model's own budget and with all patches kept; in PyTorch.

    Where no patch is dropped, none can be exchanged: what is lost between the two is lost by selection.
    """
    config: Any = calibration.model.config
    budgets = (config.budget, config.full_budget)
    reference = [_logits(calibration.model, images, budget) for budget in budgets]
    rows = []
    for candidate in chosen:
        model = calibration.quantized(candidate)
        own, full = (sqnr_db(known, _logits(model, images, budget)) for known, budget in zip(reference, budgets))
        rows.append({"key": candidate.key, "sqnr_db": own, "all_patches_sqnr_db": full})
    return rows


def _logits(model: nn.Module, images: Sequence[Images], budget: TokenBudget | None = None) -> npt.NDArray[np.float32]:
    return np.concatenate([model(torch.from_numpy(batch), budget).numpy() for batch in images])
