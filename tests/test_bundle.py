"""Bundles: every file is in a record, an artefact can be opened in one, and nothing that was changed is accepted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gft_edge.bundle import ARTIFACT, artifact_id, load_bundle, open_artifact, write_record
from gft_edge.errors import ArtifactError
from gft_edge.manifest import load_artifact


@pytest.fixture
def bundle(tiny_artifact, tmp_path) -> Path:
    """A bundle of the tiny artefact with two files of a target."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_artifact, folder / ARTIFACT)
    shutil.rmtree(folder / ARTIFACT / "reports", ignore_errors=True)
    (folder / "extra").mkdir()
    (folder / "labels.txt").write_text("ant;bee;cat;dog")
    (folder / "extra/run.sh").write_text("#!/bin/sh\n")
    write_record(folder, "jetson", "orin-nano-8gb", {"tensorrt": "10.3"})
    return folder


def test_whole_bundle_is_accepted_and_opened(bundle, tiny_artifact):
    read = load_bundle(bundle)
    assert (read.target, read.device, read.facts) == ("jetson", "orin-nano-8gb", {"tensorrt": "10.3"})
    assert set(read.files) == {"labels.txt", "extra/run.sh"}
    assert read.check().path == bundle / ARTIFACT
    assert read.artifact_id == artifact_id(load_artifact(tiny_artifact).manifest)
    for path in (bundle, tiny_artifact):
        assert open_artifact(path).manifest.budget.id == "12-6"
    assert open_artifact(f"{bundle}@12-6").path == bundle / ARTIFACT
    with pytest.raises(ArtifactError, match="no graph of budget 1-1"):
        open_artifact(f"{bundle}@1-1")
