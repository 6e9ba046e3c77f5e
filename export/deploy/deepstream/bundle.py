"""Bundles for DeepStream: configuration of Gst-nvinfer, labels in its form, the graph, the engine's build script.

    deepstream/
      config_infer_primary.txt or config_infer_secondary.txt
      labels.txt         one line, labels separated by ``;``
      model.onnx         the artefact's graph
      build_engine.sh    builds the engine by trtexec, under the name that nvinfer looks for
      README.md

Keys are checked against NVIDIA's header gstnvinfer_property_parser.h. Not verified on hardware.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gft_edge.bundle import MADE_ON_DEVICE
from gft_edge.errors import ConfigError
from gft_edge.export.deploy.deepstream.nvinfer_config import PROPERTY, format_config
from gft_edge.export.deploy.deepstream.texts import MAX_BATCH, build_script, export_command, readme
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest
from gft_edge.storage.external_data import external_files

FOLDER = "deepstream"
LABELS = "labels.txt"
NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
"""Values of ``network-mode`` by precision; there is none for other formats."""
GIE_ID = {False: 1, True: 2}
"""``gie-unique-id`` as primary and as secondary element."""


def check(artifact: Artifact, options: BundleOptions) -> None:
    """Refuses an artefact whose graph or labels nvinfer cannot use as they are.

    Raises:
        ConfigError: every problem, and the export that gives a fitting artefact.
    """
    manifest = artifact.manifest
    problems = [*_interface_problems(manifest), *_engine_problems(manifest)]
    if problems:
        raise ConfigError(
            f"artefact {artifact.path}: nvinfer cannot use it: {'; '.join(problems)}; run: {export_command(manifest)}"
        )
    for label in manifest.labels:
        if found := next((mark for mark in ";\n\r" if mark in label), None):
            raise ConfigError(
                f"artefact {artifact.path}: label {label!r} contains {found!r}, at which nvinfer's parser divides labels; rename "
                "the class in the checkpoint's config.json and export again"
            )


def write_files(folder: Path, artifact: Artifact, options: BundleOptions) -> dict[str, Any]:
    """Writes the folder ``deepstream``; returns the facts of the bundle's record.

    Args:
        folder: of the bundle, with the artefact in it.
        artifact: that :func:`check` accepted.
        options: ``secondary`` chooses objects of a detector instead of whole frames.
    """
    manifest = artifact.manifest
    target = folder / FOLDER
    target.mkdir()
    model = artifact.file(MODEL)
    shutil.copyfile(model, target / MODEL)
    for name in sorted(external_files(model)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.file(name), target / name)
    config = config_name(options.secondary)
    batch = batch_size(manifest, options.secondary)
    engine = engine_name(manifest, batch)
    (target / LABELS).write_text(labels_text(manifest.labels), encoding="utf-8", newline="\n")
    (target / config).write_text(config_text(manifest, options.secondary), encoding="utf-8", newline="\n")
    (target / "build_engine.sh").write_text(build_script(manifest, batch, engine), encoding="utf-8", newline="\n")
    text = readme(manifest, config, engine, options.secondary)
    (target / "README.md").write_text(text, encoding="utf-8", newline="\n")
    return {"config": f"{FOLDER}/{config}", "batch_size": batch, MADE_ON_DEVICE: [f"{FOLDER}/{engine}"]}


def config_name(secondary: bool) -> str:
    """Returns the file name of the configuration."""
    return f"config_infer_{'secondary' if secondary else 'primary'}.txt"


def batch_size(manifest: DeploymentManifest, secondary: bool) -> int:
    """Returns ``batch-size``: the usual batch for frames, the largest one for the objects of a frame."""
    return manifest.batch[2 if secondary else 1]


def engine_name(manifest: DeploymentManifest, batch: int) -> str:
    """Returns the name that nvinfer gives to an engine and looks for: ``ONNX_bBATCH_gpu0_MODE.engine``."""
    return f"{MODEL}_b{batch}_gpu0_{manifest.precision}.engine"


def labels_text(labels: tuple[str, ...]) -> str:
    """Returns the labels file: one line for the one attribute."""
    return ";".join(labels) + "\n"


def config_text(manifest: DeploymentManifest, secondary: bool) -> str:
    """Returns the configuration of nvinfer; comments say what may be changed."""
    spec = manifest.preprocess
    batch = batch_size(manifest, secondary)
    maps = manifest.maps != "none"
    pairs: list[tuple[str, object]] = [
        ("gpu-id", 0),
        ("gie-unique-id", GIE_ID[secondary]),
        ("process-mode", 2 if secondary else 1),
        ("onnx-file", MODEL),
        ("#", "built by build_engine.sh; its name follows from batch-size and network-mode"),
        ("model-engine-file", engine_name(manifest, batch)),
        ("labelfile-path", LABELS),
        ("#", f"{'objects' if secondary else 'streams'} at a time, up to {manifest.batch[2]}"),
        ("batch-size", batch),
        ("network-mode", NETWORK_MODES[manifest.precision]),
        ("infer-dims", f"3;{spec.height};{spec.width}"),
        ("network-input-order", 0),
        ("#", "the graph takes RGB of 0 to 255 and normalises: leave these as they are"),
        ("net-scale-factor", 1),
        ("offsets", "0;0;0"),
        ("model-color-format", 0),
        (
            "#",
            "the frame is stretched"
            + ("; the centre crop of the training is not made, see README.md" * _crops(manifest)),
        ),
        ("maintain-aspect-ratio", 0),
        ("scaling-filter", 1),
    ]
    if maps:
        pairs += [
            (
                "#",
                "maps: nvinfer's parser would read them as attributes; the application reads the tensors, see README.md",
            ),
            ("network-type", 100),
            ("output-tensor-meta", 1),
        ]
    else:
        pairs += [
            ("network-type", 1),
            ("#", "probability that an answer must exceed; 0 gives every answer"),
            ("classifier-threshold", 0),
            ("classifier-async-mode", 0),
        ]
    if secondary:
        pairs += [
            ("#", "gie-unique-id of the detector; add operate-on-class-ids=0;2 for some of its classes"),
            ("operate-on-gie-id", GIE_ID[False]),
            ("input-object-min-width", 16),
            ("input-object-min-height", 16),
            ("#", "frames until a tracked object is classified again; 0 classifies it in each"),
            ("secondary-reinfer-interval", 0),
        ]
    heading = [
        f"{spec.height} x {spec.width}, {len(manifest.labels)} classes, budget {manifest.budget.id}, {manifest.precision}"
    ]
    return format_config([(PROPERTY, pairs)], heading)


def _crops(manifest: DeploymentManifest) -> bool:
    return manifest.preprocess.resize == "crop"


def _interface_problems(manifest: DeploymentManifest) -> list[str]:
    problems = []
    if manifest.input_kind == "uint8":
        problems.append("its input is uint8 (batch, H, W, 3), nvinfer fills float32 (batch, 3, H, W)")
    if manifest.input_kind == "float":
        problems.append(
            "its input is normalised by three deviations, nvinfer has one net-scale-factor for all channels"
        )
    if not manifest.gives_probabilities:
        problems.append(
            "it gives scores (logits), which classifier-threshold would be compared with as if they were probabilities"
        )
    return problems


def _engine_problems(manifest: DeploymentManifest) -> list[str]:
    problems = []
    low, _, high = manifest.batch
    if low > 1:
        problems.append(f"its smallest batch is {low}, nvinfer builds engines from 1 up")
    if high > MAX_BATCH:
        problems.append(f"its largest batch is {high}, nvinfer takes at most {MAX_BATCH}")
    for name in (manifest.precision, manifest.rest):
        if name not in NETWORK_MODES:
            problem = f"network-mode has no value for {name}, only for {', '.join(NETWORK_MODES)}"
            again = manifest.is_quantized and name == manifest.precision  # export keeps this type
            problems.append(f"{problem}; first quantize the checkpoint with --precision int8" if again else problem)
            break
    return problems
