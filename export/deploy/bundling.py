"""Makes a bundle: copies the artefact, lets the target write its files, hashes everything."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from gft_edge.bundle import ARTIFACT, Bundle, load_bundle, write_record
from gft_edge.errors import ConfigError
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.files import new_folder, require_free
from gft_edge.manifest import MANIFEST, Artifact

WRITERS = {
    "jetson": "gft_edge.export.deploy.jetson",
    "deepstream": "gft_edge.export.deploy.deepstream",
    "triton": "gft_edge.export.deploy.triton",
    "onnxruntime": "gft_edge.export.deploy.onnxruntime_context",
}
"""Module of each target; its ``check(artifact, options)`` refuses what does not fit, and its ``write_files(folder, artifact,
options)`` writes the target's files beside ``artifact/`` and returns the facts of the record."""


def make_bundle(artifact: Artifact, out: Path, options: BundleOptions) -> Bundle:
    """Writes a bundle.

    Args:
        artifact: whole, with every budget of a family; engines and reports in it are not copied.
        out: new or empty folder.
        options: target and device.

    Raises:
        ConfigError: the artefact does not fit the target, or ``out`` is not empty.
        ArtifactError: a file of the artefact is missing or changed.
    """
    require_free(out)
    if artifact.member:
        raise ConfigError(f"artefact {artifact.address}: a bundle holds the whole artefact; name {artifact.path}")
    writer = importlib.import_module(WRITERS[options.target])
    writer.check(artifact, options)
    for name in artifact.manifest.files:
        artifact.file(name)
    with new_folder(out) as folder:
        (folder / ARTIFACT).mkdir()
        for name in (MANIFEST, *artifact.manifest.files):
            target = folder / ARTIFACT / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, target)
        facts = writer.write_files(folder, artifact, options)
        write_record(folder, options.target, options.device, facts)
    return load_bundle(out)
