"""For each rule of nvinfer a configuration that breaks it and nothing else; the base breaks none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnx import TensorProto

from gft_edge.preprocess import PreprocessSpec

BASE = {
    "gpu-id": "0",
    "gie-unique-id": "1",
    "process-mode": "1",
    "onnx-file": "model.onnx",
    "model-engine-file": "model.onnx_b8_gpu0_fp32.engine",
    "labelfile-path": "labels.txt",
    "batch-size": "8",
    "network-mode": "0",
    "infer-dims": "3;32;32",
    "network-input-order": "0",
    "net-scale-factor": "1",
    "offsets": "0;0;0",
    "model-color-format": "0",
    "maintain-aspect-ratio": "0",
    "scaling-filter": "1",
    "network-type": "1",
    "classifier-threshold": "0.2",
}
SECONDARY = {"process-mode": "2", "operate-on-gie-id": "1", "gie-unique-id": "2", "classifier-async-mode": "0"}
MAPS = {"network-type": "100", "output-tensor-meta": "1", "classifier-threshold": None}
NORMALISED = {"net-scale-factor": "0.0173544", "offsets": "123.675;116.28;103.53"}
GREY = PreprocessSpec(32, 32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.25))
GREY_KEYS = {"net-scale-factor": f"{1 / (255 * 0.25):.10g}", "offsets": "127.5;102;76.5"}
OPEN = {"onnx-file": "model.onnx"}


@dataclass(frozen=True)
class Case:
    """A change of the base.

    Args:
        rule: that finds it, and no other; empty for a good configuration.
        keys: changed; None removes a key.
        key: named by the finding.
        words: in its message.
        graph: options of the graph.
        manifest: changes of the manifest; None for a graph without an artefact.
        labels: content of the labels file.
        more: text behind the keys.
    """

    rule: str
    keys: dict[str, str | None] = field(default_factory=dict)
    key: str = ""
    words: str = ""
    graph: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] | None = field(default_factory=dict)
    labels: str = "ant;bee;cat;dog\n"
    more: str = ""


GOOD = (
    Case(""),
    Case("", SECONDARY),
    Case("", {**MAPS, "model-color-format": "0"}, graph={"maps": True}),
    Case("", {**GREY_KEYS}, graph={"pixels": False, "spec": GREY}, manifest={"preprocess": GREY}),
    Case("", {"offsets": None, "net-scale-factor": None, "infer-dims": None, "model-color-format": None}),
    Case("", manifest=None),
    Case("", NORMALISED, graph={"pixels": False}, manifest=None),
    Case("", more="[class-attrs-all]\npre-cluster-threshold=0.2\n"),
    Case("", {"input-tensor-from-meta": "1", "net-scale-factor": None, "offsets": None, "maintain-aspect-ratio": None}),
)
BAD = (
    Case("DS001", {"scaling-filter": "nine"}, "scaling-filter", "'nine'"),
    Case("DS001", {"cluster-mode": "7"}, "cluster-mode", "'7'"),
    Case("DS001", {"offsets": "0;0"}, "offsets", "'0;0'"),
    Case("DS001", {"symmetric-padding": "yes"}, "symmetric-padding", "'yes'"),
    Case("DS002", {"scaling-fliter": "1", "scaling-filter": None}, "scaling-fliter", "did you mean scaling-filter"),
    Case("DS002", {}, "[clas-attrs-all]", "no group", more="[clas-attrs-all]\nx=1\n"),
    Case("DS003", {"is-classifier": "1"}, "is-classifier", "older versions"),
    Case("DS003", {"colour": "1"}, "colour", "no key of nvinfer"),
    Case("DS004", {"labelfile-path": "names.txt"}, "labelfile-path", "names.txt does not exist"),
    Case("DS004", {"custom-lib-path": "."}, "custom-lib-path", "is a folder"),
    Case("DS005", {"onnx-file": None, "model-engine-file": None}, "onnx-file", "is missing", manifest=None),
    Case("DS005", {"onnx-file": None}, "model-engine-file", "does not exist", manifest=None),
    Case("DS006", {"parse-bbox-func-name": "F"}, "parse-bbox-func-name", "in no library"),
    Case("DS010", {"labelfile-path": None}, "labelfile-path", "is missing"),
    Case("DS010", key="labelfile-path", words="is empty", labels=""),
    Case("DS011", key="labelfile-path", words="4 lines", labels="ant\nbee\ncat\ndog\n"),
    Case("DS011", MAPS, "labelfile-path", "4 lines", {"maps": True}, labels="ant\nbee\ncat\ndog\n"),
    Case("DS012", key="labelfile-path", words="3 labels, the graph has 4", labels="ant;bee;cat\n"),
    Case("DS012", key="labelfile-path", words="5 labels", labels="ant;bee;cat;dog;\n"),
    Case("DS013", key="labelfile-path", words="class 0 is 'bee', the manifest has 'ant'", labels="bee;ant;cat;dog\n"),
    Case("DS013", MAPS, "labelfile-path", "class 2 is 'dog'", {"maps": True}, labels="ant;bee;dog;cat\n"),
    Case("DS015", key="labelfile-path", words=r"'dog\\r'", labels="ant;bee;cat;dog\r\n"),
    Case("DS015", key="labelfile-path", words="' bee'", labels="ant; bee; cat; dog\n"),
    Case("DS020", {"network-type": None}, "network-type", "is missing: a detector"),
    Case("DS020", {"network-type": "0"}, "network-type", "is 0"),
    Case("DS023", key="network-type", words="expected (batch, classes)", graph={"shape": (2, 2)}, labels="a;b\n"),
    Case("DS024", {"classifier-threshold": None}, "network-type", "no Softmax", {"probabilities": False}),
    Case("DS025", {"classifier-threshold": "1.5"}, "classifier-threshold", "no probability is above it"),
    Case("DS026", {**MAPS, "output-tensor-meta": "0"}, "output-tensor-meta", "is 0", {"maps": True}),
    Case("DS026", {**MAPS, "output-tensor-meta": None}, "output-tensor-meta", "is missing", {"maps": True}),
    Case("DS027", {"disable-output-host-copy": "1"}, "disable-output-host-copy", "not copied"),
    Case("DS030", {"net-scale-factor": "0.0173520735727919"}, "net-scale-factor", "normalised twice"),
    Case("DS030", {"net-scale-factor": "0.0173520735727919"}, "net-scale-factor", "normalised twice", manifest=None),
    Case("DS030", {**NORMALISED, "net-scale-factor": "0.00392157"}, "net-scale-factor", "-77.1 %", {"pixels": False}),
    Case("DS030", {**NORMALISED, "net-scale-factor": None}, "net-scale-factor", "which is 1", {"pixels": False}),
    Case("DS031", NORMALISED, "net-scale-factor", "+1.3 % / -0.9 % / -0.4 %", {"pixels": False}),
    Case("DS032", {"offsets": "123.675;116.28;103.53"}, "offsets", "subtracts the means inside"),
    Case("DS032", {**GREY_KEYS, "offsets": None}, "offsets", "are missing", {"pixels": False}, {"preprocess": GREY}),
    Case(
        "DS032",
        {**GREY_KEYS, "offsets": "76.5;102;127.5"},
        "offsets",
        "reverse order",
        {"pixels": False},
        {"preprocess": GREY},
    ),
    Case("DS033", {}, "net-scale-factor", "does not normalise", {"pixels": False}, None),
    Case("DS034", {"model-color-format": "1"}, "model-color-format", "the graph takes RGB"),
    Case("DS034", {"model-color-format": "2"}, "model-color-format", "3 channels"),
    Case("DS035", {"infer-dims": "3;64;64"}, "infer-dims", "the graph takes 3;32;32"),
    Case("DS035", {"infer-dims": None}, "infer-dims", "is dynamic", {"size": ("h", "w")}, None),
    Case("DS036", {"network-input-order": "1"}, "network-input-order", "the graph takes NCHW"),
    Case("DS037", {}, "onnx-file", "is uint8, nvinfer writes FP32", {"dtype": TensorProto.UINT8}),
    Case("DS037", {}, "onnx-file", "has 2 inputs", {"inputs": 2}, None),
    Case("DS038", {"maintain-aspect-ratio": "1"}, "maintain-aspect-ratio", "black borders"),
    Case(
        "DS039", {}, "maintain-aspect-ratio", "centre", manifest={"preprocess": PreprocessSpec(32, 32, "crop", 0.875)}
    ),
    Case("DS040", {"symmetric-padding": "1"}, "symmetric-padding", "does nothing"),
    Case("DS041", {"scaling-filter": "0"}, "scaling-filter", "trained on bicubic"),
    Case(
        "DS042",
        {"input-tensor-from-meta": "1", "offsets": None, "maintain-aspect-ratio": None},
        "net-scale-factor",
        "no effect",
    ),
    Case("DS050", {}, "network-mode", "is 0 (FP32), the graph is quantized", {"quantized": True}),
    Case(
        "DS050",
        {"network-mode": "1", "model-engine-file": "model.onnx_b8_gpu0_int8.engine"},
        "network-mode",
        "int8-calib-file",
    ),
    Case("DS050", {}, "network-mode", "16-bit", {"half": True}, {"precision": "fp16", "rest": "fp16"}),
    Case("DS051", {"network-mode": "2", "model-engine-file": None}, "network-mode", "verified in FP32"),
    Case("DS052", {}, "batch-size", "the batch axis of the graph is 1", {"batch": 1}, {"batch": (1, 1, 1)}),
    Case("DS052", {"batch-size": "16", "model-engine-file": None}, "batch-size", "up to 8"),
    Case("DS053", {"batch-size": "4"}, "model-engine-file", "batch-size 4 (the name says 8)"),
    Case("DS053", {"model-engine-file": "model.onnx_b8_gpu0_fp16.engine"}, "model-engine-file", "network-mode fp32"),
    Case("DS054", {"model-engine-file": "gft.engine"}, "model-engine-file", "will not find it at the next start"),
    Case("DS055", {"model-engine-file": "engines/model.onnx_b8_gpu0_fp32.engine"}, "model-engine-file", "writes it to"),
    Case("DS060", {**SECONDARY, "operate-on-gie-id": "2"}, "operate-on-gie-id", "own gie-unique-id"),
    Case("DS061", {**SECONDARY, "operate-on-gie-id": None}, "operate-on-gie-id", "is missing"),
    Case("DS062", {"operate-on-class-ids": "0;2"}, "operate-on-class-ids", "process-mode is 1"),
    Case("DS063", {**SECONDARY, "classifier-async-mode": "1"}, "classifier-async-mode", "sees no result"),
    Case("DS064", {"gie-unique-id": None}, "gie-unique-id", "is missing"),
)
SEVERAL = (
    Case("DS021 DS022", {}, "network-type", "kept_0", {"maps": True}),
    Case("DS014 DS013", {}, "labelfile-path", "2 classes", manifest={"labels": ("ant", "bee", "c;at", "dog")}),
    Case("DS024 DS025", {}, "classifier-threshold", "compared with the logits", {"probabilities": False}),
)
"""Faults that break two rules."""
