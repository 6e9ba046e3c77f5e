from __future__ import annotations

import json

import numpy as np
import pytest

from gft_edge.budget import TokenBudget
from gft_edge.calibration.certificates import certificate_report, halves, read_bound, write_certificates
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.calibration.safety import paired_outputs
from gft_edge.errors import ArtifactError

BUDGET = TokenBudget((12, 6), 16)


@pytest.fixture(scope="module")
def sides(tiny_model):
    images = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)
    return paired_outputs(tiny_model, quantize_int8(tiny_model, [images]).model, [images[:24], images[24:]])


@pytest.fixture(scope="module")
def report(sides):
    return certificate_report(*halves(sides), BUDGET, "these", "those")


def test_one_half_bounds_and_the_other_tests(report, sides):
    first = report.bound.stages[0]
    assert (first.stage, first.patches, first.kept, first.images) == (0, 16, 12, 20)
    assert report.check.images == 20
    assert report.bound.stages[0].noise < 1e-4 < report.bound.stages[1].noise, (
        "the first scores come before any rounding"
    )
    again = certificate_report(*halves(sides, seed=1), BUDGET)
    assert (again.check.certified, again.check.certain) != (report.check.certified, report.check.certain), (
        "other halves"
    )
    line = report.describe()
    assert line.startswith(f"certificates: {report.check.certified} of 20 images are certain")
    assert "bound from these, covers" in line
    assert "\n" not in line


def test_nothing_to_certify_is_told(sides):
    full = TokenBudget.full(2, 16)
    assert certificate_report(sides, sides, full).describe() == "certificates: none, the model drops no patches"
    one = tuple({name: values[:1] for name, values in side.items()} for side in sides)
    assert certificate_report(*halves(one), BUDGET).problem == "there is one image, and the bound needs others"
    other = {**sides[1], "kept_0": (sides[1]["kept_0"] + 1) % 16}
    lost = certificate_report((sides[0], other), sides, BUDGET)
    assert lost.problem == "no image keeps the same patches before stage 2; nothing can be certified"
    assert lost.to_json()["bound"] is None


def test_the_file_is_read_at_its_budget_alone(report, tmp_path):
    path = tmp_path / "certificates.json"
    assert read_bound(path, BUDGET) is None
    write_certificates(path, report)
    assert read_bound(path, BUDGET) == report.bound
    assert read_bound(path, TokenBudget((12, 8), 16)) is None
    path.write_text(path.read_text().replace('"images": 20', '"images": 2000'))
    with pytest.raises(ArtifactError, match="was changed since it was written"):
        read_bound(path, BUDGET)


def test_a_file_of_another_form_is_refused(report, tmp_path):
    from gft_edge.storage.seals import write_sealed

    data = json.loads(json.dumps(report.to_json()))
    write_sealed(tmp_path / "c.json", {**data, "bound": {"stages": 3}})
    with pytest.raises(ArtifactError, match=r"c\.json: malformed .*quantize again"):
        read_bound(tmp_path / "c.json", BUDGET)
