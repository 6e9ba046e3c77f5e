"""A family behind a governor, on ONNX Runtime."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gft_edge.benchmarks.experiments import governor as study
from gft_edge.budget import TokenBudget
from gft_edge.bundle import ARTIFACT, write_record
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.governed import FamilySessions, GovernedClassifier
from gft_edge.runtime.governor import GovernorOptions

LARGE, SMALL = "12-6", "8-4"
LATENCIES = {SMALL: 1e3, LARGE: 2e3}
"""Far above those of this model, so that the governor sees no slow machine."""


@pytest.fixture(scope="module")
def family(exported_once):
    return exported_once("fp32", GraphOptions("compact"), (TokenBudget((12, 6), 16), TokenBudget((8, 4), 16))).path


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def test_budgets_follow_deadline_heat_and_power_mode(family, frame):
    governed = GovernedClassifier.open(family, GovernorOptions(power_limits={"7W": SMALL}), LATENCIES, threads=1)
    assert governed.sessions.opened == ()
    conditions = ((9e3, None, None, LARGE), (1.5e3, None, None, SMALL), (9e3, 99, None, SMALL), (9e3, 40, "7W", SMALL))
    for deadline, temperature, mode, expected in conditions:
        budget, prediction = governed.predict(frame, deadline, temperature, mode)
        assert budget == expected
        (alone,) = Classifier.open(f"{family}@{budget}").predict([frame])
        assert prediction.label == alone.label
        np.testing.assert_allclose(prediction.logits, alone.logits, rtol=1e-4, atol=1e-5)
        assert [mask.sum() for mask in prediction.kept] == list(map(int, budget.split("-")))
    assert governed.sessions.opened == (LARGE, SMALL)
    assert governed.governor.slowdown < 1.01


def test_sessions_open_when_they_are_needed(family, frame):
    governed = GovernedClassifier.open(family, latencies_ms=LATENCIES, threads=1)
    governed.predict(frame, 9e3)
    assert governed.sessions.opened == (LARGE,)
    first = governed.sessions.classifier(LARGE)
    assert first is governed.sessions.classifier(LARGE)
    assert first.session.options["shared"] is True
    whole = FamilySessions.open(family, threads=1, share_memory=False)
    assert whole.classifier(LARGE).session.options["shared"] is False


def test_latencies_are_measured_when_none_are_given(family, frame):
    governed = GovernedClassifier.open(family, threads=1)
    assert governed.governor.budgets == (LARGE, SMALL) == governed.sessions.opened
    assert all(governed.governor.expected_ms(budget) > 0 for budget in (LARGE, SMALL))
    assert governed.predict(frame, 1e6)[0] == LARGE
    assert set(governed.sessions.measure_ms(frame, runs=1)) == {LARGE, SMALL}


def test_a_bundle_is_opened_as_its_artefact(family, frame, tmp_path):
    shutil.copytree(family, tmp_path / ARTIFACT)
    write_record(tmp_path, "onnxruntime")
    assert GovernedClassifier.open(tmp_path, latencies_ms=LATENCIES, threads=1).predict(frame, 1.5e3)[0] == SMALL
    shutil.rmtree(tmp_path / ARTIFACT)
    with pytest.raises(ArtifactError):
        FamilySessions.open(tmp_path)


def test_an_artefact_with_one_budget_is_a_family_of_one(exported_once, frame):
    governed = GovernedClassifier.open(exported_once("fp32", GraphOptions("compact")).path, threads=1)
    assert governed.predict(frame, 1e-3)[0] == LARGE


def test_what_is_refused(family):
    with pytest.raises(ConfigError, match=r"give the folder"):
        FamilySessions.open(f"{family}@{SMALL}")
    with pytest.raises(ConfigError, match=r"latencies are of 8-4, the family has 12-6, 8-4"):
        GovernedClassifier.open(family, latencies_ms={SMALL: 1.0})
    with pytest.raises(ConfigError, match=r"no budget '9-9'"):
        FamilySessions.open(family).classifier("9-9")
    with pytest.raises(ConfigError, match=r"has no setting 'cuda_graph'"):
        FamilySessions.open(family, "onnxruntime,cuda_graph=on").classifier(SMALL)


def test_the_program_of_the_page_runs(family, capsys):
    page = (Path(__file__).parents[3] / "docs/governor.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    for shown, used in (("runs/family", str(family)), ("48-24-24", SMALL), ("range(90)", "range(3)"), ("=33", "=1e6")):
        assert shown in program
        program = program.replace(shown, used)
    exec(compile(program, "docs/governor.md", "exec"), {})
    assert capsys.readouterr().out.split()[0] == LARGE


def test_the_recorded_run_goes_down_with_heat(family, capsys):
    data = study.trace(family, frames=60)
    rows = data["rows"]
    assert [row["frame"] for row in rows] == list(range(60))
    assert {row["budget"] for row in rows if row["celsius"] >= 95} == {SMALL}
    assert sum(row["load"] for row in rows) == 8
    assert LARGE in study.figure({**data, "budgets": [LARGE, SMALL]})
    study.print_memory(str(family), "1", SMALL)
    assert int(capsys.readouterr().out)
