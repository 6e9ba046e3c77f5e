"""Target ``onnxruntime``: the artefact's graph with options of the execution providers; and context models.

A context model is an ONNX file of one node, ``com.microsoft.EPContext``, that makes ONNX Runtime load an engine and build none.
Attributes: https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html; values as
``onnxruntime/core/providers/tensorrt/onnx_ctx_model_helper.cc`` and ``nv_tensorrt_rtx/onnx_ctx_model_helper.cc`` of
microsoft/onnxruntime write and read them. That code only warns when the compute capability differs, so call :func:`check_context`
before a session is opened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from onnx import helper

from gft_edge.bundle import ARTIFACT
from gft_edge.constants import GRAPH_IR_VERSION, OPSET
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.export.graph.dtypes import TYPES
from gft_edge.export.graph.loading import load_graph
from gft_edge.files import replacing, require_writable, sha256
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest, TensorInfo, register_files
from gft_edge.runtime.backends import providers
from gft_edge.runtime.backends.caches import CACHES, Cache
from gft_edge.runtime.backends.engine_files import EngineHost, check_engine, engine_files
from gft_edge.runtime.backends.providers import CUDA, RTX, TENSORRT

OPTIONS = "providers.json"
OP, DOMAIN = "EPContext", "com.microsoft"
PROVIDERS = {"tensorrt": TENSORRT.name, "tensorrt_rtx": RTX.name}
"""Execution provider that loads an engine, by the module that built it."""
KEY, ENGINE_SHA256, MODEL_SHA256 = "gft_edge_engine", "gft_edge_engine_sha256", "gft_edge_model_sha256"
"""Metadata of a context model."""
MAX_EMBEDDED = 1 << 30
"""Larger engines are not put into the ONNX file: a protobuf holds 2 GB."""
_ELEMENTS = {name: element for _, element, name in TYPES if name}


def check(artifact: Artifact, options: BundleOptions) -> None:
    """Accepts every artefact: those that ONNX Runtime computes on no CPU are for its TensorRT providers."""


def write_files(folder: Path, artifact: Artifact, options: BundleOptions) -> dict[str, Any]:
    """Writes the options of the execution providers and the README.

    Args:
        folder: of the bundle.
        artifact: that is bundled.
        options: none is used.

    Returns:
        facts of the record: graph of each budget.
    """
    manifest = artifact.manifest
    models = {manifest.budget.id: f"{ARTIFACT}/{MODEL}"}
    models |= {name: f"{ARTIFACT}/{member.model}" for name, member in manifest.family.items()}
    content = {"models": models, "providers": provider_options(manifest)}
    (folder / OPTIONS).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(manifest), encoding="utf-8")
    return {"models": models}


def provider_options(manifest: DeploymentManifest) -> dict[str, dict[str, str]]:
    """Returns options by execution provider; paths are relative to the bundle, where the program has to run.

    They are those of the backends, without the device's number: :func:`gft_edge.runtime.backends.providers.provider_options`.
    """
    found: dict[str, dict[str, str]] = {}
    for provider in (TENSORRT, RTX, CUDA):
        cache = Cache(Path(ARTIFACT) / CACHES / provider.backend, {}, "new")
        options = providers.provider_options(provider, manifest, {}, cache)
        found[provider.name] = {name: value for name, value in options.items() if name != "device_id"}
    return {**found, "CPUExecutionProvider": {}}


def context_name(key: str) -> str:
    """Returns the name of an engine's context model inside an artefact."""
    return f"engines/{key}_ctx.onnx"


def write_context(artifact: Artifact, key: str, host: EngineHost, out: Path | None = None, embed: bool = False) -> Path:
    """Writes the context model of an engine.

    Args:
        artifact: with the engine in its manifest; for the engine of a member of a family, that member.
        key: of the engine.
        host: that will load it.
        out: file to write; the engine is copied beside it. By default it lies beside the engine and enters the manifest.
        embed: put the engine into the file instead.

    Returns:
        the file written.

    Raises:
        ArtifactError: the engine is not the artefact's, was changed, or is not for this host.
        ConfigError: ``out`` cannot be written, or the engine is too large to be embedded.
    """
    engine, record = check_engine(artifact, key, host)
    path = out or artifact.path / context_name(key)
    require_writable(path)
    data = engine.read_bytes() if embed else None
    if data is not None and len(data) > MAX_EMBEDDED:
        raise ConfigError(
            f"engine {key}: has {len(data) / 1e9:.1f} GB, an ONNX file holds less than 2 GB; do not embed it"
        )
    beside = path.with_name(engine.name)
    if not embed and beside.resolve() != engine.resolve():
        require_writable(beside)
        with replacing(beside) as temporary:
            shutil.copyfile(engine, temporary)
    model = _context_model(artifact.manifest, record, host, data if data is not None else engine.name.encode(), embed)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    if out is None:
        register_files(artifact, [context_name(key)])
    return path


def _context_model(
    manifest: DeploymentManifest, record: dict[str, Any], host: EngineHost, content: bytes, embed: bool
) -> onnx.ModelProto:
    node = helper.make_node(
        OP,
        [tensor.name for tensor in manifest.inputs],
        [tensor.name for tensor in manifest.outputs],
        name=OP,
        domain=DOMAIN,
        main_context=1,  # the node has its own engine and refers to no other node's
        embed_mode=int(embed),
        ep_cache_context=content,
        ep_sdk_version=str(record["version"]),
        hardware_architecture=architecture(host.compute_capability),
        onnx_model_filename=MODEL,
        partition_name=OP,
        source=PROVIDERS[host.module],
    )
    values = [[_value(tensor) for tensor in tensors] for tensors in (manifest.inputs, manifest.outputs)]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph([node], "context", *values),
        producer_name="gft-edge",
        ir_version=GRAPH_IR_VERSION,
        opset_imports=opsets,
    )
    helper.set_model_props(
        model, {KEY: record["key"], ENGINE_SHA256: record["engine_sha256"], MODEL_SHA256: record["model_sha256"]}
    )
    return model


def architecture(compute_capability: str) -> str:
    """Returns ``"87"`` for ``"8.7"``, as both providers write the compute capability (``major * 10 + minor``)."""
    return compute_capability.replace(".", "")


def check_context(path: Path, artifact: Artifact, host: EngineHost) -> str:
    """Checks a context model before ONNX Runtime opens it, which executes the engine.

    Args:
        path: of the context model.
        artifact: that its engine was built from; for a member of a family, that member.
        host: that will load it.

    Returns:
        name of the execution provider that loads it.

    Raises:
        ArtifactError: no context model of this package, another engine than the artefact's, made from another graph, or for
            another TensorRT, compute capability or device; with the command that makes it again.
    """

    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(
            f"context model {path}: {reason}; not loaded. Write it again: "
            f"python -m gft_edge.export.deploy.place_engine BUNDLE --engine {key or 'KEY'}"
        )

    key = ""
    model = load_graph(path)
    node = model.graph.node[0]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if (
        len(model.graph.node) != 1
        or (node.domain, node.op_type) != (DOMAIN, OP)
        or model.graph.initializer
        or model.functions
    ):
        raise refuse(f"is no graph of one {DOMAIN}.{OP} node")
    if not {KEY, ENGINE_SHA256, MODEL_SHA256} <= facts.keys():
        raise refuse("does not say which engine it is of, so it was not written by this package")
    key = facts[KEY]
    try:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        embedded, content = attributes["embed_mode"], attributes["ep_cache_context"]
        built_for, source = attributes["hardware_architecture"].decode(), attributes["source"].decode()
    except (KeyError, AttributeError, ValueError) as error:
        raise refuse(f"its {OP} node is incomplete or malformed ({error!r})") from None
    engine, _ = check_engine(artifact, key, host)
    own = artifact.manifest.files[engine_files(key)[0]].sha256
    if facts[ENGINE_SHA256] != own or facts[MODEL_SHA256] != artifact.manifest.files[MODEL].sha256:
        raise refuse(f"was written for another engine or graph than {engine.name} of {artifact.path}")
    if _hash_of(content, embedded, path) != own:
        raise refuse(f"loads another engine than {engine.name} of {artifact.path} (its hash differs)")
    if built_for != architecture(host.compute_capability) or source != PROVIDERS[host.module]:
        raise refuse(
            f"is for {source or 'no provider'} on compute capability {built_for}, this is {PROVIDERS[host.module]} on "
            f"{architecture(host.compute_capability)}"
        )
    if _interface(model) != _wanted(artifact.manifest) or _names(node) != _names_of(artifact.manifest):
        raise refuse("its inputs and outputs are not those of the artefact")
    return source


def _hash_of(content: bytes, embedded: int, path: Path) -> str | None:
    """Returns the hash of the engine that a node holds or names; None for a name that leads elsewhere or to no file."""
    if embedded:
        return hashlib.sha256(content).hexdigest()
    try:
        name = content.decode()
    except ValueError:
        return None
    file = path.parent / name
    if PurePosixPath(name).is_absolute() or ".." in name or "\0" in name or not file.is_file():
        return None
    return sha256(file)


def _value(tensor: TensorInfo) -> onnx.ValueInfoProto:
    if tensor.dtype not in _ELEMENTS:
        raise ArtifactError(f"manifest: {tensor.name} is {tensor.dtype}, which ONNX has no type for")
    return helper.make_tensor_value_info(tensor.name, _ELEMENTS[tensor.dtype], tensor.shape)


def _interface(model: onnx.ModelProto) -> list[bytes]:
    return [value.SerializeToString(deterministic=True) for value in (*model.graph.input, *model.graph.output)]


def _wanted(manifest: DeploymentManifest) -> list[bytes]:
    return [_value(tensor).SerializeToString(deterministic=True) for tensor in (*manifest.inputs, *manifest.outputs)]


def _names(node: onnx.NodeProto) -> tuple[list[str], list[str]]:
    return list(node.input), list(node.output)


def _names_of(manifest: DeploymentManifest) -> tuple[list[str], list[str]]:
    return [tensor.name for tensor in manifest.inputs], [tensor.name for tensor in manifest.outputs]


def _readme(manifest: DeploymentManifest) -> str:
    return f"""# Bundle for ONNX Runtime

`{ARTIFACT}/{MODEL}` is the graph; `{OPTIONS}` has the options of each execution provider. Run from this folder: the paths of
caches are relative to it, and below `{ARTIFACT}/caches/`, where files may be added.

    import json, onnxruntime
    options = json.load(open("{OPTIONS}"))
    provider = "TensorrtExecutionProvider"
    session = onnxruntime.InferenceSession("{ARTIFACT}/{MODEL}", providers=[(provider, options["providers"][provider])])

The session's `get_providers()` says which providers were really taken. With gft-edge, `gft-edge predict . IMAGE` does the same.

An engine built on the device starts at once, as a context model:

    gft-edge build {ARTIFACT} --target this-gpu
    python -m gft_edge.export.deploy.place_engine . --engine KEY

The second command checks the engine and writes `{ARTIFACT}/engines/KEY_ctx.onnx`. Opening that file executes the engine; gft_edge's
`check_context` refuses one that was changed, or was built elsewhere.
"""
