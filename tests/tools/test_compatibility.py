"""The check of both ends of the dependencies: what it selects exists, and a failure is told as one."""

from pathlib import Path

import compatibility

ROOT = Path(__file__).parents[2]


def test_selected_tests_exist():
    for path, _, name in (test.partition("::") for tests in compatibility.TESTS.values() for test in tests):
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text() if name else (ROOT / path).is_file()


CASE = '<testcase classname="{}" name="x">{}</testcase>'


def test_counts_of_a_report(tmp_path):
    cases = [
        ("tests.calibration.test_ptq", ""),
        ("tests.calibration.test_ptq.TestClass", "<skipped/>"),
        ("tests.report.test_page", ""),
        ("tests.report.test_page", "<failure/>"),
        ("tests.report.test_page_of_another", "<failure/>"),
        ("tests.calibration.test_modelopt", "<skipped/>"),
    ]
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuite>{''.join(CASE.format(*case) for case in cases)}</testsuite>")
    words = compatibility.counted(report)
    assert list(words) == list(compatibility.TESTS)
    assert words["calibration and quantization"] == "1 passed, 1 skipped"
    assert words["report page"] == "FAILED: 1 passed, 1 failed"
    assert words["against Model-Optimizer"] == "FAILED: 0 passed, 1 skipped"  # no test ran
    assert words["terminal and completion"] == "FAILED: 0 passed"
    assert set(compatibility.counted(tmp_path / "none.xml").values()) == {"FAILED: 0 passed"}


def test_the_page_is_of_the_bounds_in_force():
    text = (ROOT / "docs/compatibility.md").read_text()
    project = compatibility.loads_toml((ROOT / "pyproject.toml").read_text())["project"]
    for name, one in compatibility.floors(project, compatibility.EXTRAS).items():
        assert one.marker is not None or f"| {name} | {one.specifier} |" in text, "run make deps-check"
