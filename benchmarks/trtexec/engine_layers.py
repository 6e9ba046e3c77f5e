"""Layers of an engine: the layer JSON of every TensorRT generation as one table, and its effect on INT8."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gft_edge.benchmarks.trtexec.times import LONGEST_MS
from gft_edge.constants import MAX_FUSED_INT8_TOKENS
from gft_edge.errors import ArtifactError

ROOTS = ("Layers", "layers", "LayerInfo")

# A kernel's name, not a module's: nodes are often called .../mha/query/MatMul.
_ATTENTION = re.compile(r"gemm_mha|fmha|fused_?mha|mha_v\d|flash_?att", re.IGNORECASE)
_ATTENTION_KIND = re.compile(r"mha|attention", re.IGNORECASE)
_REFORMAT = re.compile(r"reformat|copynode", re.IGNORECASE)
_GEMM = re.compile(r"gemm|matmul|matrixmultiply|fully_?connected|__myl_fc", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv", re.IGNORECASE)
_SOFTMAX = re.compile(r"softmax", re.IGNORECASE)
_REGION = re.compile(r"foreignnode|^myelin$", re.IGNORECASE)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

# Ordered: the tactic of an INT8 product often names its FP16 or FP32 output too.
_TACTICS = (
    ("int8", re.compile(r"i8i8|i8f|int8|imma|i8816|i16832|(?<![a-z0-9])s8(?!\d)")),
    ("fp8", re.compile(r"e4m3|e5m2|fp8|qmma")),
    ("fp4", re.compile(r"e2m1|fp4")),
    ("bf16", re.compile(r"bf16|bfloat16")),
    ("fp16", re.compile(r"f16f16|fp16|h16816|h1688|h884|hmma|half|hgemm")),
    ("tf32", re.compile(r"tf32|s1688|s161616")),
    ("fp32", re.compile(r"f32f32|fp32|sgemm|ffma|scudnn")),
)
_FORMATS = (
    ("int8", re.compile(r"\bint8\b|\bi8\b", re.IGNORECASE)),
    ("fp8", re.compile(r"\bfp8\b|e4m3", re.IGNORECASE)),
    ("fp4", re.compile(r"\bfp4\b|e2m1", re.IGNORECASE)),
    ("bf16", re.compile(r"\bbf(loat)?16\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\bfp16\b|\bhalf\b|\bfloat16\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\bfp32\b|\bfloat(32)?\b", re.IGNORECASE)),
    ("int32", re.compile(r"\bint(32|64)\b", re.IGNORECASE)),
    ("bool", re.compile(r"\bbool\b", re.IGNORECASE)),
)
_LOW = ("int8", "fp8", "fp4")


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name, type: from the inspector.
        role: ``"attention"`` (fused), ``"gemm"``, ``"convolution"``, ``"softmax"``, ``"reformat"``, ``"region"`` (a fused part,
            its inside unknown) or ``"other"``.
        precision: of its arithmetic, inferred from tactic, weights or tensor formats; else ``"unknown"``.
        onnx: nodes of the graph that it implements, from 10.x on.
        time_ms: average of one inference in the profile run (inflated; good for shares only), or None.
        share: of the time of all layers, or None.
    """

    name: str
    type: str
    role: str
    precision: str
    onnx: tuple[str, ...] = ()
    time_ms: float | None = None
    share: float | None = None


def parse_layers(data: object, where: str = "layers") -> list[Layer]:
    """Reads EngineInspector JSON (--exportLayerInfo) of TensorRT 8.5 to 11.

    Raises:
        ArtifactError: no list of layers, or an empty one.
    """
    layers = next((data[key] for key in ROOTS if key in data), None) if isinstance(data, dict) else data
    if not isinstance(layers, list) or not layers:
        raise ArtifactError(f"{where}: expected a list of layers, under {', '.join(ROOTS)} or alone")
    return [_layer(entry, number, where) for number, entry in enumerate(layers, start=1)]


def _layer(entry: object, number: int, where: str) -> Layer:
    if isinstance(entry, str):  # an engine built without --profilingVerbosity=detailed
        return Layer(entry, "", _role(entry, "", "", ()), "unknown", tuple(_ONNX_LAYER.findall(entry)))
    if not isinstance(entry, dict):
        raise ArtifactError(f"{where}: layer {number}: expected an object or a name, found {type(entry).__name__}")
    name, kind, tactic, metadata = (_text(entry.get(key)) for key in ("Name", "LayerType", "TacticName", "Metadata"))
    onnx = tuple(_ONNX_LAYER.findall(metadata))
    role = _role(name, kind, tactic, onnx)
    return Layer(name or f"layer {number}", kind, role, _precision(entry, role, name, tactic), onnx)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _role(name: str, kind: str, tactic: str, onnx: Sequence[str]) -> str:
    if kind.lower() == "reformat" or _REFORMAT.search(name) or _REFORMAT.search(tactic):
        return "reformat"
    nodes = " ".join(onnx)
    fused = bool(_SOFTMAX.search(nodes)) and len(re.findall(r"matmul|einsum", nodes, re.IGNORECASE)) >= 2
    if _REGION.search(kind) or _REGION.search(name):
        return "region"
    if _ATTENTION.search(name) or _ATTENTION.search(tactic) or _ATTENTION_KIND.search(kind) or fused:
        return "attention"
    own = name.split("[ONNX Layer")[0]
    if _CONVOLUTION.search(kind) and not _GEMM.search(kind):
        return "convolution"  # whose tactic may be an implicit GEMM
    if _GEMM.search(kind) or _GEMM.search(tactic):
        return "gemm"
    if _SOFTMAX.search(kind) or _SOFTMAX.search(own) or (_SOFTMAX.search(nodes) and not _GEMM.search(nodes)):
        return "softmax"
    if kind.lower() in ("", "gemm") and _GEMM.search(own):
        return "gemm"
    return "other"


def _precision(entry: Mapping[str, Any], role: str, name: str, tactic: str) -> str:
    """Infers the precision from the tactic, which runs; then from weights, from inputs, from outputs."""
    if role == "region":
        return "unknown"  # its tensors show inputs and outputs, not the arithmetic inside
    for precision, pattern in _TACTICS:
        if pattern.search(tactic.lower()) or (role == "attention" and pattern.search(name.lower())):
            return precision
    weights = entry.get("Weights")
    texts = [_text(weights.get("Type"))] if isinstance(weights, dict) else []
    texts += [_text(entry.get("Precision"))]
    for key in ("Inputs", "Outputs"):
        tensors = entry.get(key)
        texts += [_format(tensor) for tensor in tensors] if isinstance(tensors, list) else []
    found = [of for text in texts if (of := _of_format(text))]
    if role in ("gemm", "convolution", "attention") and "int8" in found[:1]:
        return "int8"
    floating = [precision for precision in found if precision not in ("int32", "bool")]
    return (floating or found or ["unknown"])[0]


def _format(tensor: object) -> str:
    """Returns format and type of a tensor: one text up to 10.x, two in 11."""
    if not isinstance(tensor, dict):
        return ""
    return " ".join(_text(tensor.get(key)) for key in ("Datatype", "DataType", "Format/Datatype", "Format"))


def _of_format(text: str) -> str | None:
    return next((precision for precision, pattern in _FORMATS if pattern.search(text)), None)


def parse_profile(data: object, where: str = "profile") -> dict[str, float]:
    """Returns average milliseconds by layer name from --exportProfile.

    Raises:
        ArtifactError: other content, no layer, or negative times.
    """
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise ArtifactError(f"{where}: expected the list of objects that --exportProfile writes")
    times: dict[str, float] = {}
    for entry in data:
        if "name" not in entry:
            continue  # the first entry counts the runs
        name, average = entry["name"], entry.get("averageMs")
        if not isinstance(name, str) or isinstance(average, bool) or not isinstance(average, int | float):
            raise ArtifactError(f"{where}: a layer has no name or no averageMs; export it again")
        if not 0 <= average <= LONGEST_MS:  # excludes NaN
            raise ArtifactError(
                f"{where}: {name}: {str(average)[:40]} ms is not a time: the clock went backwards; run trtexec again"
            )
        times[name] = times.get(name, 0.0) + float(average)
    if not times:
        raise ArtifactError(f"{where}: a run of zero length: it has no layer")
    return times


def with_times(layers: Sequence[Layer], times: Mapping[str, float]) -> list[Layer]:
    """Adds times and shares by name; names that only the profile has become further layers.

    Layers of one name share its time in equal parts, since a profile does not tell them apart.
    """
    count = Counter(layer.name for layer in layers)
    extra = [Layer(name, "", _role(name, "", "", ()), "unknown") for name in times if name not in count]
    total = sum(times.values())

    def timed(layer: Layer) -> Layer:
        if layer.name not in times:
            return layer
        ms = times[layer.name] / max(1, count[layer.name])
        return replace(layer, time_ms=ms, share=ms / total if total else None)

    return [timed(layer) for layer in (*layers, *extra)]


@dataclass(frozen=True)
class LayerSummary:
    """Summary of a table of layers.

    Attributes:
        count, reformats, regions: all layers, those of format changes, and fused parts whose inside is unknown.
        reformat_share: of the time; None without times.
        attention: ``"fused"`` (with how many layers), ``"not fused"`` (softmax is a layer), ``"unknown"``.
        fused_attention: layers of fused attention.
        gemm_shares: by precision, the share of matrix products and convolutions in the time of all layers, or in their number
            without times.
        timed: whether the shares are of time.
        int8: one sentence on why INT8 is or is not faster.
    """

    count: int
    reformats: int
    regions: int
    reformat_share: float | None
    attention: str
    fused_attention: int
    gemm_shares: Mapping[str, float]
    timed: bool
    int8: str

    @classmethod
    def of(cls, layers: Sequence[Layer], tokens: int | None = None) -> LayerSummary:
        """Summarises a table.

        Args:
            layers: at least one, with or without times.
            tokens: longest sequence of the model, if known.
        """
        timed = any(layer.share is not None for layer in layers)
        weight = {id(layer): (layer.share or 0.0) if timed else 1 / len(layers) for layer in layers}
        gemms: dict[str, float] = {}
        for layer in layers:
            if layer.role in ("gemm", "convolution"):
                gemms[layer.precision] = gemms.get(layer.precision, 0.0) + weight[id(layer)]
        reformats = [layer for layer in layers if layer.role == "reformat"]
        fused = sum(layer.role == "attention" for layer in layers)
        regions = sum(layer.role == "region" for layer in layers)
        alone = any(layer.role == "softmax" for layer in layers)
        summary = cls(
            count=len(layers),
            reformats=len(reformats),
            regions=regions,
            reformat_share=sum(weight[id(layer)] for layer in reformats) if timed else None,
            attention="fused" if fused else "unknown" if regions or not alone else "not fused",
            fused_attention=fused,
            gemm_shares=gemms,
            timed=timed,
            int8="",
        )
        return replace(summary, int8=_sentence(summary, layers, tokens))

    def to_json(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """Returns summary and table as plain JSON values."""
        return {**asdict(self), "table": [asdict(layer) for layer in layers]}


def _sentence(summary: LayerSummary, layers: Sequence[Layer], tokens: int | None) -> str:
    """Returns why INT8 is or is not faster."""
    gemms, timed, regions, reformats = summary.gemm_shares, summary.timed, summary.regions, summary.reformats
    of = "of the time" if timed else "of the layers"
    if all(layer.precision == "unknown" for layer in layers):
        return (
            "The effect of INT8 is unknown: no precision is given; build the engine with --profilingVerbosity=detailed."
        )
    low = sum(share for precision, share in gemms.items() if precision in _LOW)
    high = sum(share for precision, share in gemms.items() if precision not in (*_LOW, "unknown"))
    if not low and not any(layer.precision in _LOW and layer.role != "reformat" for layer in layers):
        hidden = f", unless one of the {regions} fused regions hides it" if regions else ""
        return f"INT8 is not faster here because no matrix product is in INT8{hidden}; the graph needs Q/DQ on both inputs."
    costs = []
    if high:
        names = "/".join(sorted(p.upper() for p in gemms if p not in (*_LOW, "unknown")))
        costs.append((high, f"{100 * high:.0f} % {of} are products left in {names}"))
    if reformats:
        share = reformats / len(layers) if summary.reformat_share is None else summary.reformat_share
        costs.append((share, f"{reformats} reformats take {100 * share:.0f} % {of}"))
    if summary.attention == "not fused":
        share = sum((layer.share or 0) if timed else 1 / len(layers) for layer in layers if layer.role == "softmax")
        reason = (
            f" ({tokens} tokens, more than {MAX_FUSED_INT8_TOKENS})"
            if tokens and tokens > MAX_FUSED_INT8_TOKENS
            else ""
        )
        costs.append((share, f"attention is not fused{reason}"))
    if regions:
        costs.append((0.0, f"the inside of {regions} fused region(s) is unknown"))
    against = "; ".join(text for _, text in sorted(costs, key=lambda cost: -cost[0])) or "no costs"
    lost = sum(cost for cost, _ in costs)
    verb = "has room to be faster" if low > lost else "gains little or nothing"
    return f"INT8 {verb} here: {100 * low:.0f} % {of} are INT8 products; against that, {against}."
