"""Peers side by side in one run, and the speed targets: writes RESULTS.md and its JSON. Needs no data.

python -m gft_edge.benchmarks.experiments.peers.suite runs/bench/peers.json benchmarks/RESULTS.md [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import timm
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from gft_edge.benchmarks.experiments import calibration_speed as calibration
from gft_edge.benchmarks.experiments.peers import evit, footprint, tome
from gft_edge.benchmarks.experiments.peers.gemms import products_alone
from gft_edge.benchmarks.experiments.peers.models import PlainPublishedGFT, export_as_is, export_peer
from gft_edge.benchmarks.experiments.peers.operators import profile
from gft_edge.benchmarks.experiments.peers.results import markdown
from gft_edge.benchmarks.experiments.peers.targets import cost_targets, int8_gains, latency_targets
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency, conditions, ratio_interval
from gft_edge.budget import TokenBudget
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.checkpoint import load_checkpoint
from gft_edge.cli.console import say, track
from gft_edge.config.model import GFTConfig, preset
from gft_edge.errors import exit_code
from gft_edge.export.onnx.artifact import export_artifact, tool_versions
from gft_edge.export.onnx.tracing import GraphOptions, export_graph
from gft_edge.files import replacing, require_writable, write_json
from gft_edge.manifest import MapsMode
from gft_edge.model.build import build_model
from gft_edge.model.macs import count_macs
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.sessions import onnxruntime_session

Images = npt.NDArray[np.float32]
SMALLER = ("vit_small_patch16_224", "vit_tiny_patch16_224")
CLASSES = 1000


@dataclass(frozen=True)
class Scale:
    """How large the run is.

    Args:
        config: the focal model; its backbone is that of every peer.
        places: blocks in which EViT drops patches, counted from 1.
        smaller: timm names of further plain models.
        presets: further GFTs, by name.
        preset: that is exported and verified in a process of its own.
        calibrated: presets whose calibration is timed against plain inference.
        patches: numbers of patches at which the importance alone is measured.
        repeats: fresh processes for each start-up figure.
        rounds, runs, warmup_seconds: of the protocol.
        threads: one measurement each.
    """

    config: GFTConfig
    places: tuple[int, ...] = evit.PLACES
    smaller: tuple[str, ...] = SMALLER
    presets: tuple[str, ...] = ("gft_small", "gft_tiny")
    preset: str = "gft_base"
    calibrated: tuple[str, ...] = calibration.PRESETS
    patches: tuple[int, ...] = (196, 784, 3136)
    repeats: int = 7
    rounds: int = 10
    runs: int = 5
    warmup_seconds: float = 0.5
    threads: tuple[int, ...] = (1, 2)


def full_scale() -> Scale:
    """``gft_base`` against ViT-B."""
    return Scale(preset("gft_base"))


def quick_scale() -> Scale:
    """The width of ``gft_tiny``, four blocks, 36 patches: shows that everything runs; its ratios mean nothing."""
    budget = TokenBudget((27, 18, 9), 36)
    config = preset("gft_tiny", image_size=96, depth=4, stages=(1, 2, 3), budget=budget, num_classes=CLASSES)
    return Scale(config, (1, 2, 3), (), (), "gft_typeface", ("gft_typeface",), (49, 196), 1, 2, 1, 0.0, (1,))


@dataclass(frozen=True)
class Candidate:
    """Something that is timed.

    Attributes:
        model: serialized ONNX.
        quantized: INT8 products.
        macs: multiply-accumulates of one image; None where they are not counted.
        feeds: inputs; the images when empty.
        huge_pages: opened as this project's runtime opens a model that stays, or as ONNX Runtime does by itself.
    """

    model: bytes
    quantized: bool = False
    macs: int | None = None
    feeds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    huge_pages: bool = True

    def open(self, threads: int, images: Images) -> Callable[[], object]:
        """A call that makes one request."""
        session = onnxruntime_session(self.model, self.quantized, threads, self.huge_pages)
        if not self.feeds:
            return functools.partial(session, images)
        return functools.partial(session._session.run, None, dict(self.feeds))


def plain_vit(config: GFTConfig, backbone: str | None = None, **options: Any) -> nn.Module:
    """timm's model of a configuration's size, randomly initialised."""
    if backbone is None:
        names = ("image_size", "patch_size", "embed_dim", "depth", "num_heads")
        sizes: dict[str, Any] = {("img_size" if n == "image_size" else n): getattr(config, n) for n in names}
    else:
        sizes = {}
    torch.manual_seed(0)
    return timm.create_model(backbone or config.backbone, **{"num_classes": CLASSES, **sizes, **options}).eval()


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self._feeds = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, Images] | None:
        """One image at a time."""
        return next(self._feeds, None)


def quantized_by_onnxruntime(model: bytes, images: Images) -> bytes:
    """ONNX Runtime's own static quantization of the linear layers: QDQ, weights per channel."""
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


def _graph(model: Any, maps: MapsMode = "none") -> onnx.ModelProto:
    """A GFT at its own budget, as ``export`` writes it."""
    config = model.config
    return export_graph(model, PreprocessSpec(config.image_size, config.image_size), config.budget, GraphOptions(maps))


def focal_group(scale: Scale, images: Images) -> dict[str, Candidate]:
    """The focal model, plain ViT, ToMe and EViT of as many multiply-accumulates, and the focal model's products alone."""
    config = scale.config
    macs = count_macs(config)
    torch.manual_seed(0)
    model = build_model(config).eval()
    floats = _graph(model)
    int8 = _graph(quantize_int8(model, [images]).model)
    side, pixels = config.image_size, 3 * config.patch_size**2
    vit = plain_vit(config)
    plain = export_peer(vit, side).SerializeToString()
    size = (config.num_patches, config.embed_dim)
    merged = tome.schedule(macs, config.depth, *size, config.num_heads, pixels, CLASSES)
    places = scale.places
    keep = evit.keep_counts(macs, config.depth, *size, pixels, CLASSES, places)
    tome_macs = tome.count_macs(merged, *size, config.num_heads, pixels, CLASSES)
    evit_macs = evit.count_macs(keep, config.depth, *size, pixels, CLASSES, places)
    vit_macs = tome.count_macs([0] * config.depth, *size, config.num_heads, pixels, CLASSES)
    alone, alone_feeds = products_alone(floats)
    alone_int8, alone_int8_feeds = products_alone(int8)
    return {
        "ViT FP32": Candidate(plain, macs=vit_macs, huge_pages=False),
        "ViT INT8 (quantize_static)": Candidate(
            quantized_by_onnxruntime(plain, images), True, vit_macs, huge_pages=False
        ),
        "ViT FP32, huge pages": Candidate(plain, macs=vit_macs),
        "GFT FP32": Candidate(floats.SerializeToString(), macs=macs),
        "GFT INT8": Candidate(int8.SerializeToString(), True, macs),
        "ToMe FP32": Candidate(export_peer(tome.ToMe(vit, merged), side).SerializeToString(), macs=tome_macs),
        "EViT FP32": Candidate(export_peer(evit.EViT(vit, keep, places), side).SerializeToString(), macs=evit_macs),
        "products of GFT FP32": Candidate(alone, feeds=alone_feeds),
        "products of GFT INT8": Candidate(alone_int8, True, feeds=alone_int8_feeds),
    }


def published_group(scale: Scale) -> dict[str, Candidate]:
    """The published model exported as it is and by this project, and the eight blocks that its logits are made of."""
    focal = scale.config
    blocks = min(8, focal.depth)
    config = dataclasses.replace(focal, variant="published", stages=(blocks,) * len(focal.budget.keep), num_classes=100)
    torch.manual_seed(0)
    plain = PlainPublishedGFT(config.budget, backbone=config.backbone, maps=True, vit=plain_vit(config), blocks=blocks)
    ours = build_model(config).eval()
    eight = plain_vit(config, depth=blocks, num_classes=100)
    eight.norm = nn.Identity()
    names = ["logits", *(f"{kind}_{i}" for i in range(len(config.budget.keep)) for kind in ("importance", "kept"))]
    macs = count_macs(config)
    return {
        "published, as it is, maps": Candidate(export_as_is(plain, config.image_size, names).SerializeToString()),
        "published, maps": Candidate(_graph(ours, "compact").SerializeToString()),
        "published": Candidate(_graph(ours).SerializeToString(), macs=macs),
        "ViT of as many blocks": Candidate(export_peer(eight, config.image_size).SerializeToString(), macs=macs),
    }


def smaller_group(scale: Scale, images: Images) -> dict[str, Candidate]:
    """Plain ViT of smaller sizes, FP32 and INT8 by ONNX Runtime, and GFTs of the presets in FP32 and INT8."""
    found = {}
    for name in scale.smaller:
        plain = export_peer(plain_vit(scale.config, name), scale.config.image_size).SerializeToString()
        label = name.partition("_patch")[0]
        found[f"{label} FP32"] = Candidate(plain, huge_pages=False)
        int8 = quantized_by_onnxruntime(plain, images)
        found[f"{label} INT8 (quantize_static)"] = Candidate(int8, True, huge_pages=False)
    for name in scale.presets:
        torch.manual_seed(0)
        config = preset(name)
        model = build_model(config).eval()
        found[f"{name} FP32"] = Candidate(_graph(model).SerializeToString(), macs=count_macs(config))
        quantized = quantize_int8(model, [images]).model
        found[f"{name} INT8"] = Candidate(_graph(quantized).SerializeToString(), True, count_macs(config))
    return found


def ablation(candidate: Candidate, images: Images, scale: Scale) -> list[dict[str, Any]]:
    """The INT8 model under other session options and with UINT8 activations, against how it is shipped.

    Where in memory a session lies is worth some per cent; what a difference must exceed to mean anything is shown by the
    shipped form opened a second time.
    """
    shipped = list(onnxruntime_session(candidate.model, True, 1).options["disabled_optimizers"])
    transposes = ["TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"]
    ways: dict[str, tuple[bytes, list[str], dict[str, str], Any]] = {
        "as shipped": (candidate.model, shipped, {}, None),
        "MatMulAddFusion left on": (candidate.model, [], {}, None),
        "MatMulScaleFusion off": (candidate.model, [*shipped, "MatMulScaleFusion"], {}, None),
        "transpose optimizers off": (candidate.model, [*shipped, *transposes], {}, None),
        "activations UINT8 with zero point 128": (_with_uint8_activations(candidate.model), shipped, {}, None),
        "denormals as zero": (candidate.model, shipped, {"session.set_denormal_as_zero": "1"}, None),
        "no pre-packed weights": (candidate.model, shipped, {"session.disable_prepacking": "1"}, None),
        "graph optimization basic": (candidate.model, shipped, {}, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
        "as shipped, opened once more": (candidate.model, shipped, {}, None),
    }
    calls: dict[str, Callable[[], object]] = {}
    for name, (model, disabled, entries, level) in ways.items():
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 3
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        if level is not None:
            options.graph_optimization_level = level
        session = ort.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled or None
        )
        calls[name] = functools.partial(session.run, None, {"image": images[:1]})
    protocol = BenchProtocol(rounds=scale.rounds, runs_per_round=scale.runs, warmup_seconds=scale.warmup_seconds / 2)
    found = measure(calls, protocol, track)
    base = found["as shipped"]
    rows = [{"option": n, "ms": found[n].p50_ms, "speedup": ratio_interval(base, found[n])} for n in ways]
    pages = footprint.page_sizes(candidate.model, images.shape[2], scale.repeats)
    speedup = ratio_interval(pages["small"], pages["huge"])
    name = "huge pages, against a process without"
    return [*rows, {"option": name, "ms": pages["huge"].p50_ms, "speedup": speedup}]


def _with_uint8_activations(model: bytes) -> bytes:
    """The same arithmetic with activations shifted by 128."""
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


def timed(group: Mapping[str, Candidate], scale: Scale, images: Images) -> dict[int, dict[str, Latency]]:
    """Latencies of a group by number of threads, its candidates interleaved."""
    found = {}
    for threads in scale.threads:
        calls = {name: candidate.open(threads, images[:1]) for name, candidate in group.items()}
        protocol = BenchProtocol(
            threads=threads,
            rounds=scale.rounds,
            runs_per_round=scale.runs,
            warmup_seconds=scale.warmup_seconds,
        )
        found[threads] = measure(calls, protocol, track)
        del calls
        gc.collect()
    return found


def run(scale: Scale) -> dict[str, Any]:
    """Everything, as plain JSON values."""
    rng = np.random.default_rng(0)
    side = scale.config.image_size
    images = rng.standard_normal((2, 3, side, side), dtype=np.float32)
    where = {**conditions(), "onnxruntime": ort.__version__, **tool_versions(), "timm": timm.__version__}
    timings: dict[int, dict[str, Latency]] = {threads: {} for threads in scale.threads}
    candidates: dict[str, Candidate] = {}
    groups: Sequence[tuple[str, Callable[[], dict[str, Candidate]]]] = (
        ("focal", lambda: focal_group(scale, images)),
        ("published", lambda: published_group(scale)),
        ("smaller", lambda: smaller_group(scale, images)),
    )
    for name, make in groups:
        say(f"bench: exporting the {name} group")
        group = make()
        for threads, found in timed(group, scale, images).items():
            timings[threads].update(found)
        candidates.update(group)
    say("bench: options of the INT8 session")
    options = ablation(candidates["GFT INT8"], images, scale)
    say("bench: start-up, export, importance")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_checkpoint("builtin")
        size = checkpoint.info.model.image_size
        artifact = export_artifact(checkpoint, Path(folder, "builtin"), np.zeros((2, 3, size, size), np.float32))
        starts = footprint.start_up(artifact.path, scale.repeats)
    costs = {
        "start_up": starts,
        "export": footprint.export_and_verify(scale.preset),
        "calibration": calibration.run(scale.threads[0], scale.rounds, scale.calibrated),
        "importance": footprint.importance(scale.patches, scale.config.embed_dim, scale.config.num_heads, scale.rounds),
    }
    gains = int8_gains(timings)
    targets = latency_targets(timings) + gains + cost_targets(costs)
    profiled = {(r["candidate"], r["threads"]) for r in targets if "candidate" in r and r["met"] is False}
    profiled |= {("GFT INT8", scale.threads[0]), ("GFT FP32", scale.threads[0])}
    profiles = []
    for name, threads in sorted(profiled):
        candidate = candidates[name]
        disabled = list(onnxruntime_session(candidate.model, candidate.quantized, 1).options["disabled_optimizers"])
        operators = profile(candidate.model, disabled, images[:1], threads)
        profiles.append({"candidate": name, "threads": threads, "operators": operators})
    return {
        "machine": where,
        "protocol": {"rounds": scale.rounds, "runs_per_round": scale.runs, "warmup_seconds": scale.warmup_seconds},
        "model": scale.config.to_json(),
        "targets": targets,
        "latency": [
            {"name": name, "threads": threads, "macs": candidates[name].macs, **dataclasses.asdict(latency)}
            for threads, found in timings.items()
            for name, latency in found.items()
        ],
        "options": options,
        "costs": costs,
        "profiles": profiles,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes both files; 0 whether or not the targets are met, which the table says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="raw samples and figures")
    parser.add_argument("markdown", type=Path, help="the table")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: shows that it runs, no more")
    args = parser.parse_args(arguments)
    for path in (args.json, args.markdown):
        require_writable(path)
    data = run(quick_scale() if args.quick else full_scale())
    write_json(args.json, data)
    text = markdown(data)
    with replacing(args.markdown) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
