"""PyTorch and Torch-TensorRT as backends of an artefact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gft_edge.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from gft_edge.export.tensorrt.torch_tensorrt import enter_program, plan_torch
from gft_edge.hardware.devices import device
from gft_edge.manifest import load_artifact
from gft_edge.runtime.backends import torch_program
from gft_edge.runtime.backends.engine import fitting_engine
from gft_edge.runtime.backends.engine_files import EngineHost, engine_files
from gft_edge.runtime.backends.sessions import open_session


def test_the_checkpoint_computes_what_the_graph_does(with_maps, tiny_checkpoint, images):
    session, graph = open_session(with_maps, f"torch:{tiny_checkpoint}"), open_session(with_maps)
    found, expected = session(images), graph(images)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4)
    assert session.options["mode"] == "torch"
    with pytest.raises(DataError, match="does not fit the graph, which takes"):
        session(images[:, :1])


@pytest.mark.parametrize("name", ["torch", "torch-compiled", "torch-cuda-graph"])
def test_without_a_checkpoint_it_is_one_line(with_maps, name):
    with pytest.raises(
        ConfigError, match=f"holds no weights of PyTorch; name the checkpoint .* as --backend {name}:CKPT"
    ):
        open_session(with_maps, name)


def test_another_checkpoint_is_refused(with_maps):
    with pytest.raises(ArtifactError, match="was made from weights .*; give the one that it was exported from"):
        open_session(with_maps, "torch:builtin")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_graphs_need_a_gpu(with_maps, tiny_checkpoint):
    with pytest.raises(ConfigError, match="PyTorch sees none here; take --backend torch"):
        open_session(with_maps, f"torch-cuda-graph:{tiny_checkpoint}")


class TestProgram:
    @pytest.fixture
    def plain(self, tiny_artifact, copied):
        return copied(load_artifact(tiny_artifact))

    def test_maps_are_refused(self, with_maps):
        with pytest.raises(ConfigError, match="a program takes normalised images and gives logits alone"):
            open_session(with_maps, "torch-tensorrt")

    def test_what_is_missing_is_named(self, plain, monkeypatch):
        monkeypatch.setattr(torch_program, "is_installed", lambda module: False)
        with pytest.raises(MissingExtraError, match=r"torch-tensorrt is not installed; .*gft-edge\[torch-trt\]"):
            open_session(plain, "torch-tensorrt")
        monkeypatch.setattr(torch_program, "is_installed", lambda module: True)
        monkeypatch.setattr(torch_program, "has_nvidia_driver", lambda: False)
        with pytest.raises(ConfigError, match="backend torch-tensorrt: .* no NVIDIA driver here"):
            open_session(plain, "torch-tensorrt")

    def test_a_saved_program_is_found_and_checked_like_an_engine(self, plain, tiny_checkpoint, monkeypatch):
        from gft_edge.checkpoint import load_checkpoint
        from gft_edge.export.tensorrt import torch_tensorrt
        from gft_edge.export.tensorrt.build_plan import engine_key
        from gft_edge.export.tensorrt.options import BuildOptions

        monkeypatch.setattr(torch_tensorrt, "_this_gpu", lambda: (device("h100"), ()))
        plan = plan_torch(load_checkpoint(tiny_checkpoint), "fp16", BuildOptions(batch=(1, 1, 8)))
        key = engine_key(plan, str(plan.tensorrt))
        assert key.startswith("torch")
        host = EngineHost("torch_tensorrt", plan.tensorrt, "9.0", "h100")
        with pytest.raises(ArtifactError, match="build one: gft-edge build CKPT --target torch-tensorrt --out"):
            fitting_engine(plain, host)
        (plain.path / "engines").mkdir(exist_ok=True)
        (plain.path / engine_files(key)[0]).write_bytes(b"program")
        artifact = enter_program(plain, plan, key, {})
        path, record = fitting_engine(artifact, host)
        assert path.name == f"{key}.engine" and record["precision"] == "fp16"
        with pytest.raises(ArtifactError, match="for compute capability 9.0, this GPU has 8.9; not loaded"):
            fitting_engine(artifact, dataclasses.replace(host, compute_capability="8.9"))
