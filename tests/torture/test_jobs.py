"""What a verb leaves is compared by content, where its content is the same in every run."""

from __future__ import annotations

import shutil

import pytest

from gft_edge.benchmarks.torture.flips import text_of
from gft_edge.benchmarks.torture.jobs import artifact_state
from gft_edge.errors import ArtifactError
from gft_edge.files import sha256, write_json
from gft_edge.manifest import GOLDEN, MODEL, load_artifact, register_files

KEY = "rtx1.7.1_sm86_fp32_b1-1-8"


def add_engine(folder, content: bytes) -> None:
    """Enters an engine of that content, as build does."""
    (folder / "engines").mkdir(exist_ok=True)
    engine = folder / f"engines/{KEY}.engine"
    engine.write_bytes(content)
    record = {
        "key": KEY,
        "engine_sha256": sha256(engine),
        "engine_bytes": len(content),
        "model_sha256": sha256(folder / MODEL),
        "module": "tensorrt_rtx",
        "version": "1.7.1",
        "compute_capabilities": ["8.6"],
    }
    write_json(folder / f"engines/{KEY}.json", record)
    register_files(load_artifact(folder), [f"engines/{KEY}.engine", f"engines/{KEY}.json"])


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made.plain, tmp_path / "artifact")


def test_two_builds_of_one_engine_count_as_the_same_result(folder):
    bare = text_of(artifact_state(folder))
    add_engine(folder, b"built first ")
    first = text_of(artifact_state(folder))
    add_engine(folder, b"built second")
    assert text_of(artifact_state(folder)) == first != bare


def test_a_torn_engine_is_refused(folder):
    add_engine(folder, b"engine")
    (folder / f"engines/{KEY}.engine").write_bytes(b"engin")
    with pytest.raises(ArtifactError, match="was changed"):
        artifact_state(folder)


def test_another_content_of_any_other_file_is_another_result(folder):
    before = text_of(artifact_state(folder))
    (folder / GOLDEN).write_bytes(b"other arrays")
    register_files(load_artifact(folder), [GOLDEN])
    assert text_of(artifact_state(folder)) != before
