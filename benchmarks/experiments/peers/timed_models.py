"""The models that the suite times: the focal model, its peers, the published model, and smaller ones."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import timm
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from gft_edge.benchmarks.experiments.peers import evit, tome
from gft_edge.benchmarks.experiments.peers.gemms import products_alone
from gft_edge.benchmarks.experiments.peers.models import PlainPublishedGFT, export_as_is, export_peer
from gft_edge.benchmarks.experiments.peers.scale import CLASSES, Scale
from gft_edge.benchmarks.experiments.peers.vit_sizes import VitSizes
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.config.model import preset
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.tracing import export_graph
from gft_edge.manifest import MapsMode
from gft_edge.model.backbone import timm_vit
from gft_edge.model.build import build_model
from gft_edge.model.macs import count_macs
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.backends.sessions import onnxruntime_session

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TimedModel:
    """A model that is timed.

    Attributes:
        model: serialized ONNX.
        quantized: INT8 products.
        macs: multiply-accumulates of one image; None if they are not counted.
        feeds: inputs; the images if empty.
        huge_pages: use huge pages, as our runtime does for long-lived sessions, or ONNX Runtime's default.
    """

    model: bytes
    quantized: bool = False
    macs: int | None = None
    feeds: Mapping[str, Any] = field(default_factory=dict)
    huge_pages: bool = True

    def open(self, threads: int, images: Images) -> Callable[[], object]:
        """Returns a call that makes one request."""
        session = onnxruntime_session(self.model, self.quantized, threads, self.huge_pages)
        if not self.feeds:
            return functools.partial(session, images)
        return functools.partial(session._session.run, None, dict(self.feeds))


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self._feeds = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, Images] | None:
        """Returns one image at a time."""
        return next(self._feeds, None)


def quantized_by_onnxruntime(model: bytes, images: Images) -> bytes:
    """Quantizes linear layers by ONNX Runtime's own static quantization: QDQ, weights per channel."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model)
        quantize_static(
            str(source),
            str(result),
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return result.read_bytes()


def graph_of(model: Any, maps: MapsMode = "none") -> onnx.ModelProto:
    """Returns a GFT at its own budget, as ``export`` writes it."""
    config = model.config
    return export_graph(model, PreprocessSpec(config.image_size, config.image_size), config.budget, GraphOptions(maps))


def focal_group(scale: Scale, images: Images) -> dict[str, TimedModel]:
    """Returns the focal model, plain ViT, ToMe and EViT (same patches, and equal multiply-accumulates), and its products alone."""
    config, side = scale.config, scale.config.image_size
    macs = count_macs(config)
    torch.manual_seed(0)
    model = build_model(config).eval()
    floats = graph_of(model)
    int8 = graph_of(quantize_int8(model, [images]).model)
    torch.manual_seed(0)
    vit = timm_vit(config, False, 0.0, num_classes=CLASSES).eval()
    plain = export_peer(vit, side).SerializeToString()
    sizes = VitSizes.of(config, CLASSES)

    def merging(merged: Sequence[int]) -> TimedModel:
        graph = export_peer(tome.ToMe(vit, merged), side)
        return TimedModel(graph.SerializeToString(), macs=tome.count_macs(merged, sizes))

    def dropping(keep: Sequence[int], places: Sequence[int]) -> TimedModel:
        graph = export_peer(evit.EViT(vit, keep, places), side)
        return TimedModel(graph.SerializeToString(), macs=evit.count_macs(keep, sizes, places))

    vit_macs = tome.count_macs([0] * config.depth, sizes)
    alone, alone_feeds = products_alone(floats)
    alone_int8, alone_int8_feeds = products_alone(int8)
    places = evit.places(config)
    return {
        "ViT FP32": TimedModel(plain, macs=vit_macs, huge_pages=False),
        "ViT INT8 (quantize_static)": TimedModel(
            quantized_by_onnxruntime(plain, images), True, vit_macs, huge_pages=False
        ),
        "ViT FP32, huge pages": TimedModel(plain, macs=vit_macs),
        "GFT FP32": TimedModel(floats.SerializeToString(), macs=macs),
        "GFT INT8": TimedModel(int8.SerializeToString(), True, macs),
        "ToMe FP32": merging(tome.same_tokens(config)),
        "EViT FP32": dropping(config.budget.keep, config.stages),
        "ToMe FP32, equal MACs": merging(tome.schedule(macs, sizes)),
        "EViT FP32, equal MACs": dropping(evit.keep_counts(macs, sizes, places), places),
        "products of GFT FP32": TimedModel(alone, feeds=alone_feeds),
        "products of GFT INT8": TimedModel(alone_int8, True, feeds=alone_int8_feeds),
    }


def published_group(scale: Scale) -> dict[str, TimedModel]:
    """Returns the published model exported by torch alone and by this project, and the blocks that its logits depend on."""
    focal = scale.config
    blocks = min(8, focal.depth)
    config = dataclasses.replace(focal, variant="published", stages=(blocks,) * len(focal.budget.keep), num_classes=100)
    torch.manual_seed(0)
    vit = timm_vit(config, False, 0.0, num_classes=CLASSES)
    plain = PlainPublishedGFT(config.budget, backbone=config.backbone, maps=True, vit=vit, blocks=blocks)
    ours = build_model(config).eval()
    eight = timm_vit(dataclasses.replace(config, depth=blocks), False, 0.0, num_classes=100).eval()
    eight.norm = nn.Identity()
    names = ["logits", *(f"{kind}_{i}" for i in range(len(config.budget.keep)) for kind in ("importance", "kept"))]
    macs = count_macs(config)
    return {
        "published, as it is, maps": TimedModel(export_as_is(plain, config.image_size, names).SerializeToString()),
        "published, maps": TimedModel(graph_of(ours, "compact").SerializeToString()),
        "published": TimedModel(graph_of(ours).SerializeToString(), macs=macs),
        "ViT of as many blocks": TimedModel(export_peer(eight, config.image_size).SerializeToString(), macs=macs),
    }


def smaller_group(scale: Scale, images: Images) -> dict[str, TimedModel]:
    """Returns plain ViTs of smaller sizes, FP32 and INT8 by ONNX Runtime, and GFTs of the presets in FP32 and INT8."""
    found = {}
    for name in scale.smaller:
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=CLASSES).eval()
        plain = export_peer(network, scale.config.image_size).SerializeToString()
        label = name.partition("_patch")[0]
        found[f"{label} FP32"] = TimedModel(plain, huge_pages=False)
        int8 = quantized_by_onnxruntime(plain, images)
        found[f"{label} INT8 (quantize_static)"] = TimedModel(int8, True, huge_pages=False)
    for name in scale.presets:
        torch.manual_seed(0)
        config = preset(name)
        model = build_model(config).eval()
        found[f"{name} FP32"] = TimedModel(graph_of(model).SerializeToString(), macs=count_macs(config))
        quantized = quantize_int8(model, [images]).model
        found[f"{name} INT8"] = TimedModel(graph_of(quantized).SerializeToString(), True, count_macs(config))
    return found
