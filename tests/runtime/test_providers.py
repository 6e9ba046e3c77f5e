"""ONNX Runtime's GPU providers: their refusals, options, caches and the detection of a fallback, on real sessions of the CPU."""

from __future__ import annotations

import collections
import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from gft_edge.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from gft_edge.hardware.devices import device
from gft_edge.manifest import MODEL, load_artifact
from gft_edge.runtime.backends import providers
from gft_edge.runtime.backends.assignment import CPU, Assignment, assignment, require_provider_runs
from gft_edge.runtime.backends.bound_session import BoundSession
from gft_edge.runtime.backends.caches import machine_mark, open_cache
from gft_edge.runtime.backends.providers import (
    CUDA,
    PROVIDERS,
    RTX,
    TENSORRT,
    create_session,
    ignored_options,
    provider_options,
)
from gft_edge.runtime.backends.sessions import Session, open_session

NAMES = [provider.backend for provider in PROVIDERS]
NOTHING = dataclasses.replace(CUDA, backend="onnxruntime-azure", name="AzureExecutionProvider", options=frozenset())
"""A provider of the CPU wheel that takes no node of our graphs: ONNX Runtime lists it, and the CPU computes."""


@pytest.fixture(scope="module")
def artifact(tiny_artifact):
    return load_artifact(tiny_artifact)


@pytest.fixture
def images(artifact):
    _, channels, rows, columns = artifact.manifest.inputs[0].shape
    return np.random.default_rng(0).standard_normal((2, channels, rows, columns), dtype=np.float32)


def real_session(artifact, provider):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime warns of a provider that it does not have, and goes on
        return create_session(ort, provider, str(artifact.path / MODEL), {})


class TestWhatCannotRunHere:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_provider_that_is_not_installed_is_one_line_with_the_package(self, artifact, name):
        with pytest.raises(MissingExtraError, match=r"pip install onnxruntime-(gpu|ep-nv-tensorrt-rtx)") as caught:
            open_session(artifact, name)
        assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
        provider = next(p for p in PROVIDERS if p.backend == name)
        assert provider.package in str(caught.value)

    @pytest.mark.parametrize("name", NAMES)
    def test_without_a_driver_it_is_one_line(self, artifact, name, monkeypatch):
        monkeypatch.setattr(providers, "_onnxruntime", lambda provider, module: ort)
        monkeypatch.setattr(providers, "has_nvidia_driver", lambda: False)
        with pytest.raises(ConfigError, match=f"backend {name}: .* no NVIDIA driver here"):
            open_session(artifact, name)

    def test_a_gpu_that_rtx_does_not_support_is_refused(self, artifact, monkeypatch):
        monkeypatch.setattr(providers, "_onnxruntime", lambda provider, module: ort)
        monkeypatch.setattr(providers, "has_nvidia_driver", lambda: True)
        found = type("Found", (), {"profile": device("h100")})
        monkeypatch.setattr("gft_edge.hardware.this_device.device_here", lambda: found)
        with pytest.raises(ConfigError, match=r"onnxruntime-rtx on H100 SXM: .* compute capability 9\.0"):
            open_session(artifact, "onnxruntime-rtx")

    def test_a_plugin_without_a_gpu_says_so(self, artifact):
        with pytest.raises(ConfigError, match="onnxruntime-ep-nv-tensorrt-rtx finds no GPU"):
            create_session(ort, RTX, str(artifact.path / MODEL), {})

    def test_a_graph_that_cannot_be_opened_is_one_line(self, tmp_path):
        (tmp_path / "x.onnx").write_bytes(b"no graph")
        with pytest.raises(ArtifactError, match="x.onnx: AzureExecutionProvider of ONNX Runtime .* cannot open it"):
            create_session(ort, NOTHING, str(tmp_path / "x.onnx"), {})


class TestFallback:
    def test_a_provider_that_was_dropped_is_refused(self, artifact):
        found = assignment(real_session(artifact, CUDA))
        assert found.providers == (CPU,)
        with pytest.raises(
            ConfigError, match=r"could not load CUDAExecutionProvider and would run on CPUExecutionProvider"
        ):
            require_provider_runs("onnxruntime-cuda", CUDA.name, found)

    def test_a_provider_without_a_node_is_refused(self, artifact):
        found = assignment(real_session(artifact, NOTHING))
        assert found.providers == (NOTHING.name, CPU)
        assert set(found.counts) == {CPU}
        with pytest.raises(ConfigError, match=rf"takes none of the graph's {found.counts[CPU]} nodes"):
            require_provider_runs("onnxruntime-azure", NOTHING.name, found)

    def test_computing_nodes_on_the_cpu_are_refused_unless_allowed(self):
        nodes = {"P": {"MatMul": 8}, CPU: {"Gather": 3, "TopK": 2, "Conv": 1}}
        found = Assignment(("P", CPU), nodes)
        with pytest.raises(
            ConfigError, match=r"3 of the graph's 14 nodes would run on the CPU \(2 TopK, 1 Conv\).*b,allow_cpu=on"
        ):
            require_provider_runs("b", "P", found)
        require_provider_runs("b", "P", found, allow_cpu=True)
        require_provider_runs("b", "P", Assignment(("P", CPU), {"P": {"MatMul": 8}, CPU: {"Shape": 3, "Gather": 1}}))
        require_provider_runs("b", "P", Assignment(("P", CPU), None))

    def test_the_profile_tells_the_same_provider(self, artifact, images, tmp_path):
        options = ort.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = ort.InferenceSession(str(artifact.path / MODEL), options, providers=[CPU])
        for _ in range(2):
            session.run(None, {"image": images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        keys = ("provider", "op_name")
        ran = {(e["name"], *map(e["args"].get, keys)) for e in events if "provider" in e.get("args", {})}
        told = assignment(real_session(artifact, NOTHING)).nodes
        assert {provider for _, provider, _ in ran} == set(told) == {CPU}
        assert sum(operator == "TopK" for _, _, operator in ran) == told[CPU]["TopK"] > 0

    def test_an_older_onnx_runtime_does_not_tell(self):
        session = type("Old", (), {"get_providers": lambda self: [CPU]})()
        assert assignment(session) == Assignment((CPU,), None)
        assert Assignment((CPU,), None).counts == {}


class TestOptions:
    @pytest.mark.parametrize("provider", PROVIDERS, ids=NAMES)
    def test_ours_are_among_the_accepted(self, artifact, provider, tmp_path):
        cache = open_cache(dataclasses.replace(artifact, path=tmp_path), "c", {})
        made = provider_options(provider, artifact.manifest, {"cuda_graph": "on"}, cache)
        assert set(made) <= provider.options
        assert made[provider.graph_option] == "1"

    def test_profiles_are_the_batch_range_of_the_artefact(self, artifact):
        made = provider_options(TENSORRT, dataclasses.replace(artifact.manifest, batch=(1, 2, 8)), {}, None)
        assert made["trt_profile_min_shapes"] == "image:1x3x32x32"
        assert made["trt_profile_opt_shapes"] == "image:2x3x32x32"
        assert made["trt_profile_max_shapes"] == "image:8x3x32x32"
        static = provider_options(RTX, dataclasses.replace(artifact.manifest, batch=(4, 4, 4)), {}, None)
        assert not any("profile" in name for name in static)

    def test_the_users_value_counts(self, artifact):
        assert provider_options(CUDA, artifact.manifest, {}, None)["use_tf32"] == "0"
        assert provider_options(CUDA, artifact.manifest, {"use_tf32": "1"}, None)["use_tf32"] == "1"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("onnxruntime-cuda,use_tf33=1", "has no setting 'use_tf33' .did you mean 'use_tf32'"),
            ("onnxruntime-tensorrt,nv_max_workspace_size=1", "has no setting"),
            ("onnxruntime-cuda,cuda_graph=maybe", "cuda_graph=maybe: expected on or off"),
            ("onnxruntime,threads=2", "has no setting 'threads'; it has none"),
        ],
    )
    def test_an_unknown_one_is_refused(self, artifact, text, message):
        with pytest.raises(ConfigError, match=message):
            open_session(artifact, text)

    def test_what_a_provider_does_not_report_back_is_named(self):
        told = {CUDA.name: {"device_id": "0", "use_tf32": "true", "gpu_mem_limit": "1"}}
        session = type("Told", (), {"get_provider_options": lambda self: told})()
        wanted = {"device_id": "0", "use_tf32": "1", "gpu_mem_limit": "2", "prefer_nhwc": "1"}
        assert ignored_options(session, CUDA, wanted) == ["gpu_mem_limit", "prefer_nhwc"]
        assert ignored_options(session, TENSORRT, wanted) == []


class TestBoundSession:
    @pytest.fixture(scope="class")
    def plain(self, artifact):
        return ort.InferenceSession(str(artifact.path / MODEL), providers=[CPU])

    def test_it_computes_what_a_plain_run_does_and_keeps_its_buffers(self, plain, images):
        bound = BoundSession(ort, plain, "cpu")
        given = [images, images[:1], images[::-1], images * 2, images]
        found = [bound.run(None, {"image": batch}) for batch in given]
        for batch, outputs in zip(given, found):
            for output, expected in zip(outputs, plain.run(None, {"image": np.ascontiguousarray(batch)})):
                np.testing.assert_array_equal(output, expected)
        assert collections.Counter(shape[0] for shape in bound._buffers) == {1: 1, 2: 1}

    def test_a_request_of_another_type_is_refused_and_leaves_no_buffer(self, plain, images):
        bound = BoundSession(ort, plain, "cpu")
        with pytest.raises(DataError, match="does not fit the graph"):
            Session("x", {}, ("logits",), bound, "image")(images.astype(np.float64))
        assert not bound._buffers
        np.testing.assert_array_equal(bound.run(None, {"image": images})[0], plain.run(None, {"image": images})[0])

    def test_a_tensor_of_the_device_is_not_copied_to_the_host(self, plain, images):
        (logits, *_) = BoundSession(ort, plain, "cpu").run_pointer(images.ctypes.data, images.shape, images.dtype)
        np.testing.assert_array_equal(logits.numpy(), plain.run(None, {"image": images})[0])

    def test_a_graph_takes_no_foreign_tensor(self, plain, images):
        with pytest.raises(ConfigError, match="leave cuda_graph out"):
            BoundSession(ort, plain, "cpu", cuda_graph=True).run_pointer(images.ctypes.data, images.shape, images.dtype)


FACTS = {"model": "a", "gpu": "8.7"}


class TestCaches:
    @pytest.fixture
    def empty(self, artifact, tmp_path):
        return dataclasses.replace(artifact, path=tmp_path)

    def filled(self, artifact):
        cache = open_cache(artifact, "trt", FACTS)
        (cache.path / "x.engine").write_bytes(b"native code")
        cache.close()
        return cache.path

    def test_what_this_machine_wrote_is_used_again(self, empty):
        assert open_cache(empty, "trt", FACTS).state == "new"
        path = self.filled(empty)
        again = open_cache(empty, "trt", FACTS)
        assert again.state == "reused" and (path / "x.engine").is_file()

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda path: (path / "x.engine").write_bytes(b"other code!"), "its files were changed"),
            (lambda path: (path / "y.engine").write_bytes(b"more"), "its files were changed"),
            (lambda path: (path / "card.json").unlink(), "it has no card"),
            (lambda path: (path / "card.json").write_text("{"), "its card is damaged"),
            (lambda path: (path / "z.engine").symlink_to("x.engine"), "it holds a link"),
        ],
    )
    def test_anything_else_is_emptied_before_a_runtime_sees_it(self, empty, change, reason):
        path = self.filled(empty)
        change(path)
        assert open_cache(empty, "trt", FACTS).state == f"emptied: {reason}"
        assert list(path.iterdir()) == []

    def test_another_gpu_empties_it(self, empty):
        self.filled(empty)
        assert open_cache(empty, "trt", {**FACTS, "gpu": "8.9"}).state == "emptied: it is of another gpu"

    def test_a_folder_that_leads_elsewhere_is_not_used(self, empty, tmp_path_factory):
        (empty.path / "caches").symlink_to(tmp_path_factory.mktemp("elsewhere"))
        assert open_cache(empty, "trt", FACTS) is None

    def test_machines_differ(self, tmp_path):
        assert machine_mark(tmp_path) == "unknown"
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/machine-id").write_text("a\n")
        assert json.dumps(machine_mark(tmp_path)) and len(machine_mark(tmp_path)) == 16
