"""Quantizes the linear layers in the blocks of a plain ViT in a foreign ONNX file, and measures what that changes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.calibration.calibrate import BATCH, FOLDER, write_calibration
from gft_edge.calibration.graph import observe_graph
from gft_edge.calibration.images import CalibrationSet, HeldOut, choose_images, held_out_images
from gft_edge.calibration.observing.collect import Collector
from gft_edge.calibration.options import SILENT, CalibrationOptions, Callbacks, result_folder
from gft_edge.calibration.ranges import Ranges
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.for_model import forward_notes, once
from gft_edge.data.sets import ImageSet
from gft_edge.errors import ConfigError
from gft_edge.export.foreign.agreement import Agreement, measure_agreement
from gft_edge.export.foreign.loading import load_whole
from gft_edge.export.foreign.model import ForeignLayer, ForeignModel, ForeignQuantization, load_foreign, write_record
from gft_edge.export.foreign.pattern import recognise
from gft_edge.export.foreign.preprocessing import ClassNames, Pixels, class_names, data_labels
from gft_edge.export.foreign.qdq import QuantizedLinear, insert_qdq
from gft_edge.export.foreign.vit_parts import Linear, Pattern
from gft_edge.export.graph.view import GraphView, view
from gft_edge.files import replacing
from gft_edge.manifest import MODEL
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.levels import SMALLEST_RANGE
from gft_edge.quant.policy import ATTEND, DEFAULT_POLICY, QuantPolicy

NO_METHOD = "none"
CARD = "card.md"
PRECISIONS = ("int8", "int8-weights", "high")
_REASONS = {
    "patch embedding": "first layer: three channels in, little work",
    "classifier": "the classifier is one small product; its error goes straight into the logits",
    "head": "layer of the head: few tokens, little work",
    "convolution": "convolution outside of the blocks",
}


@dataclass(frozen=True)
class ForeignOptions:
    """Images, policy and preprocessing of a quantization.

    Args:
        calibration: which images, and how ranges are found; ``data`` must be given.
        policy: precision of each layer, by our names: ``blocks.0.attn.qkv`` (q, k and v too), ``.attn.proj``, ``.mlp.fc1``,
            ``.mlp.fc2``.
        pixels: what is known about the preprocessing.
        labels: file of class names in the order of the outputs.
        image_size: for a graph that does not fix it.

    Raises:
        ConfigError: no data, or a policy with what a foreign graph does not get: FP8, quantized attention, SmoothQuant.
    """

    calibration: CalibrationOptions
    policy: QuantPolicy = DEFAULT_POLICY
    pixels: Pixels = field(default_factory=Pixels)
    labels: Path | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.calibration.data is None:
            raise ConfigError("an ONNX file does not record its data; give --data")
        if self.policy.smoothquant is not None:
            raise ConfigError("SmoothQuant is for checkpoints, not for ONNX files; leave it out")
        for rule in self.policy.rules:
            attend = rule.pattern.rpartition(".")[2].endswith(ATTEND)
            if rule.precision not in PRECISIONS or (attend and rule.precision != "high"):
                what = "quantized attention" if attend else rule.precision
                raise ConfigError(
                    f"rule {rule.pattern!r}: {what} is for checkpoints; an ONNX file gets int8 or int8-weights linears"
                )


@dataclass(frozen=True)
class ForeignQuantized:
    """A quantized foreign model.

    Attributes:
        model: in its folder.
        ranges: of the layers' inputs; None where weights alone are quantized.
        card: of the calibration images.
        agreement: with the float file.
        notes: sentences on what was assumed.
        inputs: the first layer that reads each tensor of ``ranges``, by our name.
    """

    model: ForeignModel
    ranges: Ranges | None
    card: CalibrationSet
    agreement: Agreement
    notes: tuple[str, ...]
    inputs: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        quantization, spec = self.model.quantization, self.model.preprocess
        assert quantization is not None
        assert spec is not None
        return {
            "out": str(self.model.path),
            "sha256": self.model.sha256,
            "source": quantization.source,
            "precision": quantization.precision,
            "method": quantization.method,
            "images": quantization.images,
            "preprocess": spec.to_json(),
            "layers": [dataclasses.asdict(layer) for layer in quantization.layers],
            "agreement": self.agreement.to_json(),
            "notes": list(self.notes),
        }


def quantize_foreign(path: Path, options: ForeignOptions, out: Path, callbacks: Callbacks = SILENT) -> ForeignQuantized:
    """Quantizes an ONNX file of another program and writes model.onnx, quantization.json, a card and the calibration.

    Args:
        path: a float32 file with one input, images, that holds a plain ViT.
        options: images, policy, preprocessing.
        out: new folder.
        callbacks: progress, notes, unreadable images, and the figure.

    Raises:
        ArtifactError: not such a file; names the first node that does not fit.
        ConfigError, DataError: options or images that cannot be used.
        ResultNotWrittenError: ``out`` cannot be written; the error holds the result.
    """
    callbacks = dataclasses.replace(callbacks, note=once(callbacks.note))
    with result_folder(out) as making:
        run = _Run.prepare(path, options, callbacks)
        result = making.result = run.quantize(making.folder, out)
        run.write(making.folder, result)
    return result


@dataclass(frozen=True)
class _Layer:
    """A layer of a block with the precision that the policy gives it."""

    name: str
    part: str
    linear: Linear
    precision: str
    reason: str


def _layers(pattern: Pattern, policy: QuantPolicy) -> list[_Layer]:
    found = []
    for number, block in enumerate(pattern.blocks):
        for name, part, linear in block.linears:
            rule = policy.rule_for(f"blocks.{number}.{part}")
            precision = "high" if rule is None else rule.precision
            reason = "no rule matches: stays in high precision" if rule is None else rule.reason
            found.append(_Layer(f"blocks.{number}.{name}", part, linear, precision, reason))
    if all(layer.precision == "high" for layer in found):
        raise ConfigError("quantization policy: no layer of this graph is quantized")
    return found


def _records(
    pattern: Pattern, layers: list[_Layer], policy: QuantPolicy, ranges: Mapping[str, float], graph: GraphView
) -> tuple[ForeignLayer, ...]:
    """Returns all layers in the order of the graph."""
    position = {node.output[0]: number for number, node in enumerate(graph.nodes)}
    found = []
    for layer in layers:
        used = ranges.get(layer.linear.input) if layer.precision == "int8" else None
        kind = layer.part.rpartition(".")[2]
        name = layer.linear.node.name or layer.linear.output
        span = None if used is None else max(used, SMALLEST_RANGE)
        record = ForeignLayer(layer.name, kind, name, layer.precision, layer.reason, span)
        found.append((position[layer.linear.output], record))
    for number, block in enumerate(pattern.blocks):
        rule = policy.rule_for(f"blocks.{number}.attn.{ATTEND}")
        reason = "softmax and its two products" if rule is None else rule.reason
        node = block.core.nodes[-1]
        record = ForeignLayer(f"blocks.{number}.attn.{ATTEND}", ATTEND, node.name or node.output[0], "high", reason)
        found.append((position[node.output[0]], record))
    for number, other in enumerate(pattern.others):
        node = other.node
        name = f"{other.kind.replace(' ', '_')}.{number}"
        record = ForeignLayer(name, other.kind, node.name or node.output[0], "high", _REASONS[other.kind])
        found.append((position[node.output[0]], record))
    return tuple(record for _, record in sorted(found, key=lambda pair: pair[0]))


@dataclass(frozen=True)
class _Run:
    """A quantization whose file and images are opened and checked."""

    source: ForeignModel
    model: onnx.ModelProto
    graph: GraphView
    pattern: Pattern
    layers: list[_Layer]
    spec: PreprocessSpec
    names: ClassNames
    card: CalibrationSet
    images: ImageSet
    options: ForeignOptions
    callbacks: Callbacks

    @classmethod
    def prepare(cls, path: Path, options: ForeignOptions, callbacks: Callbacks) -> _Run:
        """Reads the file, finds its blocks and chooses images."""
        source = load_foreign(path, options.image_size)
        if source.quantization is not None:
            raise ConfigError(f"{path}: is quantized already; give the float file")
        height, width = source.size
        if height != width:
            raise ConfigError(f"graph {path}: takes images of {height} x {width}; only square ones can be calibrated")
        model = load_whole(source)
        graph = view(model)
        pattern = recognise(graph, f"graph {path}")
        layers = _layers(pattern, options.policy)
        spec, calibration = options.pixels.spec(height, width), options.calibration
        assert calibration.data is not None
        found = data_labels(calibration.data, calibration.split, height)
        names = class_names(options.labels, found, source.classes, calibration.data)
        labels = names.names if names.known else found
        card, images = choose_images(calibration, spec, labels, problem=callbacks.problem)
        if callbacks.note is not None:
            forward_notes(images, callbacks.note)
        return cls(source, model, graph, pattern, layers, spec, names, card, images, options, callbacks)

    def quantize(self, folder: Path, out: Path) -> ForeignQuantized:
        """Calibrates, writes the quantized graph into a folder and compares it."""
        options, source = self.options, self.source
        ranges = self._ranges()
        values = {} if ranges is None else ranges.values
        records = _records(self.pattern, self.layers, options.policy, values, self.graph)
        insert_qdq(
            self.model,
            self.graph,
            [
                QuantizedLinear(
                    layer.name, layer.linear, values[layer.linear.input] if layer.precision == "int8" else None
                )
                for layer in self.layers
                if layer.precision != "high"
            ],
        )
        with replacing(folder / MODEL) as temporary:
            onnx.save(self.model, str(temporary))
        kinds = {layer.precision for layer in self.layers} - {"high"}
        quantization = ForeignQuantization(
            source.file.name,
            source.sha256,
            kinds.pop() if len(kinds) == 1 else "mixed",
            NO_METHOD if ranges is None else ranges.method,
            0 if ranges is None else len(self.card.hashes),
            None if ranges is None else self.card.id,
            records,
        )
        written = dataclasses.replace(
            load_foreign(folder / MODEL), preprocess=self.spec, labels=self.names.names, quantization=quantization
        )
        agreement = self._agreement(written)
        notes = (options.pixels.origin(), self.names.origin)
        details = {
            "source_path": os.path.relpath(source.file.resolve(), out.resolve()),  # where verify looks for it
            "notes": list(notes),
            "agreement": agreement.to_json(),
            "policy": options.policy.to_json()["rules"],
            "data": options.calibration.data,
            "split": options.calibration.split,
        }
        written = dataclasses.replace(
            written, path=out, file=out / MODEL, quantization=dataclasses.replace(quantization, details=details)
        )
        inputs = {layer.linear.input: layer.name for layer in reversed(self.layers)}
        return ForeignQuantized(written, ranges, self.card, agreement, notes, inputs)

    def write(self, folder: Path, result: ForeignQuantized) -> None:
        """Writes the record, the calibration and the card beside the graph."""
        write_record(folder, result.model)
        if result.ranges is not None:
            write_calibration(folder / FOLDER, self.card, result.ranges, self.callbacks)
        with replacing(folder / CARD) as temporary:
            temporary.write_text(_card(result), encoding="utf-8")

    def _ranges(self) -> Ranges | None:
        names = list(dict.fromkeys(layer.linear.input for layer in self.layers if layer.precision == "int8"))
        if not names:
            return None
        options, source = self.options.calibration, self.source
        collector = Collector(names, options.method, options.percentile)
        size = source.batch or BATCH
        batches = (_padded(batch, source.batch) for batch, _ in evaluation_batches(self.images, self.spec, size))
        steps = observe_graph(self.model, self.spec.height, collector, batches, source.to_input)
        for _ in self.callbacks.track(steps, "calibrate", batch_count(len(self.images), size)):
            pass
        return Ranges.of(collector, "graph tensors", source.sha256, self.card.id, self.spec.id)

    def _agreement(self, quantized: ForeignModel) -> Agreement:
        options = self.options.calibration
        assert options.data is not None
        found = held_out_images(options.data, options.against, options.images, self.spec.height, self.source.path)
        if found is None:
            found = HeldOut(self.card.data, options.split, self.images)
        return measure_agreement(
            self.source, quantized, found, self.images is not found.images, self.names, self.callbacks
        )


def _padded(batch: npt.NDArray[np.float32], size: int | None) -> npt.NDArray[np.float32]:
    """Returns a batch of the size that a graph takes, its last image repeated: that changes no maximum."""
    if size is None or len(batch) == size:
        return batch
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def _card(result: ForeignQuantized) -> str:
    """Returns the card: what was made from what, and what was assumed."""
    model, quantization, spec = result.model, result.model.quantization, result.model.preprocess
    assert quantization is not None
    assert spec is not None
    counts: dict[tuple[str, str, str], int] = {}
    for layer in quantization.layers:
        key = (layer.kind, layer.precision, layer.reason)
        counts[key] = counts.get(key, 0) + 1
    rows = "\n".join(f"| {kind} | {count} | {precision} | {why} |" for (kind, precision, why), count in counts.items())
    crop = "stretched" if spec.resize == "stretch" else f"centre crop {spec.crop_ratio:g}"
    mean, std = ("/".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    notes = "\n".join(f"- {note}" for note in result.notes)
    return f"""# {quantization.source}, quantized

Source sha256 `{quantization.source_sha256}`; result sha256 `{model.sha256}`.

Pixels: {spec.width} x {spec.height}, {crop}, {spec.interpolation}, mean {mean}, std {std}, {spec.color_order}.
{notes}

| layers | of | precision | why |
|---|---|---|---|
{rows}

LayerNorm, softmax, GELU, residual sums and biases stay in float.

Calibration: {result.card.describe()}; method {quantization.method}.

{result.agreement.describe()}
"""
