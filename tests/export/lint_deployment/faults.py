"""Seeded faults of deployments: a clean bundle with one change, and what has to find it.

A bundle with ``recorded`` is recorded again after the change, as by one who makes a wrong bundle; the others are tampered with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from gft_edge.bundle import load_bundle, write_record
from gft_edge.errors import GFTEdgeError
from gft_edge.export.lint_deployment.linter import lint_deployment
from gft_edge.manifest import load_artifact, register_files
from gft_edge.preprocess import PreprocessSpec

from .clean_bundles import CLEAN, clean_bundle
from .served import SPEC, classifier, rerecord, write_artifact

DS, DS2 = "deepstream/config_infer_primary.txt", "deepstream/config_infer_secondary.txt"
LABELS, GRAPH = "deepstream/labels.txt", "deepstream/model.onnx"
TR, ENSEMBLE, NORMALIZE = (f"models/{name}/config.pbtxt" for name in ("gft_12-6", "gft_12-6_pixels", "gft_normalize"))
Change = Callable[[Path], None]
REFUSED = "refused"


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        name: in words.
        bundle: clean one that is changed.
        change: of the folder.
        found: rule that finds it, or :data:`REFUSED`.
        place: key that the finding names, or file that the refusal names.
        recorded: the record is written again after the change.
    """

    name: str
    bundle: str
    change: Change
    found: str
    place: str
    recorded: bool = True


def edit(file: str, old: str, new: str) -> Change:
    def change(folder):
        path = folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def write(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_bytes(text.encode())


def replace_graph(file: str, **options) -> Change:
    return lambda folder: onnx.save(classifier(**options), folder / file)


def remove(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def another_artifact(**changes) -> Change:
    """Puts another artefact in, and lets the record name it."""

    def change(folder):
        shutil.rmtree(folder / "artifact")
        write_artifact(folder / "artifact", classifier(pixels=False, probabilities=False), **changes)

    return change


def engine(device: str = "orin-nano", key: str = "trt10.3_sm87", **wrong) -> Change:
    """Registers an engine; keyword arguments change its record."""

    def change(folder):
        artifact = load_artifact(folder / "artifact")
        (artifact.path / "engines").mkdir()
        data = b"engine"
        (artifact.path / "engines" / f"{key}.engine").write_bytes(data)
        record = {
            "key": key,
            "module": "tensorrt",
            "version": "10.3.0",
            "device": device,
            "compute_capabilities": ["8.7"],
            "batch": [1, 8, 8],
            "precision": "fp32",
            "model_sha256": artifact.manifest.files["model.onnx"].sha256,
            "engine_sha256": hashlib.sha256(data).hexdigest(),
            **wrong,
        }
        (artifact.path / "engines" / f"{key}.json").write_text(json.dumps(record))
        register_files(artifact, [f"engines/{key}.engine", f"engines/{key}.json"])
        write_record(folder, "onnxruntime", "orin-nano", load_bundle(folder).facts)

    return change


def cache(name: str, facts: dict | None = None, old: bool = False) -> Change:
    def change(folder):
        place = folder / "artifact/caches/onnxruntime-tensorrt"
        place.mkdir(parents=True)
        (place / name).write_bytes(b"cache")
        if facts is not None:
            (place / "card.json").write_text(json.dumps({"facts": facts, "files": {}}))
        if old:
            os.utime(place / name, (1, 1))
        write_record(folder, "onnxruntime", "orin-nano", load_bundle(folder).facts)

    return change


def link(file: str) -> Change:
    def change(folder):
        path = folder / file
        path.rename(folder.parent / "elsewhere")
        path.symlink_to(folder.parent / "elsewhere")

    return change


def truncate(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-50])


def flip(file: str) -> Change:
    def change(folder):
        data = bytearray((folder / file).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / file).write_bytes(bytes(data))

    return change


def swap(one: str, other: str) -> Change:
    def change(folder):
        first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
        (folder / one).write_bytes(second)
        (folder / other).write_bytes(first)

    return change


def wrong_normalisation(folder: Path) -> None:
    from gft_edge.export.deploy.normalize_graph import normalize_graph

    onnx.save(
        normalize_graph(PreprocessSpec(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3)),
        folder / "models/gft_normalize/1/model.onnx",
    )


def stale_deepstream_engine(folder: Path) -> None:
    path = folder / "deepstream/model.onnx_b8_gpu0_fp32.engine"
    path.write_bytes(b"engine")
    os.utime(path, (1, 1))


def nan_weights(folder: Path) -> None:
    model = onnx.load(folder / GRAPH)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.raw_data = np.full(12, np.nan, np.float32).tobytes()
    onnx.save(model, folder / GRAPH)


FAULTS = (
    Fault("labels one per line", "deepstream", write(LABELS, "ant\nbee\ncat\ndog\n"), "DS011", "labelfile-path"),
    Fault("labels in another order", "deepstream", write(LABELS, "bee;ant;cat;dog\n"), "DS013", "labelfile-path"),
    Fault("a label too few", "deepstream", write(LABELS, "ant;bee;cat\n"), "DS012", "labelfile-path"),
    Fault(
        "a label more, named background",
        "deepstream",
        write(LABELS, "background;ant;bee;cat;dog\n"),
        "DS012",
        "labelfile-path",
    ),
    Fault("a label that holds ';'", "deepstream", write(LABELS, "ant;bee;c;at;dog\n"), "DS012", "labelfile-path"),
    Fault("labels written on Windows", "deepstream", write(LABELS, "ant;bee;cat;dog\r\n"), "DS015", "labelfile-path"),
    Fault(
        "labels of maps in another order",
        "deepstream-maps",
        write(LABELS, "ant;bee;dog;cat\n"),
        "DS013",
        "labelfile-path",
    ),
    Fault("labels file of another name", "deepstream", edit(DS, "labels.txt", "names.txt"), "DS004", "labelfile-path"),
    Fault(
        "scale of ImageNet on a graph that normalises",
        "deepstream",
        edit(DS, "factor=1", "factor=0.01735"),
        "DS030",
        "net-scale-factor",
    ),
    Fault(
        "scale 1/255 on a graph that normalises",
        "deepstream",
        edit(DS, "factor=1", "factor=0.0039215697"),
        "DS030",
        "net-scale-factor",
    ),
    Fault(
        "means subtracted twice",
        "deepstream",
        edit(DS, "offsets=0;0;0", "offsets=123.675;116.28;103.53"),
        "DS032",
        "offsets",
    ),
    Fault("colours reversed", "deepstream", edit(DS, "format=0", "format=1"), "DS034", "model-color-format"),
    Fault("grey input", "deepstream", edit(DS, "format=0", "format=2"), "DS034", "model-color-format"),
    Fault(
        "letter box in place of stretch", "deepstream", edit(DS, "ratio=0", "ratio=1"), "DS038", "maintain-aspect-ratio"
    ),
    Fault(
        "padding without letter box",
        "deepstream",
        edit(DS, "ratio=0", "ratio=0\nsymmetric-padding=1"),
        "DS040",
        "symmetric-padding",
    ),
    Fault("nearest pixel", "deepstream", edit(DS, "filter=1", "filter=0"), "DS041", "scaling-filter"),
    Fault("another input size", "deepstream", edit(DS, "3;32;32", "3;224;224"), "DS035", "infer-dims"),
    Fault("NHWC order", "deepstream", edit(DS, "order=0", "order=1"), "DS036", "network-input-order"),
    Fault("maps read as attributes", "deepstream-maps", edit(DS, "type=100", "type=1"), "DS021", "network-type"),
    Fault("read as a detector", "deepstream", edit(DS, "type=1", "type=0"), "DS020", "network-type"),
    Fault("maps that reach nobody", "deepstream-maps", edit(DS, "meta=1", "meta=0"), "DS026", "output-tensor-meta"),
    Fault("logits as probabilities", "deepstream", replace_graph(GRAPH, probabilities=False), "DS024", "network-type"),
    Fault(
        "threshold above every probability",
        "deepstream",
        edit(DS, "threshold=0", "threshold=1.5"),
        "DS025",
        "classifier-threshold",
    ),
    Fault(
        "batch beyond the artefact's", "deepstream", edit(DS, "batch-size=8", "batch-size=32"), "DS052", "batch-size"
    ),
    Fault(
        "engine of another batch", "deepstream", edit(DS, "batch-size=8", "batch-size=4"), "DS053", "model-engine-file"
    ),
    Fault(
        "engine of another precision",
        "deepstream",
        edit(DS, "fp32.engine", "fp16.engine"),
        "DS053",
        "model-engine-file",
    ),
    Fault("INT8 of a graph without ranges", "deepstream", edit(DS, "mode=0", "mode=1"), "DS050", "network-mode"),
    Fault(
        "FP32 of a quantized graph",
        "deepstream-int8",
        edit(DS, "network-mode=1", "network-mode=0"),
        "DS050",
        "network-mode",
    ),
    Fault("FP16 of an FP32 artefact", "deepstream", edit(DS, "mode=0", "mode=2"), "DS051", "network-mode"),
    Fault("engine that is older than its graph", "deepstream", stale_deepstream_engine, "DS056", "model-engine-file"),
    Fault(
        "misspelt key",
        "deepstream",
        edit(DS, "maintain-aspect-ratio", "maintain-apsect-ratio"),
        "DS002",
        "maintain-apsect-ratio",
    ),
    Fault(
        "secondary on its own objects",
        "deepstream-secondary",
        edit(DS2, "gie-id=1", "gie-id=2"),
        "DS060",
        "operate-on-gie-id",
    ),
    Fault(
        "secondary that does not wait",
        "deepstream-secondary",
        edit(DS2, "async-mode=0", "async-mode=1"),
        "DS063",
        "classifier-async-mode",
    ),
    Fault("another graph, recorded", "deepstream", nan_weights, "BU005", "model.onnx"),
    Fault(
        "another input in build_engine.sh",
        "deepstream",
        edit("deepstream/build_engine.sh", "minShapes=pixels", "minShapes=image"),
        "BU020",
        "--minShapes",
    ),
    Fault(
        "FP16 in build_engine.sh",
        "deepstream",
        edit("deepstream/build_engine.sh", "--skip", "--fp16 --skip"),
        "BU021",
        "--fp16",
    ),
    Fault("name of another model", "triton", edit(TR, 'name: "gft_12-6"', 'name: "gft"'), "TR001", "name"),
    Fault("backend of another file", "triton", edit(TR, '"onnxruntime"', '"tensorrt"'), "TR004", "backend"),
    Fault(
        "version that does not exist",
        "triton",
        edit(TR, "latest {\n    num_versions: 1", "specific {\n    versions: 3"),
        "TR003",
        "version_policy",
    ),
    Fault(
        "batch beyond the graph's",
        "triton",
        edit(TR, "max_batch_size: 8", "max_batch_size: 64"),
        "TR005",
        "max_batch_size",
    ),
    Fault(
        "batch on a static graph",
        "triton-static",
        edit(TR, "backend", "max_batch_size: 8\nbackend"),
        "TR005",
        "max_batch_size",
    ),
    Fault(
        "batching without batches",
        "triton",
        edit(TR, "max_batch_size: 8", "max_batch_size: 1"),
        "TR007",
        "dynamic_batching",
    ),
    Fault("output of another name", "triton", edit(TR, 'name: "logits"', 'name: "logit"'), "TR010", "output[0].name"),
    Fault("type of the input", "triton", edit(TR, "TYPE_FP32", "TYPE_FP16"), "TR012", "input[0].data_type"),
    Fault(
        "axes in another order",
        "triton",
        edit(TR, "dims: 3\n  dims: 32\n  dims: 32", "dims: 32\n  dims: 32\n  dims: 3"),
        "TR013",
        "input[0].dims",
    ),
    Fault("batch axis in dims", "triton", edit(TR, "dims: 4", "dims: -1\n  dims: 4"), "TR013", "output[0].dims"),
    Fault(
        "labels that are missing", "triton", remove("models/gft_12-6/labels.txt"), "TR015", "output[0].label_filename"
    ),
    Fault(
        "labels in DeepStream's form",
        "triton",
        write("models/gft_12-6/labels.txt", "ant;bee;cat;dog\n"),
        "TR016",
        "output[0].label_filename",
    ),
    Fault(
        "labels in another order",
        "triton",
        write("models/gft_12-6/labels.txt", "bee\nant\ncat\ndog\n"),
        "TR017",
        "output[0].label_filename",
    ),
    Fault(
        "warm-up of another shape",
        "triton",
        edit(TR, "dims: 32\n      dims: 32\n      zero", "dims: 64\n      dims: 64\n      zero"),
        "TR020",
        "model_warmup[0].inputs",
    ),
    Fault(
        "step that is no model",
        "triton",
        edit(ENSEMBLE, 'model_name: "gft_12-6"', 'model_name: "gft_13-6"'),
        "TR031",
        "model_name",
    ),
    Fault(
        "map that leads nowhere",
        "triton",
        edit(
            ENSEMBLE,
            'key: "image"\n      value: "normalized"\n    }\n    output_map {\n      key: "logits"',
            'key: "image"\n      value: "normalised"\n    }\n    output_map {\n      key: "logits"',
        ),
        "TR033",
        "input_map",
    ),
    Fault("other preprocessing id", "triton", edit(TR, SPEC.id, "0" * 12), "TR040", "gft_edge_preprocess"),
    Fault("checkpoint of another artefact", "triton", edit(TR, "0" * 64, "1" * 64), "TR040", "gft_edge_checkpoint"),
    Fault("normalisation of another model", "triton", wrong_normalisation, "TR041", "model.onnx"),
    Fault(
        "graph of another seed",
        "triton",
        replace_graph("models/gft_12-6/1/model.onnx", pixels=False, probabilities=False, seed=1),
        "BU005",
        "model.onnx",
    ),
    Fault("engine of another graph", "onnxruntime", engine(model_sha256="f" * 64), "BU010", "model_sha256"),
    Fault("engine of another board", "onnxruntime", engine("agx-orin"), "BU011", "device"),
    Fault("engine of another precision", "onnxruntime", engine(precision="fp16"), "BU012", "precision"),
    Fault("engine of another batch", "onnxruntime", engine(batch=[1, 16, 16]), "BU012", "batch"),
    Fault("engine exchanged under its record", "onnxruntime", engine(engine_sha256="e" * 64), "BU010", "engine_sha256"),
    Fault(
        "engine cache older than the graph",
        "onnxruntime",
        cache("graph_1_sm87.engine", old=True),
        "BU013",
        "graph_1_sm87.engine",
    ),
    Fault(
        "engine cache of another graph",
        "onnxruntime",
        cache("graph_1_sm87.engine", {"model_sha256": "f" * 64}),
        "BU013",
        "model_sha256",
    ),
    Fault("engine cache of another GPU", "onnxruntime", cache("graph_1_sm90.engine"), "BU014", "graph_1_sm90.engine"),
    Fault(
        "profile of another input",
        "onnxruntime",
        edit("providers.json", "image:8x3x32x32", "pixels:8x3x32x32"),
        "BU024",
        "nv_profile_max_shapes",
    ),
    Fault(
        "FP16 of the provider",
        "onnxruntime",
        edit("providers.json", '"trt_engine_cache_enable"', '"trt_fp16_enable": "1", "trt_engine_cache_enable"'),
        "BU024",
        "trt_fp16_enable",
    ),
    Fault(
        "misspelt option",
        "onnxruntime",
        edit("providers.json", "trt_timing_cache_enable", "trt_timing_cache_enabled"),
        "BU023",
        "trt_timing_cache_enabled",
    ),
    Fault(
        "cache outside the bundle",
        "onnxruntime",
        edit("providers.json", "artifact/caches/onnxruntime-tensorrt", "/tmp/cache"),
        "BU025",
        "trt_engine_cache_path",
    ),
    Fault("labels in another order", "jetson", write("labels.txt", "bee\nant\ncat\ndog\n"), "BU004", "labels.txt"),
    Fault(
        "shape of another batch in build.sh",
        "jetson",
        edit("build.sh", "image:8x", "image:64x"),
        "BU020",
        "--optShapes",
    ),
    Fault("plan for another board", "jetson", edit("plan.json", '"target": "', '"target": "not-'), "BU022", "target"),
    Fault(
        "plan of another precision",
        "jetson",
        edit("plan.json", '"precision": "fp32"', '"precision": "int8"'),
        "BU022",
        "precision",
    ),
    Fault("truncated graph", "deepstream", truncate(GRAPH), REFUSED, "deepstream/model.onnx"),
    Fault(
        "one bit of the artefact's graph",
        "deepstream",
        flip("artifact/model.onnx"),
        REFUSED,
        "model.onnx",
        recorded=False,
    ),
    Fault("one bit of the configuration", "deepstream", flip(DS), REFUSED, DS, recorded=False),
    Fault("one bit of the record", "deepstream", flip("bundle.json"), REFUSED, "bundle.json", recorded=False),
    Fault("one bit of the golden images", "triton", flip("artifact/golden.npz"), REFUSED, "golden.npz", recorded=False),
    Fault(
        "files exchanged",
        "triton",
        swap("models/gft_12-6/labels.txt", "README.md"),
        REFUSED,
        "README.md",
        recorded=False,
    ),
    Fault("a link in place of the labels", "deepstream", link(LABELS), REFUSED, LABELS, recorded=False),
    Fault(
        "a file that is in no record",
        "triton",
        write("models/gft_12-6/1/model.plan", "engine"),
        REFUSED,
        "model.plan",
        recorded=False,
    ),
    Fault("a file that is missing", "triton", remove("client.py"), REFUSED, "client.py", recorded=False),
    Fault(
        "artefact of other preprocessing",
        "onnxruntime",
        another_artifact(preprocess=PreprocessSpec(32, 32, "crop", 0.9)),
        REFUSED,
        "artefact",
        recorded=False,
    ),
    Fault(
        "artefact of other labels",
        "onnxruntime",
        another_artifact(labels=("a", "b", "c", "d")),
        REFUSED,
        "artefact",
        recorded=False,
    ),
)


def judge(fault: Fault, folder: Path) -> tuple[str, list[tuple[str, str, str]]]:
    """Copies a clean bundle to a folder and changes it; returns the refusal, and rule, key and message of every finding."""
    bundle = folder / "bundle"
    shutil.copytree(clean_bundle(fault.bundle), bundle)
    fault.change(bundle)
    if fault.recorded:
        rerecord(bundle)
    refusal = ""
    try:
        load_bundle(bundle).check()
    except GFTEdgeError as error:
        refusal = str(error)
    try:
        report = lint_deployment(bundle)
    except GFTEdgeError as error:
        return refusal or str(error), []
    return refusal, [(found.rule, found.key, found.message) for found in report.findings]


def page() -> str:
    """Returns docs/deployment_faults.md."""
    rows = [
        f"| {fault.name} | {fault.bundle} | {'refused when the bundle is read' if fault.found == REFUSED else f'`{fault.found}`'} "
        f"| `{fault.place}` |"
        for fault in FAULTS
    ]
    refused = sum(fault.found == REFUSED for fault in FAULTS)
    return (
        f"""# Seeded faults of deployments

{len(FAULTS)} faults, each one change of a clean bundle: {refused} are refused when the bundle is read,
{len(FAULTS) - refused} are named by `gft-edge lint BUNDLE`, whose rules are in [lint_deployment.md](lint_deployment.md).
The {len(CLEAN)} clean bundles ({", ".join(CLEAN)})
have no finding. Everything runs on a CPU; the graphs are small stand-ins with the interface of an export. A fault that
lint names is in a bundle that was recorded again, so that its hashes are right.

The list is `FAULTS` in `tests/export/lint_deployment/faults.py`; `test_deployment_faults.py` beside it tries every fault
and compares this page. `GFT_EDGE_WRITE_PAGES=1` writes it.

| fault | bundle | found by | names |
|---|---|---|---|
"""
        + "\n".join(rows)
        + "\n"
    )
