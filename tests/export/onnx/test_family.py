"""Several token budgets in one artefact: one file of weights, one manifest, each graph as if exported alone."""

import shutil

import numpy as np
import onnx
import pytest

from gft_edge.budget import TokenBudget
from gft_edge.cli.main import main
from gft_edge.errors import ArtifactError
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.manifest import MANIFEST, MODEL, WEIGHTS, load_artifact, register_files
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.classifier import Classifier

BUDGETS = (TokenBudget((12, 6), 16), TokenBudget((8, 4), 16), TokenBudget((16, 16), 16))


COMPACT = GraphOptions("compact")


@pytest.fixture(scope="module", params=[("fp32", BUDGETS[:2]), ("int8", BUDGETS)], ids=["fp32", "int8"])
def family(request, exported_once):
    """Precision, budgets and family."""
    precision, budgets = request.param
    return precision, budgets, exported_once(precision, COMPACT, budgets)


def test_every_member_gives_what_its_own_artefact_gives(family, exported_once, clear_images):
    precision, budgets, artifact = family
    for budget in budgets:
        alone = exported_once(precision, COMPACT, (budget,))
        member = load_artifact(f"{artifact.path}@{budget.id}")
        assert member.manifest.budget == budget
        assert member.manifest.outputs == alone.manifest.outputs
        expected, found = open_session(alone)(clear_images), open_session(member)(clear_images)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert np.array_equal(value, found[name]), name
        assert precision != "fp32" or verify_golden(member).passed


def test_weights_are_stored_once(family, exported_once):
    precision, budgets, artifact = family
    alone = exported_once(precision, COMPACT, budgets[:1]).path / MODEL
    graphs = sum(path.stat().st_size for path in artifact.path.glob("*.onnx"))
    assert (artifact.path / WEIGHTS).stat().st_size + graphs < 2 * alone.stat().st_size
    largest = max(onnx.load(alone).graph.initializer, key=lambda t: np.prod(t.dims))
    for path in artifact.path.glob("*.onnx"):
        (shared,) = (t for t in onnx.load(path, load_external_data=False).graph.initializer if t.name == largest.name)
        assert not shared.raw_data
        assert {e.key for e in shared.external_data} == {"location", "offset", "length"}


def test_the_same_flags_give_the_same_files(checkpoints, exported_once, clear_images, tmp_path):
    artifact = exported_once("fp32", COMPACT, BUDGETS[:2])
    again = export_artifact(checkpoints["fp32"], tmp_path / "again", clear_images, BUDGETS[:2], COMPACT)
    for name, info in again.manifest.files.items():
        assert name.startswith("golden") or info == artifact.manifest.files[name], name


def test_reports_of_members_stand_side_by_side(family, tmp_path):
    _, _, artifact = family
    copy = load_artifact(shutil.copytree(artifact.path, tmp_path / "copy"))
    for budget in BUDGETS[:2]:
        assert main(["verify", f"{copy.path}@{budget.id}"]) in (0, 1)
    found = load_artifact(copy.path)
    assert {"reports/verify.json", "reports/verify-8-4.json"} <= found.manifest.files.keys()
    assert (found.manifest.budget, found.manifest.family) == (BUDGETS[0], artifact.manifest.family)
    assert Classifier.open(f"{copy.path}@8-4").predict([np.zeros((40, 40, 3), np.uint8)])[0].kept[-1].sum() == 4


def test_a_member_that_is_not_there_is_refused(family):
    _, budgets, artifact = family
    known = ", ".join(sorted(budget.id for budget in budgets))
    with pytest.raises(ArtifactError, match=f"has no graph of budget 9-9; there are: {known}"):
        load_artifact(f"{artifact.path}@9-9")


def test_changed_weights_are_refused_for_every_graph(family, tmp_path):
    _, _, artifact = family
    path = shutil.copytree(artifact.path, tmp_path / "copy")
    data = bytearray((path / WEIGHTS).read_bytes())
    data[7] ^= 1
    (path / WEIGHTS).write_bytes(data)
    for name in (path, f"{path}@8-4"):
        with pytest.raises(ArtifactError, match=r"weights\.bin was changed"):
            open_session(load_artifact(name))


def test_registering_for_a_member_keeps_the_whole_manifest(family, tmp_path):
    _, _, artifact = family
    path = shutil.copytree(artifact.path, tmp_path / "copy")
    before = (path / MANIFEST).read_text()
    register_files(load_artifact(f"{path}@8-4"), [])
    assert (path / MANIFEST).read_text() == before


def test_plans_of_members_name_engines_of_their_own(family, capsys):
    _, _, artifact = family
    for member, engine in (("", f"{artifact.path}.engine"), ("@8-4", f"{artifact.path}@8-4.engine")):
        assert main(["build", f"{artifact.path}{member}", "--target", "orin-nano", "--tensorrt", "10.3", "--plan"]) == 0
        model = load_artifact(f"{artifact.path}{member}").file(MODEL)
        assert f"trtexec --onnx={model} --saveEngine={engine} " in capsys.readouterr().out
