"""Engines are run only when accepted; what cannot run here is one line. The run itself is in test_engine_on_gpu.py."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import numpy as np
import pytest

from gft_edge.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from gft_edge.files import sha256, write_json
from gft_edge.hardware.devices import device
from gft_edge.manifest import MODEL, load_artifact, register_files
from gft_edge.runtime.backends import cuda, engine
from gft_edge.runtime.backends.cuda import RUNTIMES, CudaPython, open_cuda
from gft_edge.runtime.backends.engine import Engine, EngineTensor, fitting_engine, load_engine
from gft_edge.runtime.backends.engine_files import EngineHost
from gft_edge.runtime.backends.sessions import open_session

HOST = EngineHost("tensorrt", "10.3.0", "8.7", "orin-nano-8gb")


def add_engine(artifact, key: str, capability: str = "8.7", blob: bytes = b"native code"):
    folder = artifact.path / "engines"
    folder.mkdir(exist_ok=True)
    (folder / f"{key}.engine").write_bytes(blob)
    record = {
        "key": key,
        "module": "tensorrt_rtx" if key.startswith("rtx") else "tensorrt",
        "version": "10.3.0",
        "device": HOST.device,
        "compute_capabilities": [capability],
        "batch": [1, 1, 8],
        "engine_sha256": sha256(folder / f"{key}.engine"),
        "model_sha256": artifact.manifest.files[MODEL].sha256,
    }
    write_json(folder / f"{key}.json", record)
    return register_files(load_artifact(artifact.path), [f"engines/{key}.engine", f"engines/{key}.json"])


def test_missing_module_is_named_with_its_extra(with_maps, monkeypatch):
    for module, extra in (("tensorrt", "trt"), ("tensorrt_rtx", "rtx")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"{module} is not installed; .*gft-edge\[{extra}\]"):
            open_session(with_maps, module)


def test_without_a_driver_it_is_one_line(with_maps, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(engine, "has_nvidia_driver", lambda: False)
    with pytest.raises(
        ConfigError, match="backend tensorrt_rtx: engines run on an NVIDIA GPU, and there is no NVIDIA dr"
    ):
        open_session(with_maps, "tensorrt_rtx:some-key")


class TestChoice:
    def test_the_only_one_that_fits_is_taken(self, copied, with_maps):
        artifact = add_engine(add_engine(copied(with_maps), "trt1"), "trt2", capability="9.0")
        path, record = fitting_engine(artifact, HOST)
        assert (path.name, record["key"]) == ("trt1.engine", "trt1")

    def test_several_want_a_name(self, copied, with_maps):
        artifact = add_engine(add_engine(copied(with_maps), "trt1"), "trt2")
        with pytest.raises(ConfigError, match=r"2 engines fit this machine \(trt1, trt2\).*--backend tensorrt:trt1"):
            fitting_engine(artifact, HOST)
        assert fitting_engine(artifact, HOST, "trt2")[1]["key"] == "trt2"

    def test_one_that_does_not_fit_is_refused_with_the_reason(self, copied, with_maps):
        artifact = add_engine(copied(with_maps), "trt1", capability="9.0")
        with pytest.raises(ArtifactError, match=r"for compute capability 9\.0, this GPU has 8\.7; not loaded"):
            fitting_engine(artifact, HOST)

    def test_none_is_answered_with_the_command(self, copied, with_maps):
        artifact = add_engine(copied(with_maps), "rtx1")
        with pytest.raises(
            ArtifactError, match=r"has no tensorrt engine; build one: gft-edge build \S+ --target this-gpu"
        ):
            fitting_engine(artifact, HOST)
        rtx = dataclasses.replace(HOST, module="tensorrt_rtx")
        assert fitting_engine(artifact, rtx)[1]["key"] == "rtx1"

    def test_changed_engine_never_reaches_tensorrt(self, copied, with_maps, monkeypatch):
        artifact = add_engine(copied(with_maps), "trt1")
        (artifact.path / "engines/trt1.engine").write_bytes(b"other code!")
        monkeypatch.setattr(engine, "load_module", lambda name: pytest)
        monkeypatch.setattr(engine, "engine_host", lambda trt: HOST)
        monkeypatch.setattr(engine, "load_engine", lambda *_: pytest.fail("loaded"))
        with pytest.raises(ArtifactError, match="was changed since it was written.*not loaded"):
            open_session(artifact, "tensorrt")


def test_what_tensorrt_refuses_is_an_artefact_error_with_its_words():
    trt = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(ArtifactError, match="engine x: tensorrt_rtx .* cannot load it: .*[Ss]erialization"):
        load_engine(trt, b"no engine at all" * 10, "x", (1, 8))


class Memory:
    """GPU memory and an engine that doubles its input, in numpy: the calls, their order and the shapes are checked."""

    stream, name, captures = 7, "numpy", True

    def __init__(self) -> None:
        self.held, self.shapes = {}, []

    def upload(self, pointer, array):
        self.held[pointer] = array.copy()

    def download(self, array, pointer):
        array[...] = self.held[pointer]

    def synchronize(self):
        pass

    def capture(self, launch):
        if not self.captures:
            raise ConfigError("CUDA: cudaStreamEndCapture failed with cudaErrorStreamCaptureInvalidated")
        self.captured = [*getattr(self, "captured", []), self.shape]
        launch()
        return launch

    def mark(self):
        self.clock = getattr(self, "clock", 0) + 1
        return self.clock

    def elapsed_ms(self, first, second):
        return float(second - first)

    # the execution context
    def set_input_shape(self, name, shape):
        self.shape = tuple(shape)
        self.shapes.append(self.shape)
        return shape[1:] == (3,)

    def get_tensor_shape(self, name):
        return self.shape

    def execute_async_v3(self, stream):
        assert stream == self.stream
        if 1 in self.held:  # nothing is uploaded when a graph is captured
            self.held[2] = (self.held[1].view(np.float32) * 2).view(np.uint8)
        return True


@pytest.fixture
def doubling():
    memory = Memory()
    tensors = [
        EngineTensor(name, np.dtype(np.float32), pointer, np.zeros(4 * 5 * 4, np.uint8))
        for name, pointer in (("image", 1), ("logits", 2))
    ]
    return memory, Engine(memory, memory, (2, 4), tensors[0], (tensors[1],), (), [])


class TestBatches:
    @pytest.mark.parametrize(("count", "shapes"), [(1, [2]), (2, [2]), (4, [4]), (5, [4, 2]), (11, [4, 4, 3])])
    def test_images_are_run_in_parts_that_the_engine_takes(self, doubling, count, shapes):
        memory, loaded = doubling
        images = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
        (found,) = loaded.run(None, {"image": images})
        np.testing.assert_array_equal(found, images * 2)
        assert [shape[0] for shape in memory.shapes] == shapes

    @pytest.mark.parametrize("images", [np.zeros((2, 3)), np.zeros((2, 5), np.float32)])
    def test_what_does_not_fit_is_a_data_error(self, doubling, images):
        with pytest.raises(DataError, match="does not fit the engine"):
            doubling[1].run(None, {"image": images})


class TestGraphsAndTimes:
    @pytest.fixture
    def captured(self, doubling):
        memory, loaded = doubling
        return memory, dataclasses.replace(loaded, cuda_graph=True)

    def test_a_graph_is_captured_for_each_new_shape(self, captured):
        memory, loaded = captured
        for count in (4, 4, 2, 4):
            images = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
            np.testing.assert_array_equal(loaded.run(None, {"image": images})[0], images * 2)
        assert memory.captured == [(4, 3), (2, 3), (4, 3)]
        assert len(loaded.graph) == 1

    def test_what_cannot_be_captured_is_one_line(self, captured):
        memory, loaded = captured
        memory.captures = False
        with pytest.raises(ConfigError, match="cannot be captured as a CUDA graph .*Invalidated.*leave cuda_graph out"):
            loaded.run(None, {"image": np.zeros((2, 3), np.float32)})

    def test_copies_are_timed_apart(self, doubling):
        found = doubling[1].times({"image": np.zeros((2, 3), np.float32)})
        assert found == {"host_to_device": 1, "compute": 1, "device_to_host": 1}

    def test_results_stay_when_the_next_request_runs(self, doubling):
        (first,) = doubling[1].run(None, {"image": np.ones((2, 3), np.float32)})
        doubling[1].run(None, {"image": np.zeros((2, 3), np.float32)})
        assert (first == 2).all()


@pytest.mark.parametrize("capability", ["9.0", "8.7", "10.0", "11.0", "7.2"])
def test_rtx_on_a_gpu_that_it_does_not_support_is_our_line(monkeypatch, capability):
    found = type("Found", (), {"profile": dataclasses.replace(device("h100"), compute_capability=capability)})
    monkeypatch.setattr("gft_edge.hardware.this_device.device_here", lambda: found)
    module = type("Module", (), {"__name__": "tensorrt_rtx", "__version__": "1.7.1"})()
    with pytest.raises(ConfigError, match=f"does not support compute capability {capability}; it runs on 7.5, 8.0"):
        engine.engine_host(module)
    module.__name__ = "tensorrt"
    assert engine.engine_host(module).compute_capability == capability


def test_bf16_on_the_cpu_is_one_line(tiny_checkpoint, images, tmp_path):
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.export.onnx.artifact import export_artifact
    from gft_edge.export.onnx.options import GraphOptions
    from gft_edge.export.verify.artifact_alone import verify_golden
    from gft_edge.export.verify.tensors import node_tensors
    from gft_edge.export.verify.with_checkpoint import verify_checkpoint
    from gft_edge.runtime.artifact_graph import load_artifact_graph

    checkpoint = load_checkpoint(tiny_checkpoint)
    artifact = export_artifact(checkpoint, tmp_path / "a", images, options=GraphOptions(rest="bf16"))
    fresh = load_artifact_graph(artifact)
    answer = "ONNX Runtime computes no BF16 on a CPU; run it with --backend tensorrt on a GPU, or export with --precision fp16"
    batches = [(images, np.zeros(len(images), np.int64))]
    for ask in (
        lambda: open_session(artifact),
        lambda: verify_golden(artifact),
        lambda: verify_checkpoint(artifact, checkpoint, batches, "noise", fresh=fresh),
    ):
        with pytest.raises(ConfigError, match=answer):
            ask()
    tensors, first = node_tensors(fresh, images)  # a trace says where ONNX Runtime stops
    assert first is not None and not [t for t in tensors.values() if t.dtype.kind not in "fiub"]


class TestCuda:
    def test_cuda_python_has_what_is_called(self):
        runtime = pytest.importorskip("cuda.bindings.runtime")
        for name in (
            *("cudaStreamCreate", "cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync", "cudaStreamSynchronize"),
            *("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"),
            *("cudaEventCreate", "cudaEventRecord", "cudaEventElapsedTime"),
        ):
            assert callable(getattr(runtime, name))
        assert runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal is not None
        kinds = runtime.cudaMemcpyKind
        assert (int(kinds.cudaMemcpyHostToDevice), int(kinds.cudaMemcpyDeviceToHost)) == (1, 2)

    def test_no_gpu_is_one_line_by_either(self, monkeypatch):
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        runtime = pytest.importorskip("cuda.bindings.runtime")
        with pytest.raises(
            ConfigError, match=r"CUDA: cudaStreamCreate failed with cudaError\w+; check GPU and driver with nvidia-smi"
        ):
            CudaPython(runtime)
        for name in RUNTIMES:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match="CUDA: PyTorch sees no GPU here"):
            open_cuda()

    def test_neither_installed_names_the_extra(self, monkeypatch):
        def missing(name):
            raise ImportError(name)

        monkeypatch.setattr(cuda, "importlib", type("Imports", (), {"import_module": staticmethod(missing)}))
        assert importlib.import_module is not missing
        with pytest.raises(MissingExtraError, match=r"cuda-python is not installed; .*gft-edge\[trt\]"):
            open_cuda()
