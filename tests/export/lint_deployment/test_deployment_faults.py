"""Every seeded fault of a deployment is refused or named, clean bundles have no finding, and the pages say so."""

import os
from pathlib import Path

import pytest

from gft_edge.cli.main import main
from gft_edge.export.lint_deployment.linter import DEPLOYMENT_RULES, lint_deployment
from gft_edge.export.lint_deployment.page import rules_page

from .clean_bundles import CLEAN, clean_bundle
from .faults import FAULTS, REFUSED, judge, page

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.bundle}-{fault.name}")
def test_a_fault_is_refused_or_named(fault, tmp_path):
    refusal, found = judge(fault, tmp_path)
    if fault.found == REFUSED:
        assert fault.place in refusal
        assert "\n" not in refusal
    else:
        assert refusal == ""
        assert (fault.found, fault.place) in [(rule, key) for rule, key, _ in found]


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_bundle_has_no_finding(name):
    assert lint_deployment(clean_bundle(name)).findings == ()


def test_there_are_enough_faults_and_rules():
    assert len(FAULTS) >= 40
    assert len({rule.id for rule in DEPLOYMENT_RULES}) == len(DEPLOYMENT_RULES) >= 15


@pytest.mark.parametrize(("name", "text"), [("deployment_faults.md", page()), ("lint_deployment.md", rules_page())])
def test_the_page_is_that_of_the_table(name, text):
    if os.environ.get("GFT_EDGE_WRITE_PAGES"):
        (DOCS / name).write_text(text, encoding="utf-8")
    assert (DOCS / name).read_text(encoding="utf-8") == text


def test_the_verb_checks_a_bundle_and_its_graph(tmp_path, capsys):
    bundle = clean_bundle("deepstream")
    assert main(["lint", str(bundle)]) == 0
    assert "errors" in capsys.readouterr().out
    tampered = next(fault for fault in FAULTS if fault.name == "one bit of the configuration")
    judge(tampered, tmp_path / "tampered")
    assert main(["lint", str(tmp_path / "tampered/bundle")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "was changed since the bundle was made" in err
    fault = next(fault for fault in FAULTS if fault.name == "labels one per line")
    judge(fault, tmp_path)
    assert main(["lint", str(tmp_path / "bundle")]) == 1
    out = capsys.readouterr().out
    assert "labels.txt:2: error DS011: labelfile-path: has 4 lines" in out
    assert "instead: all 4 labels in one line" in out


def test_the_verb_checks_a_configuration_alone(tmp_path, capsys):
    bundle = clean_bundle("triton")
    assert main(["lint", str(bundle / "models/gft_12-6/config.pbtxt")]) == 0
    (tmp_path / "notes.txt").write_text("nothing\n")
    assert main(["lint", str(tmp_path / "notes.txt")]) == 2
    assert "no line [property]" in capsys.readouterr().err
