"""The check of both ends of the dependencies: what it selects exists, and a failure is told as one."""

from pathlib import Path

import compatibility
import pytest

ROOT = Path(__file__).parents[2]
REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


def test_selected_tests_exist():
    for path, _, name in (test.partition("::") for tests in compatibility.TESTS.values() for test in tests):
        assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).is_file()


@pytest.mark.parametrize(
    ("counts", "code", "words"),
    [
        ((5, 0, 0, 0), 0, "5 passed"),
        ((5, 0, 0, 2), 0, "3 passed, 2 skipped"),
        ((5, 1, 1, 1), 1, "FAILED: 2 passed, 1 skipped, 2 failed"),
        ((0, 0, 0, 0), 5, "FAILED: 0 passed"),
        ((3, 0, 0, 0), 3, "FAILED: 3 passed"),
    ],
)
def test_counts_of_a_report(tmp_path, counts, code, words):
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(*counts))
    assert compatibility.counted(report, code) == words


def test_a_run_without_a_report_failed(tmp_path):
    assert compatibility.counted(tmp_path / "none.xml", 4) == "FAILED: no test ran (code 4)"


def test_the_page_is_of_the_bounds_in_force():
    text = (ROOT / "docs/compatibility.md").read_text()
    project = compatibility.loads_toml((ROOT / "pyproject.toml").read_text())["project"]
    for name, one in compatibility.floors(project, compatibility.EXTRAS).items():
        assert one.marker is not None or f"| {name} | {one.specifier} |" in text, "run make deps-check"
