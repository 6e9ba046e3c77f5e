"""Enters engines in an artefact's manifest: those of :mod:`gft_edge.export.tensorrt.build`, and those that trtexec built here.

Needs NumPy alone, as a board has it.
"""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.tensorrt.build_plan import BuildPlan, build_command, engine_key, for_version
from gft_edge.files import read_json, replacing, require_writable, write_json
from gft_edge.hardware.devices import DEVICES
from gft_edge.hardware.this_device import device_here, same_module
from gft_edge.manifest import MANIFEST, MODEL, Artifact, FileInfo, register_files
from gft_edge.runtime.backends.engine_files import engine_files
from gft_edge.storage.filekinds import FileKind, kind_of
from gft_edge.storage.locks import locked


def artifact_engine_key(artifact: Artifact, plan: BuildPlan, version: str) -> str:
    """Returns the key of an engine of an artefact, or of a member of its family."""
    key = engine_key(plan, version)
    return f"{key}_{artifact.member}" if artifact.member else key


def record_engine(
    artifact: Artifact, plan: BuildPlan, key: str, *, layers: int | None, evidence: str, builder: str = "python"
) -> dict[str, Any]:
    """Writes the record of an engine that is in its place in the artefact, and enters both in the manifest.

    Args:
        artifact: whose model.onnx was compiled.
        plan: of the build, with the version that built.
        key: of the engine.
        layers: of the compiled network, None if unknown.
        evidence: what is known to work.
        builder: ``"python"`` or ``"trtexec"``.

    Returns:
        the record in KEY.json.
    """
    engine, record_file = engine_files(key)
    written = FileInfo.of(artifact.path / engine)
    model_sha256 = artifact.manifest.files[MODEL].sha256
    record = engine_record(plan, key, model_sha256, written, layers=layers, evidence=evidence, builder=builder)
    write_json(artifact.path / record_file, record)
    register_files(artifact, [engine, record_file])
    return record


def engine_record(
    plan: BuildPlan,
    key: str,
    model_sha256: str,
    written: FileInfo,
    *,
    layers: int | None,
    evidence: str,
    builder: str = "python",
) -> dict[str, Any]:
    """Returns the record of an engine, the content of KEY.json.

    Args:
        plan, key, layers, evidence, builder: as for :func:`record_engine`.
        model_sha256: of the graph.
        written: hash and size of the engine.
    """
    return {
        "key": key,
        "module": plan.module,
        "version": plan.tensorrt,
        "device": None if plan.rtx else plan.target,
        "compute_capabilities": list(plan.compute_capabilities),
        "batch": list(plan.batch),
        "precision": plan.precision,
        "plan": plan.to_json(),
        "model_sha256": model_sha256,
        "engine_sha256": written.sha256,
        "engine_bytes": written.size,
        "layers": layers,
        "builder": builder,
        "evidence": evidence,
    }


def read_plan(path: Path) -> BuildPlan:
    """Reads a plan that ``build --plan --json`` or a bundle wrote.

    Raises:
        ArtifactError: missing, or no plan.
    """
    data = read_json(path, "build plan")
    try:
        return BuildPlan.from_json(data["plan"] if isinstance(data.get("plan"), dict) else data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def register_engine(
    artifact: Artifact, engine: Path, plan: BuildPlan, version: str, root: Path = Path("/")
) -> dict[str, Any]:
    """Enters an engine that trtexec built on this machine, by the plan's command, in the artefact's manifest.

    The engine is neither loaded nor run: a file that the user names is trusted as far as the user's own build.

    Args:
        artifact: whose model.onnx trtexec read.
        engine: file that trtexec wrote; copied to its place in the artefact if it is elsewhere.
        plan: whose command ran.
        version: of TensorRT, as trtexec printed it, for example ``"10.3.0"``.
        root: of the files that say which machine this is.

    Returns:
        the record in KEY.json.

    Raises:
        ConfigError: no file of an engine, a plan without a trtexec command, another machine or TensorRT than the plan's, or the
            artefact cannot be written to.
        ArtifactError: the graph was changed, or is not the plan's.
    """
    where = f"engine {engine}"
    try:
        kind = kind_of(engine)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}; build it with the plan's command") from None
    if kind not in (FileKind.ENGINE, FileKind.UNKNOWN):
        raise ConfigError(f"{where}: is {kind}, no engine; name the file of trtexec's --saveEngine")
    if plan.rtx or build_command(plan, "", "") is None:
        raise ConfigError(f"{where}: trtexec does not build by this plan; use gft-edge build --target")
    plan = _plan_of_here(plan, where, root)
    plan = for_version(plan, _whole_version(version, where))
    manifest = artifact.manifest
    if (manifest.precision, manifest.opset) != (plan.precision, plan.opset):
        raise ArtifactError(
            f"{where}: its plan is of a graph in {plan.precision} of opset {plan.opset}, {artifact.address} has "
            f"{manifest.precision} of opset {manifest.opset}: the plan is of another artefact"
        )
    artifact.file(MODEL)
    key = artifact_engine_key(artifact, plan, str(plan.tensorrt))
    place = artifact.path / engine_files(key)[0]
    for name in (*engine_files(key), MANIFEST):
        require_writable(artifact.path / name)
    with locked(artifact.path):
        if not place.is_file() or not engine.samefile(place):
            with replacing(place) as temporary:
                shutil.copyfile(engine, temporary)
        evidence = "built by trtexec; not yet run"
        return record_engine(artifact, plan, key, layers=None, evidence=evidence, builder="trtexec")


def _plan_of_here(plan: BuildPlan, where: str, root: Path) -> BuildPlan:
    """Returns the plan for this machine; refuses another Jetson module or compute capability than the plan's."""
    here = device_here(root)
    wanted = DEVICES.get(plan.target)
    if wanted is not None and wanted.is_jetson:
        if same_module(wanted, here.profile):
            return plan
    elif here.profile.compute_capability in plan.compute_capabilities and not here.profile.is_jetson:
        return replace(plan, target=here.profile.name)
    title = plan.target if wanted is None else wanted.title
    raise ConfigError(
        f"{where}: planned for {title}, and this is {here.profile.title} ({here.evidence}): engines do not move between GPU "
        f"models; plan and build for this one"
    )


def _whole_version(version: str, where: str) -> str:
    """Returns the version as Python's TensorRT spells it, which loads the engine later; as trtexec did, without it.

    Raises:
        ConfigError: the two differ.
    """
    installed = installed_tensorrt(parts=4)
    if installed is None:
        return version
    if installed.split(".")[:3] != version.split(".")[:3]:
        raise ConfigError(
            f"{where}: trtexec is of TensorRT {version}, Python imports {installed} and could not load the engine; install "
            "one of them alone"
        )
    return installed


def installed_tensorrt(parts: int = 3) -> str | None:
    """Returns the first numbers of the version of the installed TensorRT; None without one."""
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError):
        return None
    return ".".join(str(trt.__version__).split(".")[:parts])
