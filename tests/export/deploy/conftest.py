from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from gft_edge.manifest import MANIFEST, MODEL, Artifact, FileInfo, TensorInfo, load_artifact
from gft_edge.storage.seals import write_sealed

KINDS = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}


@pytest.fixture
def stand_in(tiny_artifact, tmp_path) -> Callable[..., Artifact]:
    """The tiny artefact with other entries in its manifest and a graph that has their inputs and outputs but computes nothing."""

    def make(batch: tuple[int, int, int] = (1, 1, 8), image: tuple = (), **changes) -> Artifact:
        folder = Path(shutil.copytree(tiny_artifact, tmp_path / "stand-in" / "artefact"))
        manifest = load_artifact(folder).manifest
        size: int | str = batch[0] if batch[0] == batch[2] else "batch"
        name, dtype, *shape = image or ("image", "float32", 3, 32, 32)
        outputs = changes.pop("outputs", manifest.outputs)
        manifest = dataclasses.replace(
            manifest,
            batch=batch,
            inputs=(TensorInfo(name, dtype, (size, *shape), ""),),
            outputs=tuple(dataclasses.replace(t, shape=(size, *t.shape[1:])) for t in outputs),
            **changes,
        )
        values = [
            [helper.make_tensor_value_info(t.name, KINDS[t.dtype], t.shape) for t in tensors]
            for tensors in (manifest.inputs, manifest.outputs)
        ]
        node = helper.make_node("Nothing", [name], [t.name for t in manifest.outputs], domain="test")
        onnx.save(helper.make_model(helper.make_graph([node], "stand-in", *values)), folder / MODEL)
        files = {**manifest.files, MODEL: FileInfo.of(folder / MODEL)}
        write_sealed(folder / MANIFEST, dataclasses.replace(manifest, files=files).to_json())
        return load_artifact(folder)

    return make
