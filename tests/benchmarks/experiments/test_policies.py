"""The table of policies on a tiny model, its statistics against independent ones, outliers, and the page."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gft_edge.benchmarks.experiments.backbone import policies
from gft_edge.benchmarks.experiments.backbone.outliers import outliers
from gft_edge.benchmarks.experiments.backbone.page import markdown
from gft_edge.benchmarks.experiments.backbone.policies import (
    Calibration,
    ComparisonImages,
    RowFolder,
    kinds_alone,
    layer_macs,
    measure_rows,
    with_all_patches,
)
from gft_edge.benchmarks.experiments.backbone.power import ALLOWED_LOSS, POWER, detection_power, images_for
from gft_edge.benchmarks.experiments.backbone.schemes import (
    SMOOTHED,
    QuantScheme,
    keeping_high,
    main_schemes,
    other_schemes,
)
from gft_edge.benchmarks.measuring.protocol import conditions
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.errors import ArtifactError
from gft_edge.preprocess import PreprocessSpec

SPEC = PreprocessSpec(32, 32)
IDENTITY = {"model": "m", "images": 24}
DEFAULT, OTHERS = QuantScheme("default", "INT8, default", SMOOTHED, "mse"), other_schemes()


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((8, 3, 32, 32), dtype=np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def calibration(tiny_model, batches):
    return Calibration(tiny_model, lambda: batches)


@pytest.fixture(scope="module")
def test_images():
    rng = np.random.default_rng(1)
    return ComparisonImages(SPEC, rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), rng.integers(0, 4, 24))


def test_one_pass_gives_each_method_its_ranges(calibration, tiny_model, batches):
    for scheme in (*main_schemes(keeping_high("blocks.0.mlp.fc1"), tiny_model.config), *OTHERS):
        expected = quantize_int8(tiny_model, batches, scheme.policy, scheme.method, scheme.share).model
        x = torch.from_numpy(batches[0])
        with torch.no_grad():
            assert torch.equal(calibration.quantized(scheme)(x), expected(x)), scheme.key


@pytest.fixture(scope="module")
def measured(calibration, test_images, tmp_path_factory):
    """The folder of one row, the row, and what was said."""
    out, said = tmp_path_factory.mktemp("rows"), []
    folder = RowFolder(out, IDENTITY)
    return out, measured_row(calibration, test_images, DEFAULT, folder, said), said


def measured_row(calibration, images, scheme, folder, said):
    def reference():
        return folder.reference(calibration.model, images)

    return measure_rows(calibration, images, [scheme], folder, reference, said.append)


def test_row_compares_the_exported_graphs(measured, calibration, test_images):
    _, (row,), said = measured
    comparison, top1 = row["comparison"], row["comparison"]["top1"]
    assert comparison["images"] == 24 and len(comparison["stages"]) == 2 and row["layers"] == 12
    with torch.no_grad():
        x = torch.from_numpy(np.concatenate(list(test_images.batches())))
        reference, found = calibration.model(x).numpy(), calibration.quantized(DEFAULT)(x).numpy()
    assert comparison["logit_sqnr_db"] == pytest.approx(policies.sqnr_db(reference, found), abs=0.5)
    assert comparison["top1_reference"] == (reference.argmax(1) == test_images.labels).mean()
    assert top1["difference"] == pytest.approx(comparison["top1_candidate"] - comparison["top1_reference"])
    assert len(said) == 1 and said[0].startswith("INT8, default: top-1")


def test_costs_are_those_of_the_graph(measured, calibration):
    costs = measured[1][0]["costs"]
    counted = layer_macs(calibration.model, np.zeros((2, 3, 32, 32), np.float32))
    names = policies.quantized_names(calibration.model, DEFAULT.policy)
    assert (costs["products"], costs["quantize"], costs["dequantize"]) == (12, 12, 24)
    assert costs["all_products"] > 12 and 0 < costs["bytes"] < costs["fp32_bytes"]
    assert costs["quantized_macs"] == sum(counted[name] for name in names) / sum(counted.values())
    assert costs["latency"][1] <= costs["latency"][0] <= costs["latency"][2]


def test_rows_are_kept_and_belong_to_one_model(measured, calibration, test_images, monkeypatch):
    out, rows, said = measured
    monkeypatch.setattr(policies, "exported", None)
    again = measured_row(calibration, test_images, DEFAULT, RowFolder(out, IDENTITY), said)
    assert again == json.loads(json.dumps(rows)) and len(said) == 1
    other = dataclasses.replace(DEFAULT, policy=keeping_high("*.mlp.fc2"))
    for chosen, identity in ((DEFAULT, {**IDENTITY, "model": "n"}), (other, IDENTITY)):
        with pytest.raises(ArtifactError, match=r"default\.json: is of another model, images or policy"):
            measured_row(calibration, test_images, chosen, RowFolder(out, identity), said)


def test_layers_kept_high_are_left_out(calibration):
    names = policies.quantized_names
    everything, fewer = (names(calibration.model, policy) for policy in (DEFAULT.policy, keeping_high("*.mlp.fc2")))
    assert set(everything) - set(fewer) == {f"blocks.{i}.mlp.fc2" for i in range(3)}


def test_power_is_that_of_simulated_tests():
    images, share = 4000, 0.02
    rng = np.random.default_rng(0)
    counts = rng.multinomial(images, [share / 2, share / 2, 1 - share], size=4000)
    difference = (counts[:, 1] - counts[:, 0]) / images
    error = np.sqrt((counts[:, 0] + counts[:, 1]) / images - difference**2) / np.sqrt(images)
    shown = (difference - 1.96 * error > -ALLOWED_LOSS).mean()
    assert detection_power(40, 40, images) == pytest.approx(shown, abs=0.03)
    assert detection_power(0, 0, images) == 1.0


def test_images_for_reach_the_power_asked():
    for discordant in (0, 5, 30):
        count = images_for(discordant, 1000)
        expected = round((discordant + 1) / 1002 * count)
        assert detection_power(0, expected, count) == pytest.approx(POWER, abs=0.01 if discordant else 0.1)


@pytest.mark.parametrize(
    ("lost", "gained", "images", "sqnr", "jaccard", "target"),
    [
        (5, 5, 6000, 25.0, 0.96, "met"),
        (5, 5, 6000, 25.0, 0.94, "missed"),
        (5, 5, 6000, 23.9, 0.96, "missed"),
        (5, 5, 6000, None, None, "met"),
        (80, 20, 6000, 25.0, 0.96, "missed"),
        (10, 5, 400, 25.0, 0.96, "undecided"),
        (10, 5, 400, 15.0, 0.96, "missed"),
    ],
)
def test_verdict_needs_accuracy_sqnr_and_selection(lost, gained, images, sqnr, jaccard, target):
    labels = np.zeros(images, dtype=int)
    ours, theirs = labels.copy(), labels.copy()
    theirs[:lost] = 1
    ours[lost : lost + gained] = 1
    top1 = policies_top1(ours, theirs, labels)
    stages = () if jaccard is None else (SimpleNamespace(jaccard=1.0), SimpleNamespace(jaccard=jaccard))
    comparison = dataclasses.replace(EMPTY, images=images, top1=top1, logit_sqnr_db=sqnr, stages=stages)
    assert policies.row(DEFAULT, comparison, 1, {})["target"] == target


def policies_top1(ours, theirs, labels):
    from gft_edge.stats.paired import paired_top1

    return paired_top1(ours, theirs, labels)


EMPTY = policies.Comparison("FP32", "x", 1, None, 0.0, 1.0, 1.0, 1.0, ())


def test_outliers_are_those_of_the_layer_inputs(tiny_model, batches):
    rows = outliers(tiny_model, batches)
    name = "blocks.1.mlp.fc2"
    seen: list[torch.Tensor] = []
    handle = tiny_model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs()))
    with torch.no_grad():
        for batch in batches:
            tiny_model(torch.from_numpy(batch))
    handle.remove()
    x = torch.cat([part.flatten(0, -2) for part in seen])
    row = next(row for row in rows if row["layer"] == name)
    assert row["largest"] == pytest.approx(float(x.max()))
    assert row["p99.9"] == pytest.approx(np.percentile(x.numpy(), 99.9, method="higher"), rel=2e-3)
    assert row["ratio"] == pytest.approx(row["largest"] / row["p99.9"])
    assert row["channel_ratio"] == pytest.approx(float(x.max() / x.amax(dim=0).median()))


def test_kinds_cover_every_quantized_layer_once(calibration, batches):
    rows = kinds_alone(calibration, batches)
    assert sum(row["layers"] for row in rows) == len(policies.quantized_names(calibration.model, DEFAULT.policy))
    assert all(10 < row["sqnr_db"] < 80 for row in rows)


def test_all_patches_leave_the_arithmetic_alone(calibration, batches):
    (row,) = with_all_patches(calibration, batches, [DEFAULT])
    model, x = calibration.quantized(DEFAULT), torch.from_numpy(np.concatenate(batches))
    with torch.no_grad():
        for key, budget in (("sqnr_db", None), ("all_patches_sqnr_db", calibration.model.config.full_budget)):
            expected = policies.sqnr_db(calibration.model(x, budget).numpy(), model(x, budget).numpy())
            assert row[key] == pytest.approx(expected, abs=0.1)
    assert row["all_patches_sqnr_db"] > row["sqnr_db"]


def test_page_says_what_was_measured(measured, tiny_model, batches, tiny_config):
    row = measured[1][0]
    found = outliers(tiny_model, batches)
    data = {
        "machine": conditions(),
        "model": tiny_config.to_json(),
        "training": {"recipe": {"steps": 7, "batch_size": 3}},
        "classes": 4,
        "sizes": {"calibration": 16, "outliers": 16, "least": 8, "most": 24},
        "pilot": row["comparison"]["top1"],
        "images": 24,
        "rows": [row, {**row, "title": "lost one", "target": "missed"}],
        "builtin": [],
        "repair": {"raised": [{"name": "blocks.0.mlp.fc2", "score_noise": 0.25, "logit_noise": 0.125, "macs": 0.0625}]},
        "outliers": {"fine-tuned": found, "random weights": found},
        "kinds": [{"kind": "fc1", "layers": 3, "sqnr_db": 31.44}],
        "titles": {"default": "INT8, default"},
        "not_measured": ["FP8 of a kind"],
        "selection": [{"key": "default", "sqnr_db": 20.04, "all_patches_sqnr_db": 33.36}],
    }
    text = markdown(json.loads(json.dumps(data)))
    lines = text.splitlines()
    assert f"## Default recipe: {row['target']}" in text.replace("**", "")
    assert "fine-tuned for 7 steps of 3 images on 4 typefaces" in text
    assert next(line for line in lines if line.startswith("| lost one")).endswith("| **missed** |")
    assert f"{row['comparison']['logit_sqnr_db']:.1f}" in next(
        line for line in lines if line.startswith("| INT8, default")
    )
    assert "| blocks.0.mlp.fc2 | 25.0% | 12.5% | 6.2% |" in lines
    assert next(line for line in lines if line.endswith("| 12 | 24 |")).count("| 12 of ") == 1
    bare = markdown(json.loads(json.dumps({**data, "outliers": None, "kinds": [], "selection": [], "repair": None})))
    assert "## Outliers" not in bare and "raised" not in bare
    assert "Not measured: FP8 of a kind." in text
    assert "| fc1 | 3 | 31.4 |" in lines
    assert "| INT8, default | 20.0 | 33.4 |" in lines
