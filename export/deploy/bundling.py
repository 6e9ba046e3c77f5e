"""Makes a bundle: copies the artefact, lets the target write its files, hashes everything, signs and zips it."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path

from gft_edge.bundle import ADDED, ARTIFACT, RECORD, SIGNATURE, Bundle, load_bundle, write_record
from gft_edge.errors import ConfigError
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.files import new_folder, require_free, require_writable
from gft_edge.hardware.devices import device
from gft_edge.manifest import MANIFEST, Artifact
from gft_edge.storage.pack import pack
from gft_edge.storage.seals import write_sealed
from gft_edge.storage.signatures import private_key, write_signature

WRITERS = {
    "jetson": "gft_edge.export.deploy.jetson",
    "deepstream": "gft_edge.export.deploy.deepstream.bundle",
    "triton": "gft_edge.export.deploy.triton.bundle",
    "onnxruntime": "gft_edge.export.deploy.onnxruntime_context",
}
"""Module of each target; its ``check(artifact, options)`` refuses what does not fit, and its ``write_files(folder, artifact,
options)`` writes the target's files beside ``artifact/`` and returns the facts of the record."""


def make_bundle(artifact: Artifact, out: Path, options: BundleOptions) -> Bundle:
    """Writes a bundle, and its zip where the options ask for one.

    Args:
        artifact: whole, with every budget of a family; its engines, caches and reports are not copied.
        out: new or empty folder; the zip is ``OUT.zip`` beside it.
        options: target, device, signature, zip.

    Raises:
        ConfigError: the artefact does not fit the target, the key is no Ed25519 key, or ``out`` or the zip exists.
        ArtifactError: a file of the artefact is missing or changed.
        MissingExtraError: a signature is wanted and cryptography is not installed.
    """
    require_free(out)
    archive = zip_of(out)
    if options.zip:
        require_writable(archive)
        if archive.exists():
            raise ConfigError(f"output {archive}: exists; give another --out or remove it first")
    if artifact.member:
        raise ConfigError(f"artefact {artifact.address}: a bundle holds the whole artefact; name {artifact.path}")
    key = private_key(options.sign) if options.sign else None
    writer = importlib.import_module(WRITERS[options.target])
    writer.check(artifact, options)
    with new_folder(out) as folder:
        copy_artifact(artifact, folder / ARTIFACT)
        facts = writer.write_files(folder, artifact, options)
        name = device(options.device).name if options.device else ""  # not a short one
        write_record(folder, options.target, name, facts)
        if key is not None:
            write_signature(folder / RECORD, folder / SIGNATURE, key)
        load_bundle(folder).check()  # a copy that a full disk or bad memory damaged is not handed out
    if options.zip:
        pack(out, archive)
    return load_bundle(out)


def zip_of(out: Path) -> Path:
    """Returns the path of a bundle's zip."""
    return out.with_name(f"{out.name}.zip")


def copy_artifact(artifact: Artifact, folder: Path) -> None:
    """Copies an artefact without what a device adds to it: engines, caches and reports.

    Raises:
        ArtifactError: a file is missing or changed.
    """
    files = {name: info for name, info in artifact.manifest.files.items() if not name.startswith(ADDED)}
    folder.mkdir()
    for name in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.file(name), target)
    write_sealed(folder / MANIFEST, replace(artifact.manifest, files=files).to_json())
