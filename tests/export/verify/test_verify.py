from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from gft_edge.calibration.certificates import CertificateReport, write_certificates
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.errors import ArtifactError, ConfigError, GFTEdgeError
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.export.verify.with_checkpoint import verify_checkpoint
from gft_edge.manifest import GOLDEN, MODEL, register_files
from gft_edge.stats.agreement import Comparison, Computation, StageAgreement, compare, stage_agreement
from gft_edge.stats.certificates import NoiseBound, StageBound
from gft_edge.stats.verdict import Limits

NAMES = ["fp32-none", "fp32-compact", "int8-none", "int8-compact", "fp32-compact-full"]


@pytest.fixture(scope="module")
def batches(clear_images, tiny_model):
    """Images in two batches, with the classes the FP32 model gives as labels."""
    with torch.no_grad():
        labels = tiny_model(torch.from_numpy(clear_images)).argmax(dim=1).numpy()
    return [(clear_images[:8], labels[:8]), (clear_images[8:], labels[8:])]


@pytest.fixture
def with_golden(copied):
    """A copy of an artefact with some arrays of golden.npz replaced, removed (None) or added."""

    def change(name, **arrays):
        artifact = copied(name)
        with np.load(artifact.path / GOLDEN) as file:
            new = {**file, **arrays}
        np.savez(artifact.path / GOLDEN, **{key: value for key, value in new.items() if value is not None})
        return register_files(artifact, [GOLDEN])

    return change


class TestTrueArtefacts:
    @pytest.mark.parametrize("name", NAMES)
    def test_golden_outputs_are_reproduced(self, exported, name):
        report = verify_golden(exported(name))
        assert report.failures == ()
        assert report.passed
        assert report.source == "12 golden images"
        int8 = name.startswith("int8")
        assert [c.reference for c in report.comparisons] == ["torch fp32"] + ["torch int8"] * int8
        assert report.comparisons[0].top1_reference is report.comparisons[0].top1_candidate is None
        if int8:
            assert 15 < report.comparisons[0].logit_sqnr_db < 60
            assert report.comparisons[1].logit_sqnr_db > 60
        else:
            assert report.comparisons[0].max_relative_error < 1e-5

    @pytest.mark.parametrize("name", NAMES)
    def test_checkpoint_is_reproduced(self, exported, checkpoints, batches, name):
        artifact = exported(name)
        report = verify_checkpoint(artifact, checkpoints[artifact.manifest.precision], batches, "twelve images")
        assert report.failures == ()
        assert report.source == "twelve images"
        for comparison in report.comparisons:
            assert comparison.images == 12
            assert comparison.top1_reference == comparison.top1_agreement == comparison.top1_candidate == 1

    @pytest.mark.parametrize("name", ["fp32-none", "fp32-compact", "int8-none", "int8-compact"])
    def test_kept_patches_of_both_stages_are_compared_with_and_without_maps(self, exported, name):
        stages = verify_golden(exported(name)).comparisons[0].stages
        assert [s.stage for s in stages] == [0, 1]
        assert all(s.images == 12 and s.jaccard > 0.9 for s in stages)
        if name.startswith("fp32"):
            assert all(s.identical == 12 and s.jaccard == 1 and s.ties == 0 for s in stages)

    def test_report_is_plain_json(self, exported):
        data = verify_golden(exported("int8-none")).to_json()
        assert json.loads(json.dumps(data, allow_nan=False)) == json.loads(json.dumps(data))
        assert data["passed"] is True
        assert data["failures"] == ()
        assert data["backend"]["backend"] == "onnxruntime"
        assert data["model_sha256"] == exported("int8-none").manifest.files[MODEL].sha256

    def test_stricter_limits_fail(self, exported):
        limits = Limits(int8_sqnr_db=200, same_sqnr_db=300, int8_jaccard=1.1, int8_top1_agreement=1.1)
        failures = verify_golden(exported("int8-none"), limits=limits).failures
        assert len(failures) == 7
        assert all("limit" in failure for failure in failures)


class TestCertificates:
    @pytest.fixture
    def certified(self, checkpoints, tmp_path):
        """The INT8 checkpoint with a bound of the noise, as quantize leaves it."""

        def make(noise):
            folder = tmp_path / "checkpoint"
            shutil.copytree(checkpoints["int8"].path, folder)
            (folder / "calibration").mkdir()
            stages = (StageBound(0, 16, 12, 100, 1e-5, 0.0), StageBound(1, 12, 6, 100, noise, noise))
            report = CertificateReport("12-6", NoiseBound(stages))
            write_certificates(folder / "calibration/certificates.json", report)
            return load_checkpoint(folder)

        return make

    @pytest.mark.parametrize("name", ["int8-none", "int8-compact"])
    def test_images_are_certified_on_every_side(self, exported, certified, batches, name):
        report = verify_checkpoint(exported(name), certified(0.2), batches, "twelve images")
        assert report.failures == ()
        lines = [note for note in report.notes if "of 12 images are certain" in note]
        assert [line.partition(":")[0] for line in lines] == ["torch int8", "onnxruntime int8"]

    def test_a_graph_that_scores_fp16_values_has_no_certificates(self, exported, certified, batches):
        artifact = exported("int8-none")
        artifact = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, rest="fp16"))
        notes = verify_checkpoint(artifact, certified(0.2), batches, "twelve images").notes
        assert [note.partition(":")[0] for note in notes if "of 12 images are certain" in note] == ["torch int8"]
        assert any(note.startswith("onnxruntime int8: certificates are of scores from float32") for note in notes)

    def test_a_certified_image_that_keeps_other_patches_fails(self, edited, certified, batches):
        artifact = edited("int8-none", _scaled("pos_embed", -1.0))
        failures = verify_checkpoint(artifact, certified(1e-4), batches, "twelve images").failures
        told = [failure for failure in failures if "images certified to keep the patches" in failure]
        assert told[-1].startswith("onnxruntime int8: ")


def _scaled(name, factor, only=None):
    """Multiplies an initialiser (or one entry of it)."""

    def change(model):
        tensor = next(t for t in model.graph.initializer if t.name == f"model.{name}")
        value = numpy_helper.to_array(tensor).copy()
        value[() if only is None else only] *= factor
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    return change


def _shifted(name, amount):
    def change(model):
        tensor = next(t for t in model.graph.initializer if t.name == f"model.{name}")
        value = numpy_helper.to_array(tensor).copy()
        value.flat[0] += amount
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    return change


def _smallest_instead_of_largest(model):
    node = next(n for n in model.graph.node if n.op_type == "TopK" and n.name.startswith("node_topk"))
    next(a for a in node.attribute if a.name == "largest").i = 0


def _first_patches(model):
    """The first stage keeps patches 0 to 11 of every image."""
    graph = model.graph
    topk, *sort = [n for n in graph.node if n.op_type == "TopK"][
        : 2 if "kept_0" in {v.name for v in graph.output} else 1
    ]
    kept = sort[0].output[0] if sort else topk.output[1]
    at = list(graph.node).index(topk)
    graph.initializer.append(numpy_helper.from_array(np.arange(12, dtype=np.int64)[None], "first"))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    nodes = [
        onnx.helper.make_node("Shape", [topk.input[0]], ["rows"], start=0, end=1),
        onnx.helper.make_node("Concat", ["rows", "one"], ["tiles"], axis=0),
        onnx.helper.make_node("Tile", ["first", "tiles"], [kept]),
    ]
    for node in reversed(nodes):
        graph.node.insert(at, node)
    for node in (topk, *sort):
        graph.node.remove(node)


def _other_k(stage, k):
    """Gives the selection of a stage another k, and nothing else."""

    def change(model):
        name = [n for n in model.graph.node if n.op_type == "TopK"][stage].input[1]
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.array([k], np.int64), name))

    return change


class TestSeededFaults:
    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("fp32-none", _shifted("head.bias", 0.01)),
            ("fp32-compact", _shifted("blocks.0.mlp.fc1.bias", 0.05)),
            ("fp32-none", _scaled("blocks.0.norm1.weight", 1.5, only=3)),
            ("fp32-none", _scaled("blocks.1.attn.proj.bias", 1.01)),
            ("fp32-none", _scaled("norm.weight", -1, only=5)),
            ("int8-none", _scaled("blocks.0.mlp.fc2.weight_scale", 2)),
            ("int8-compact", _scaled("blocks.1.attn.proj.weight_scale", 2)),
            ("int8-none", _scaled("blocks.2.mlp.fc1.weight_scale", 2)),
            ("int8-none", _scaled("blocks.1.attn.qkv.input_scale", 64)),
            ("int8-none", _scaled("head.bias", -1)),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_changed_number_is_caught(self, edited, name, change):
        report = verify_golden(edited(name, change))
        assert report.failures
        assert not report.passed

    @pytest.mark.parametrize("name", ["fp32-none", "fp32-compact", "int8-compact"])
    def test_selecting_the_least_important_is_caught(self, edited, name):
        report = verify_golden(edited(name, _smallest_instead_of_largest))
        # Without maps, selections are found by what they are.
        assert any("stage 1 " in failure or "selections" in failure for failure in report.failures)

    @pytest.mark.parametrize("stage", [0, 1])
    @pytest.mark.parametrize("name", ["fp32-none", "int8-none"])
    def test_another_k_in_one_place_is_caught_without_a_traceback(self, edited, name, stage):
        artifact = edited(name, _other_k(stage, [11, 5][stage]))
        try:
            failures = verify_golden(artifact).failures
        except GFTEdgeError as error:  # the graph contradicts itself
            failures = str(error)
        assert failures

    @pytest.mark.parametrize("name", ["fp32-none", "int8-compact"])
    def test_selection_that_was_compiled_away_is_caught(self, edited, name):
        failures = verify_golden(edited(name, _first_patches)).failures
        if name.endswith("none"):
            assert "graph has 1 selections, its budget needs 2" in failures[0]
        assert failures

    @pytest.mark.parametrize("name", ["fp32-none", "int8-none"])
    def test_swapped_colours_are_caught(self, with_golden, clear_images, name):
        artifact = with_golden(name, images=np.ascontiguousarray(clear_images[:, ::-1]))
        assert verify_golden(artifact).failures

    def test_other_images_than_the_artefact_sees_are_caught(self, exported, checkpoints, batches):
        artifact = exported("fp32-none")
        checkpoint = checkpoints["fp32"]
        swapped = dataclasses.replace(checkpoint, model=_Swapped(checkpoint.model))
        report = verify_checkpoint(artifact, swapped, batches, "swapped")
        assert report.comparisons[0].max_relative_error > 1e-2
        assert report.failures

    def test_graph_of_another_budget_is_caught(self, copied, exported):
        artifact = copied("fp32-none")
        (artifact.path / MODEL).write_bytes((exported("fp32-compact-full").path / MODEL).read_bytes())
        failures = verify_golden(register_files(artifact, [MODEL])).failures
        assert any("graph has 0 selections, its budget needs 2" in failure for failure in failures)
        assert any("manifest: outputs logits" in failure for failure in failures)

    def test_logits_that_are_not_finite_are_caught(self, edited):
        report = verify_golden(edited("fp32-none", _scaled("head.bias", np.float32(np.nan), only=0)))
        assert "logits of 12 of 12 images are not finite" in report.failures[0]
        json.dumps(report.to_json(), allow_nan=False)

    def test_weights_of_another_checkpoint_are_refused(self, exported, tiny_config, tiny_info, make_model, tmp_path):
        save_checkpoint(tmp_path / "other", tiny_info, make_model(tiny_config, seed=1))
        artifact = exported("fp32-none")
        with pytest.raises(ArtifactError, match="was made from weights .*, checkpoint .* has .*; give the one"):
            verify_checkpoint(artifact, load_checkpoint(tmp_path / "other"), [], "nothing")

    def test_graph_changed_without_its_hash_is_refused(self, copied):
        artifact = copied("fp32-none")
        with (artifact.path / MODEL).open("ab") as file:
            file.write(b"\0")
        with pytest.raises(ArtifactError, match=r"model\.onnx was changed"):
            verify_golden(artifact)

    def test_unknown_backend_is_refused(self, exported):
        with pytest.raises(ConfigError, match="unknown backend 'tensorflow'"):
            verify_golden(exported("fp32-none"), ["tensorflow"])


class _Swapped(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, *arguments, **options):
        return self.model(images.flip(1), *arguments, **options)


class TestDamagedGolden:
    def test_changed_file_is_refused_by_its_hash(self, copied):
        artifact = copied("fp32-none")
        with (artifact.path / GOLDEN).open("ab") as file:
            file.write(b"\0")
        with pytest.raises(ArtifactError, match=r"golden\.npz was changed"):
            verify_golden(artifact)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda data: b"", id="empty"),
            pytest.param(lambda data: b"no archive at all", id="garbage"),
            pytest.param(lambda data: data[: len(data) // 2], id="cut off"),
            pytest.param(lambda data: data[:2000] + bytes(100) + data[2100:], id="wrong checksum"),
        ],
    )
    def test_unreadable_file_is_refused(self, copied, damage):
        artifact = copied("fp32-none")
        file = artifact.path / GOLDEN
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(ArtifactError, match=r"golden\.npz is damaged"):
            verify_golden(register_files(artifact, [GOLDEN]))

    @pytest.mark.parametrize("name", ["images", "logits", "kept_0", "scores_0"])
    def test_missing_array_is_refused(self, with_golden, name):
        artifact = with_golden("fp32-none", **{name: None})
        with pytest.raises(ArtifactError, match=r"golden\.npz is damaged"):
            verify_golden(artifact)

    def test_pickled_objects_are_refused(self, with_golden):
        artifact = with_golden("fp32-none", logits=np.array([{"a": 1}], dtype=object))
        with pytest.raises(ArtifactError, match=r"golden\.npz is damaged"):
            verify_golden(artifact)


def _reference(scores, kept):
    """One image: scores, kept positions."""
    return {"scores_0": np.array([scores], np.float32), "kept_0": np.array([kept])}


def _agreement(scores, kept, found, inputs=None):
    inputs = np.arange(len(scores)) if inputs is None else np.array(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return stage_agreement(_reference(scores, kept), {"kept_0": np.array([found])}, 0, inputs[None])


SCORES = [3.0, 2.0, 1.00001, 1.0, 0.5, -1.0]


class TestStageAgreement:
    @pytest.mark.parametrize(
        ("found", "jaccard"),
        [([0, 1, 2], 1.0), ([2, 1, 0], 1.0), ([0, 1, 4], 0.5), ([0, 4, 5], 0.2), ([3, 4, 5], 0.0)],
    )
    def test_jaccard_is_common_over_all(self, found, jaccard):
        assert _agreement(SCORES, [0, 1, 2], found).jaccard == pytest.approx(jaccard)

    def test_jaccard_is_averaged_over_images(self):
        reference = {"kept_0": np.array([[0, 1], [0, 1], [0, 1], [0, 1]]), "importance_0": np.full((4, 4), 0.25)}
        reference["importance_0"][:, :2] = 0.4
        candidate = {"kept_0": np.array([[0, 1], [0, 2], [2, 3], [1, 0]])}
        found = stage_agreement(reference, candidate, 0, np.broadcast_to(np.arange(4), (4, 4)))
        assert found == StageAgreement(0, pytest.approx((1 + 1 / 3 + 0 + 1) / 4), 2, 0, 4, reordered=1)

    def test_same_set_is_identical_and_no_tie(self):
        found = _agreement(SCORES, [0, 1, 2], [0, 1, 2])
        assert (found.identical, found.ties) == (1, 0)

    def test_equal_scores_at_the_boundary_are_a_tie(self):
        found = _agreement(SCORES, [0, 1, 2], [0, 1, 3])
        assert (found.identical, found.ties) == (0, 1)

    @pytest.mark.parametrize(
        "kept",
        [
            pytest.param([0, 1, 4], id="a clearly smaller score"),
            pytest.param([0, 2, 3], id="a clearly larger score left out"),
            pytest.param([0, 3, 4], id="a tie and more"),
        ],
    )
    def test_different_scores_are_no_tie(self, kept):
        found = _agreement(SCORES, [0, 1, 2], kept)
        assert (found.identical, found.ties) == (0, 0)

    @pytest.mark.parametrize(("gap", "ties"), [(5e-5, 1), (2e-4, 0), (1e-2, 0)])
    def test_boundary_of_float_noise(self, gap, ties):
        assert _agreement([2.0, 1.0, 1.0 - gap, -3.0], [0, 1], [0, 2]).ties == ties

    @pytest.mark.parametrize(
        "found",
        [pytest.param([0, 1], id="one too few"), pytest.param([0, 1, 1], id="twice the same")],
    )
    def test_patch_left_out_is_no_tie(self, found):
        assert _agreement(SCORES, [0, 1, 2], found).ties == 0

    def test_one_patch_too_many_is_no_tie(self):
        assert _agreement(SCORES, [0, 1, 2], [0, 1, 2, 3]).ties == 0

    def test_patch_that_does_not_enter_the_stage_is_no_tie(self):
        inputs = [1, 2, 4, 6, 8, 9]
        assert _agreement(SCORES, [1, 2, 4], [1, 2, 6], inputs).ties == 1
        assert _agreement(SCORES, [1, 2, 4], [1, 2, 7], inputs).ties == 0

    def test_float_noise_is_relative_to_the_spread_of_the_scores(self):
        scores = np.array([2.0, 1.0, 1.0 - 1e-3, -3.0])
        for factor, offset, ties in ((1, 0, 0), (1e-4, 0, 0), (1e3, 5, 0)):
            assert _agreement(list(factor * scores + offset), [0, 1], [0, 2]).ties == ties
        assert _agreement([100.0, 1.0, 1.0 - 1e-3, -100.0], [0, 1], [0, 2]).ties == 1

    def test_without_scores_no_difference_is_a_tie(self):
        reference = {"kept_0": np.array([[0, 1]]), "importance_0": np.full((1, 4), 0.25)}
        found = stage_agreement(reference, {"kept_0": np.array([[0, 2]])}, 0, np.arange(4)[None])
        assert (found.identical, found.ties) == (0, 0)

    def test_what_is_added_to_all_scores_ranks_nothing(self):
        sides = [{"kept_0": np.array([[0, 1]]), "scores_0": np.array([[4.0, 3.0, 2.0, 1.0]]) + c} for c in (0, 8)]
        found = stage_agreement(*sides, 0, np.arange(4)[None])
        assert (found.score_sqnr_db, found.rank_correlation) == (None, 1.0)
        sides[1]["scores_0"] = sides[1]["scores_0"] * [1, 1, 1, np.nan]
        found = stage_agreement(*sides, 0, np.arange(4)[None])
        assert found.not_finite == 1
        assert found.score_sqnr_db < 20


SIDES = (Computation("torch", "fp32", "a"), Computation("onnxruntime", "int8", "b"))


class TestCompare:
    LOGITS = np.array([[1.0, -4.0, 2.0], [3.0, 0.0, 1.0]], np.float32)

    def _compare(self, candidate, labels=None, **more):
        reference = {"logits": self.LOGITS, **more}
        return compare(SIDES, reference, {"logits": np.asarray(candidate, np.float32)}, labels, 4)

    def test_equal_logits_are_exact(self):
        found = self._compare(self.LOGITS)
        assert found == Comparison(
            "a",
            "b",
            2,
            None,
            0.0,
            1.0,
            None,
            None,
            (),
            backend="onnxruntime",
            arithmetic="int8",
            reference_backend="torch",
            reference_arithmetic="fp32",
            settled=2,
        )

    def test_error_is_relative_to_the_largest_logit(self):
        changed = self.LOGITS + np.array([[0, 0, 0.4], [0, 0, 0]], np.float32)
        found = self._compare(changed)
        assert found.max_relative_error == pytest.approx(0.1)
        assert found.logit_sqnr_db == pytest.approx(10 * np.log10(31 / 0.16), rel=1e-5)

    def test_classes_are_compared_with_each_other_and_with_the_labels(self):
        found = self._compare([[5, 0, 0], [5, 0, 0]], np.array([2, 1]))
        assert (found.top1_agreement, found.top1_reference, found.top1_candidate) == (0.5, 0.5, 0.0)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_logits_that_are_not_finite_are_counted_and_taken_as_zero(self, value):
        found = self._compare([[value, 0, 0], self.LOGITS[1]])
        assert found.not_finite == 1
        assert found.max_relative_error == 1
        assert 0 < found.logit_sqnr_db < 4

    def test_later_stages_are_scored_on_what_the_earlier_ones_kept(self):
        reference = {
            "logits": self.LOGITS[:1],
            "kept_0": np.array([[1, 2, 3]]),
            "scores_0": np.array([[0.1, 0.3, 0.3, 0.3]]),
            "kept_1": np.array([[2, 3]]),
            "scores_1": np.array([[0.3, 0.3, 0.4]]),
        }
        candidate = {**reference, "kept_1": np.array([[1, 3]])}
        stages = compare(SIDES, reference, candidate, None, 4).stages
        assert [(s.jaccard, s.identical, s.ties) for s in stages] == [(1.0, 1, 0), (pytest.approx(1 / 3), 0, 1)]

    def test_logits_of_an_image_with_a_tie_are_not_held_against_float_rounding(self):
        """The other images still are, and so is an image that keeps a patch of another score."""
        reference = {
            "logits": np.array([[1.0, 0.0], [2.0, 0.0]]),
            "kept_0": np.array([[0, 1], [0, 1]]),
            "scores_0": np.array([[0.5, 0.3, 0.3, 0.0], [0.5, 0.3, 0.3, 0.0]]),
        }
        candidate = {"logits": np.array([[1.5, 0.0], [2.0, 0.0]]), "kept_0": np.array([[0, 2], [0, 1]])}
        assert compare(SIDES, reference, candidate, None, 4).max_relative_error == 0
        candidate["logits"] = np.array([[1.5, 0.0], [2.2, 0.0]])
        assert compare(SIDES, reference, candidate, None, 4).max_relative_error == pytest.approx(0.1)
        candidate["kept_0"] = np.array([[0, 3], [0, 1]])
        assert compare(SIDES, reference, candidate, None, 4).max_relative_error == pytest.approx(0.25)

    def test_stages_the_candidate_does_not_tell_are_left_out(self):
        more = {"kept_0": np.array([[0, 1]] * 2), "importance_0": np.full((2, 4), 0.25)}
        assert self._compare(self.LOGITS, **more).stages == ()
