"""Engine, precision, batch, and which objects a secondary works on."""

from __future__ import annotations

import re

from gft_edge.export.lint_deployment.nvinfer.subject import CLASSIFIER, MODES, NvinferSubject
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule

_NAME = "nvinfer writes <onnx-file>_b<batch-size>_gpu<id>_<fp32|int8|fp16>.engine beside the graph (buildModel of nvdsinfer)"
_ENGINE = re.compile(r"(?P<graph>.+)_b(?P<batch>\d+)_(?P<device>(?:gpu|dla)\d+)_(?P<mode>fp32|int8|fp16|best)\.engine")
FP32, INT8, FP16 = 0, 1, 2


def _mode(subject: NvinferSubject) -> int:
    return subject.sound.integer("network-mode", FP32)


def _batch(subject: NvinferSubject) -> int:
    return subject.sound.integer("batch-size", 1)


@rule(
    "DS050",
    "precision of another graph",
    "a graph with QuantizeLinear needs the INT8 flag, one without needs int8-calib-file for it (TensorRT, quantized types).",
)
def precision(subject: NvinferSubject) -> Problems:
    """Yields a precision that the graph does not have."""
    if subject.graph is None:
        return
    value, line = _mode(subject), subject.line("network-mode")
    found = f"is {value} ({MODES[value].upper()})" if subject.has("network-mode") else "is missing, which is 0 (FP32)"
    if subject.graph.quantized and value in (FP32, FP16):
        yield Problem("network-mode", f"{found}, the graph is quantized", "network-mode=1", line)
    elif not subject.graph.quantized and value == INT8 and not subject.has("int8-calib-file"):
        message = (
            f"{found}, the graph is not quantized and there is no int8-calib-file: nvinfer falls back to FP16 or FP32"
        )
        yield Problem("network-mode", message, "network-mode=2, or a quantized artefact (gft-edge quantize)", line)
    elif subject.graph.half and value == FP32:
        yield Problem("network-mode", f"{found}, the weights of the graph are 16-bit", "network-mode=2", line)


@rule(
    "DS051",
    "another precision than the artefact's",
    "the figures of the manifest are those of its precision; an engine of fewer bits may keep other patches.",
    "warning",
)
def verified_precision(subject: NvinferSubject) -> Problems:
    """Yields an FP16 engine of an artefact that was verified in FP32."""
    if subject.manifest and subject.manifest.precision == "fp32" and _mode(subject) == FP16:
        message = "is 2 (FP16), the artefact was exported and verified in FP32"
        instead = "network-mode=0, or an artefact exported with --precision fp16"
        yield Problem("network-mode", message, instead, subject.line("network-mode"))


@rule(
    "DS052",
    "batch that the graph does not take",
    "nvinfer builds one profile up to batch-size; a static axis takes its own size alone ('has maxBatchSize 1').",
)
def batch(subject: NvinferSubject) -> Problems:
    """Yields a batch beyond the graph's."""
    if subject.graph is None:
        return
    value, static, line = _batch(subject), subject.graph.static_batch, subject.line("batch-size")
    found = f"is {value}" if subject.has("batch-size") else "is missing, which is 1"
    if static is not None and value != static:
        yield Problem("batch-size", f"{found}, the batch axis of the graph is {static}", f"batch-size={static}", line)
    elif static is None and subject.manifest and value > subject.manifest.batch[2]:
        largest = subject.manifest.batch[2]
        message = f"{found}, the artefact was exported for up to {largest}"
        yield Problem("batch-size", message, f"batch-size={largest}, or export with a larger --batch", line)


@rule(
    "DS053",
    "engine of another batch or precision",
    f"{_NAME}; an engine of another name is used, or refused and built again at every start.",
)
def engine_name(subject: NvinferSubject) -> Problems:
    """Yields an engine whose name says other than the configuration."""
    name = subject.sound.text("model-engine-file").rpartition("/")[2]
    match, line = _ENGINE.fullmatch(name), subject.line("model-engine-file")
    if match is None or not subject.has("onnx-file"):
        return
    own = _ENGINE.fullmatch(subject.engine_name)
    keys = {"graph": "onnx-file", "batch": "batch-size", "device": "gpu-id", "mode": "network-mode"}
    if own and (other := [part for part in keys if match[part] != own[part]]):
        words = ", ".join(f"{keys[part]} {own[part]} (the name says {match[part]})" for part in other)
        yield Problem("model-engine-file", f"is {name}, the configuration has {words}", subject.engine_name, line)


@rule(
    "DS054",
    "engine that is built at every start",
    f"{_NAME}, whatever model-engine-file says; a name that is not this one is not found again.",
    "warning",
)
def engine_place(subject: NvinferSubject) -> Problems:
    """Yields an engine that does not exist and that nvinfer will write elsewhere."""
    engine, graph = subject.sound.file("model-engine-file"), subject.sound.file("onnx-file")
    if engine is None or graph is None or engine.is_file() or _ENGINE.fullmatch(engine.name):
        return
    message = f"{engine} does not exist; nvinfer builds {subject.engine_name} and will not find it at the next start"
    yield Problem("model-engine-file", message, subject.engine_name, subject.line("model-engine-file"))


@rule("DS055", "engine in another folder", f"{_NAME}; in another folder it is not found again.", "warning")
def engine_folder(subject: NvinferSubject) -> Problems:
    """Yields an engine with the right name in another folder than the graph's."""
    engine, graph = subject.sound.file("model-engine-file"), subject.sound.file("onnx-file")
    if engine is None or graph is None or engine.is_file() or engine.name != subject.engine_name:
        return
    if engine.parent.resolve() != graph.parent.resolve():
        message = f"does not exist in {engine.parent}; nvinfer writes it to {graph.parent}"
        instead = str(graph.parent / subject.engine_name)
        yield Problem("model-engine-file", message, instead, subject.line("model-engine-file"))


@rule(
    "DS056",
    "engine older than its graph",
    "nvinfer loads model-engine-file without a look at onnx-file (generateBackendContext of nvdsinfer).",
)
def stale_engine(subject: NvinferSubject) -> Problems:
    """Yields an engine that was written before the graph."""
    engine, graph = subject.sound.file("model-engine-file"), subject.sound.file("onnx-file")
    if engine is None or graph is None or not (engine.is_file() and graph.is_file()):
        return
    if engine.stat().st_mtime < graph.stat().st_mtime:
        message = f"{engine.name} was written before {graph.name}, so it was built from another graph"
        yield Problem(
            "model-engine-file",
            message,
            f"delete {engine.name}; nvinfer builds it again",
            subject.line("model-engine-file"),
        )


@rule(
    "DS060",
    "secondary on its own results",
    "operate-on-gie-id is the gie-unique-id of the detector before (Gst-nvinfer).",
)
def own_id(subject: NvinferSubject) -> Problems:
    """Yields a secondary that works on its own objects."""
    own, other = subject.sound.integer("gie-unique-id", 0), subject.sound.integer("operate-on-gie-id", -1)
    if subject.is_secondary and subject.has("operate-on-gie-id") and own == other:
        message = f"is {other}, the configuration's own gie-unique-id: it gets no objects"
        yield Problem(
            "operate-on-gie-id", message, "the gie-unique-id of the detector", subject.line("operate-on-gie-id")
        )


@rule(
    "DS061",
    "secondary on every detector",
    "without operate-on-gie-id a secondary takes objects of any component (Gst-nvinfer: -1).",
    "warning",
)
def any_detector(subject: NvinferSubject) -> Problems:
    """Yields a secondary that names no detector."""
    if subject.is_secondary and subject.sound.integer("operate-on-gie-id", -1) == -1:
        found = "is -1" if subject.has("operate-on-gie-id") else "is missing"
        message = f"{found}: objects of every detector are classified"
        yield Problem(
            "operate-on-gie-id", message, "operate-on-gie-id=1", subject.line("operate-on-gie-id", "process-mode")
        )


@rule(
    "DS062",
    "keys of a secondary",
    "process-mode=1 takes whole frames and reads none of the keys that choose objects (Gst-nvinfer).",
)
def primary_keys(subject: NvinferSubject) -> Problems:
    """Yields keys of secondaries in a configuration that takes whole frames."""
    keys = ("operate-on-gie-id", "operate-on-class-ids", "classifier-async-mode", "secondary-reinfer-interval")
    for key in keys if not subject.is_secondary else ():
        inert = key == "classifier-async-mode" and not subject.sound.flag(key)
        if subject.has(key) and not inert and subject.sound.text(key).strip() != "-1":
            found = "process-mode is 1" if subject.has("process-mode") else "process-mode is missing, which is 1"
            yield Problem(key, f"has no effect: {found}", f"process-mode=2, or no {key}", subject.line(key))


@rule(
    "DS063",
    "labels that come later",
    "classifier-async-mode=1 attaches a result to a later frame, and only to objects with a tracker's id (Gst-nvinfer).",
    "warning",
)
def asynchronous(subject: NvinferSubject) -> Problems:
    """Yields a secondary that does not wait for its results."""
    if subject.is_secondary and subject.sound.flag("classifier-async-mode"):
        message = "is 1: a probe in the same frame sees no result"
        yield Problem(
            "classifier-async-mode", message, "classifier-async-mode=0", subject.line("classifier-async-mode")
        )


@rule(
    "DS064",
    "no id",
    "gie-unique-id tells the results of several components apart; without it, it is 0 (Gst-nvinfer: above 0).",
    "warning",
)
def no_id(subject: NvinferSubject) -> Problems:
    """Yields a configuration without an id of its own."""
    if subject.sound.integer("gie-unique-id", 0) == 0 and subject.kind in (CLASSIFIER, 100):
        found = "is 0" if subject.has("gie-unique-id") else "is missing"
        message = f"{found}: results cannot be told from those of other components"
        yield Problem("gie-unique-id", message, "gie-unique-id=1", subject.line("gie-unique-id"))
