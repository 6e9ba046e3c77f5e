"""Puts an engine that was built on the device to where the bundle's runtime reads it.

python -m gft_edge.export.deploy.place_engine BUNDLE --engine KEY
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from gft_edge.bundle import Bundle, load_bundle
from gft_edge.errors import ConfigError, exit_code
from gft_edge.export.deploy.onnxruntime_context import write_context
from gft_edge.export.deploy.triton.bundle import PLAN, TENSORRT_REPOSITORY, VERSION, model_name
from gft_edge.files import replacing
from gft_edge.hardware.tensorrt_versions import RTX
from gft_edge.manifest import Artifact, load_artifact
from gft_edge.runtime.backends.engine import engine_host, load_module
from gft_edge.runtime.backends.engine_files import EngineHost, check_engine


def place_engine(bundle: Bundle, key: str, host: EngineHost) -> Path:
    """Checks an engine of the bundle's artefact and puts it to its place.

    Args:
        bundle: for Triton, which gets a copy as ``model.plan``, or for ONNX Runtime, which gets a context model.
        key: of the engine.
        host: that will load it.

    Returns:
        the file written.

    Raises:
        ArtifactError: the bundle was changed, or the engine is not the artefact's or not for this machine.
        ConfigError: a bundle of another target, or an engine of a flavour that the target does not load.
    """
    artifact = _member_of(bundle.check(), key)
    if bundle.target == "onnxruntime":
        return write_context(artifact, key, host)
    if bundle.target != "triton":
        raise ConfigError(
            f"bundle {bundle.path}: target {bundle.target} loads engines from the artefact; only triton and onnxruntime need this"
        )
    if host.module != "tensorrt":
        raise ConfigError(
            f"engine {key}: Triton's tensorrt backend loads no engines of {host.module}; build with TensorRT"
        )
    engine, _ = check_engine(artifact, key, host)
    place = bundle.path / TENSORRT_REPOSITORY / model_name(artifact.manifest.budget.id) / VERSION / PLAN
    with replacing(place) as temporary:
        shutil.copyfile(engine, temporary)
    return place


def _member_of(artifact: Artifact, key: str) -> Artifact:
    """Returns the member of a family that an engine was built of: the key of a member's engine ends in its budget."""
    member = next((name for name in artifact.manifest.family if key.endswith(f"_{name}")), "")
    return load_artifact(f"{artifact.path}@{member}") if member else artifact


def main(arguments: list[str] | None = None, host: Callable[[str], EngineHost] | None = None) -> int:
    """Places the engine named on the command line; ``host`` recognises this machine, for a module."""
    parser = argparse.ArgumentParser(
        description="Puts an engine built on this device to where the bundle's runtime reads it."
    )
    parser.add_argument("bundle", type=Path, help="bundle for triton or onnxruntime")
    parser.add_argument("--engine", required=True, metavar="KEY", help="key of an engine in the bundle's artefact")
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle)
    module = "tensorrt_rtx" if options.engine.startswith(RTX) else "tensorrt"
    found = (host or _host_here)(module)
    print(place_engine(bundle, options.engine, found))
    return 0


def _host_here(module: str) -> EngineHost:
    return engine_host(load_module(module))


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
