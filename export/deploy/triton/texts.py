"""Texts of a Triton bundle: its README, and the one at the place of an engine."""

from __future__ import annotations

from collections.abc import Mapping

from gft_edge.manifest import DeploymentManifest

_SERVER = "nvcr.io/nvidia/tritonserver:YY.MM-py3"


def readme(
    manifest: DeploymentManifest,
    first: str,
    models: Mapping[str, Mapping[str, str]],
    default: str,
    unsupported: str | None,
) -> str:
    """Returns the README of the bundle.

    Args:
        manifest: of the artefact.
        first: folder of the model repository that the server is started on.
        models: names by budget, as in the record.
        default: model that the client names by default.
        unsupported: type that the onnxruntime backend does not compute, so that it has no repository; None if it has one.
    """
    rows = "\n".join(f"| {budget} | {names['model']} | {names['pixels']} |" for budget, names in models.items())
    spec = manifest.preprocess
    size = f"(images, {spec.height}, {spec.width}, 3)"
    gpu = "" if unsupported is None else "--gpus all "
    no_onnxruntime = (
        ""
        if unsupported is None
        else f"\nThe onnxruntime backend does not compute {unsupported}: it has no models here.\n"
    )
    return f"""# Model repositories for Triton Inference Server

| budget | model | takes pixels |
|---|---|---|
{rows}

Pixels are {size} uint8 RGB, resized as the artefact's preprocessing says.
{no_onnxruntime}
Start the server, YY.MM being its release (add `--gpus all` for a GPU):

    docker run --rm {gpu}-p 8000-8002:8000-8002 -v "$PWD/{first}:/models:ro" {_SERVER} \\
        tritonserver --model-repository=/models --disable-auto-complete-config

Ask it:

    pip install 'tritonclient[grpc]' pillow
    python client.py photo.jpg --model {default}

`models-tensorrt/` has the same models for the tensorrt backend. Build its engines on the machine that serves, with the TensorRT of
the server's container: the README in each model's folder `1/` has the commands. The server does not start on it before.

Every file is hashed in bundle.json; `gft-edge selftest .` checks them.
"""


def engine_readme(manifest: DeploymentManifest, artifact: str, member: str, place: str) -> str:
    """Returns the text at the place of an engine.

    Args:
        manifest: of the budget.
        artifact: folder of the artefact in the bundle.
        member: id of a further budget of a family, empty for the first.
        place: of the engine, relative to the bundle.
    """
    address = f"{artifact}@{member}" if member else artifact
    return f"""The engine model.plan of budget {manifest.budget.id} goes here. It runs on the GPU model and the TensorRT version
that built it alone, so build it on the machine that serves, with the TensorRT of the server's container. From the bundle's folder:

    gft-edge build {address} --target this-gpu
    python -m gft_edge.export.deploy.place_engine . --engine KEY

The first command prints the KEY. The second checks the engine's hash, graph, TensorRT, compute capability and device, then copies
it to {place}.
"""
