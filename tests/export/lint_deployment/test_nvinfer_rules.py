"""Every rule of nvinfer finds a bad configuration and names key and line; good ones have no finding."""

import os
import re

import onnx
import pytest

from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.lint_deployment.linter import NVINFER_RULES, lint_deployment

from .nvinfer_cases import BAD, BASE, GOOD, SEVERAL
from .served import classifier, write_artifact


@pytest.fixture
def written(tmp_path):
    """Writes the files of a case; returns the configuration."""

    def write(case):
        model = classifier(**case.graph)
        if case.manifest is None:
            onnx.save(model, tmp_path / "model.onnx")
        else:
            write_artifact(tmp_path, model, **case.manifest)
        (tmp_path / "labels.txt").write_bytes(case.labels.encode())
        keys = {key: value for key, value in {**BASE, **case.keys}.items() if value is not None}
        lines = ["# a comment", "[property]", *(f"{key}={value}" for key, value in keys.items()), case.more]
        (tmp_path / "config.txt").write_text("\n".join(lines))
        return tmp_path / "config.txt"

    return write


def name(case):
    return f"{case.rule}-{case.key}-{case.words}" if case.rule else "good"


@pytest.mark.parametrize("case", BAD, ids=name)
def test_a_bad_configuration_is_found(written, case):
    path = written(case)
    report = lint_deployment(path)
    assert [finding.rule for finding in report.findings] == [case.rule]
    found = report.findings[0]
    assert found.key == case.key
    assert case.words.replace("\\\\", "\\") in found.message
    assert found.instead
    lines = found.file.read_bytes().decode().split("\n")
    if found.line and found.file == path:
        assert re.match(rf"{re.escape(found.key)}=|process-mode|network-type|\[", lines[found.line - 1])
    else:
        assert case.keys.get(case.key) is None or found.file != path


@pytest.mark.parametrize("case", GOOD)
def test_a_good_configuration_has_no_finding(written, case):
    assert lint_deployment(written(case)).findings == ()


@pytest.mark.parametrize("case", SEVERAL, ids=name)
def test_a_fault_that_breaks_two_rules(written, case):
    found = lint_deployment(written(case)).findings
    assert {finding.rule for finding in found} == set(case.rule.split())
    assert any(finding.key == case.key and case.words in finding.message for finding in found)


def test_an_engine_that_is_older_than_its_graph_is_found(written):
    path = written(GOOD[0])
    engine = path.parent / BASE["model-engine-file"]
    engine.write_bytes(b"")
    assert lint_deployment(path).findings == ()
    os.utime(engine, (1, 1))
    assert [finding.rule for finding in lint_deployment(path).findings] == ["DS056"]


def test_every_rule_has_a_case():
    tried = {rule for case in (*BAD, *SEVERAL) for rule in case.rule.split()} | {"DS056"}
    assert tried == {rule.id for rule in NVINFER_RULES}


def test_a_file_without_properties_is_no_configuration(tmp_path):
    (tmp_path / "notes.txt").write_text("batch-size is 8\n")
    with pytest.raises(ConfigError, match=r"notes\.txt: has no line \[property\]"):
        lint_deployment(tmp_path / "notes.txt")


def test_a_truncated_graph_is_refused(written):
    path = written(GOOD[0])
    model = path.parent / "model.onnx"
    model.write_bytes(model.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"graph .*model\.onnx"):
        lint_deployment(path)
