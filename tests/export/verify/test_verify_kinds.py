"""Every 8-bit precision has the limits of its kind, and every claim of a manifest is compared with the graph."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.verify import with_checkpoint as module
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.export.verify.claims import claim_places
from gft_edge.export.verify.with_checkpoint import verify_checkpoint
from gft_edge.manifest import GOLDEN, MODEL, TensorInfo, load_artifact, register_files
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.compared_model import comparison_kind
from gft_edge.stats.agreement import Computation
from gft_edge.stats.verdict import Limits

PRECISIONS = {"int8": "int8", "fp8": "fp8", "int8-weights": "weights"}
"""8-bit precisions, and the names of their checkpoints."""


@pytest.fixture(scope="module", params=PRECISIONS)
def made(request, checkpoints, exported):
    """Precision, checkpoint and artefact; the artefact is not to be changed."""
    name = PRECISIONS[request.param]
    return request.param, checkpoints[name], exported(f"{name}-none")


def _scaled_head(path, factor):
    """Scales all logits: the classes stay, and the logits lose 20 log10 |1 / (factor - 1)| dB."""
    model = onnx.load(path / MODEL)
    for tensor in model.graph.initializer:
        if tensor.name in ("model.head.weight", "model.head.bias"):
            array = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path / MODEL)


@pytest.fixture
def changed(made, tmp_path):
    """Makes a copy of the artefact that a function has changed, with its hashes entered again."""

    def make(change):
        artifact = load_artifact(shutil.copytree(made[2].path, tmp_path / "changed"))
        change(artifact.path)
        return register_files(artifact, [MODEL, GOLDEN])

    return make


class TestEightBitPrecisions:
    def test_a_true_artefact_passes(self, made):
        precision, _, artifact = made
        report = verify_golden(artifact)
        assert [(c.reference, c.kind) for c in report.comparisons] == [
            ("torch fp32", "compression"),
            (f"torch {precision}", "same_arithmetic"),
        ]
        assert [c.arithmetic for c in report.comparisons] == [precision, precision]
        assert not [failure for failure in report.failures if "SQNR" in failure and "importance" not in failure]
        assert report.comparisons[1].logit_sqnr_db > Limits().same_sqnr_db
        assert claim_places(artifact.manifest, load_artifact_graph(artifact)) == []

    def test_a_precision_that_the_graph_contradicts_is_named(self, made):
        precision, _, artifact = made
        other = "fp8" if precision == "int8" else "int8"
        places = claim_places(dataclasses.replace(artifact.manifest, precision=other), load_artifact_graph(artifact))
        assert [place.text for place in places] == [f"manifest: precision {other}, the graph has {precision}"]

    def test_a_fault_of_20_db_fails(self, made, changed):
        """The limit of compression (15 dB) lets it pass; the same arithmetic has to agree better."""
        precision = made[0]
        report = verify_golden(changed(lambda path: _scaled_head(path, 1.1)))
        sqnr = report.comparisons[1].settled_sqnr_db
        assert 19 < sqnr < 21
        told = [f for f in report.failures if f"against torch {precision}: logit SQNR {sqnr:.1f} dB" in f]
        assert told and told[0].endswith("limit 25")

    def test_nan_of_the_graph_fails_every_comparison(self, changed):
        report = verify_golden(changed(lambda path: _scaled_head(path, np.nan)))
        told = [f for f in report.failures if "logits of 12 of 12 images are not finite" in f]
        assert len(told) == len(report.comparisons) == 2

    def test_the_fresh_export_is_run_with_the_artefacts_own_options(
        self, made, changed, exported, clear_images, monkeypatch
    ):
        precision, checkpoint, artifact = made
        asked = []
        monkeypatch.setattr(
            module,
            "onnxruntime_session",
            lambda graph, quantized: asked.append(quantized) or _session(graph, quantized),
        )
        batches = [(clear_images, np.zeros(12, np.int64))]
        fresh = load_artifact_graph(artifact)
        report = verify_checkpoint(
            changed(lambda path: _scaled_head(path, 1.001)), checkpoint, batches, "twelve", fresh=fresh
        )
        assert asked == [True]
        assert [c.kind for c in report.comparisons] == ["compression", "same_arithmetic", "exact"]
        assert [c.reference for c in report.comparisons] == ["torch fp32", f"torch {precision}", "fresh export"]
        assert any("against fresh export: logits differ by" in failure for failure in report.failures)


def _session(graph, quantized):
    from gft_edge.runtime.backends.sessions import onnxruntime_session

    return onnxruntime_session(graph, quantized)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "tensorrt_rtx:some_key"])
@pytest.mark.parametrize(
    ("arithmetic", "reference", "kind"),
    [
        ("fp32", "fp32", "exact"),
        ("fp16", "fp32", "compression"),
        ("bf16", "fp32", "compression"),
        *((p, p, "same_arithmetic") for p in PRECISIONS),
        *((p, "fp32", "compression") for p in PRECISIONS),
    ],
)
def test_kind_follows_from_the_arithmetic_on_every_backend(backend, arithmetic, reference, kind):
    sides = Computation.of(backend, arithmetic), Computation.of("torch", reference)
    assert comparison_kind(*sides) == kind


class TestGoldenThatDoesNotFit:
    @pytest.fixture
    def golden(self, copied):
        def make(name="fp32-compact-uint8", **arrays):
            artifact = copied(name)
            with np.load(artifact.path / GOLDEN) as file:
                new = {**file, **arrays}
            np.savez(artifact.path / GOLDEN, **new)
            return register_files(artifact, [GOLDEN])

        return make

    @pytest.mark.parametrize("kind", ["fp32-compact-uint8", "int8-none"])
    def test_nan_logits_of_pytorch_fail(self, golden, kind):
        report = verify_golden(golden(kind, logits=np.full((12, 4), np.nan, np.float32)))
        assert any("logits of torch fp32 for 12 of 12 images are not finite" in f for f in report.failures)

    @pytest.mark.parametrize(
        ("name", "array"),
        [
            ("logits", np.zeros(12, np.float32)),
            ("logits", np.zeros((11, 4), np.float32)),
            ("logits", np.zeros((12, 5), np.float32)),
            ("logits", np.zeros((12, 4), np.int64)),
            ("logits_quantized", np.zeros((2, 4), np.float32)),
            ("images", np.zeros((12, 3, 31, 32), np.float32)),
            ("images", np.zeros((12, 32, 32), np.float32)),
            ("images", np.full((12, 3, 32, 32), np.nan, np.float32)),
            ("images", np.zeros((0, 3, 32, 32), np.float32)),
            ("images", np.zeros((12, 32, 32, 3), np.uint8)),
            ("kept_0", np.full((12, 12), 16)),
            ("kept_1", np.full((12, 6), -1)),
            ("kept_0", np.zeros((12, 11), np.int32)),
            ("quantized_kept_0", np.full((12, 12), 16)),
            ("importance_0", np.full((12, 16), np.inf, np.float32)),
            ("importance_1", np.zeros((12, 16), np.float32)),
        ],
    )
    def test_arrays_that_do_not_fit_are_one_line(self, golden, name, array):
        with pytest.raises(ArtifactError, match=rf"golden\.npz is damaged \(.*{name}") as error:
            verify_golden(golden(**{name: array}))
        assert "\n" not in str(error.value)


def _other(table, number, **changes):
    return tuple(dataclasses.replace(t, **changes) if i == number else t for i, t in enumerate(table))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: {"opset": 17}, "opset"),
        (lambda m: {"dialect": "trt8"}, "dialect"),
        (lambda m: {"maps": "none"}, "outputs"),
        (lambda m: {"maps": "dense"}, "outputs"),
        (lambda m: {"batch": (1, 1, 1)}, "inputs"),
        (lambda m: {"outputs": m.outputs[::-1]}, "outputs"),
        (lambda m: {"outputs": _other(m.outputs, 0, dtype="int8")}, "outputs"),
        (lambda m: {"outputs": _other(m.outputs, 0, shape=("batch", 999))}, "outputs"),
        (lambda m: {"outputs": _other(m.outputs, 1, name="importance_9")}, "outputs"),
        (lambda m: {"inputs": _other(m.inputs, 0, shape=("batch", 1, 7, 7))}, "inputs"),
        (lambda m: {"inputs": _other(m.inputs, 0, dtype="float16")}, "inputs"),
        (lambda m: {"inputs": (*m.inputs, TensorInfo("more", "float32", (1,), ""))}, "inputs"),
        (lambda m: {"precision": "int8"}, "precision"),
        (lambda m: {"precision": "fp16", "rest": "fp16"}, "rest"),
    ],
)
def test_a_claim_that_the_graph_contradicts_is_named(exported, change, name):
    artifact = exported("fp32-compact-uint8")
    manifest = dataclasses.replace(artifact.manifest, **change(artifact.manifest))
    places = claim_places(manifest, load_artifact_graph(artifact))
    assert name in [place.name for place in places]
    report = verify_golden(dataclasses.replace(artifact, manifest=manifest))
    assert report.verdict == "fail"
    assert report.places[: len(places)] == tuple(places)
    assert all(place.text in report.failures for place in places)


def test_a_manifest_without_inputs_is_refused(exported):
    with pytest.raises(ConfigError, match="must name at least one tensor"):
        dataclasses.replace(exported("fp32-compact-uint8").manifest, inputs=())


def test_without_onnx_the_golden_images_are_compared_and_what_is_not_is_said(exported, monkeypatch):
    plain, compact, missing = exported("int8-none"), exported("fp32-compact-uint8"), "onnx"
    for name in [n for n in sys.modules if n == missing or n.startswith(("onnx.", "gft_edge.export.verify.claims"))]:
        monkeypatch.setitem(sys.modules, name, None) if name == missing else monkeypatch.delitem(sys.modules, name)
    report = verify_golden(plain)
    assert report.failures == ()
    assert len([note for note in report.notes if "onnx is not installed" in note]) == 2
    assert [stage.stage for stage in verify_golden(compact).comparisons[0].stages] == [0, 1]


def test_torch_is_not_needed_for_golden_images():
    code = "import sys; sys.modules['torch'] = None; import gft_edge.export.verify.artifact_alone, gft_edge.export.verify.claims"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
