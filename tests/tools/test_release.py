"""A release on a copy of the repository: what it changes, and that whatever stops it leaves every file as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import package_contents
import pytest
import release

pytest.importorskip("twine")
ROOT = Path(__file__).parents[2]
CHANGELOG = "# Changelog\n\n## Unreleased\n\n### Added\n\n- One.\n\n### Removed\n\n## 0.0.1 (2020-01-01)\n\n- Zero.\n"
EPOCH = 1767225600  # 2026-01-01


@pytest.fixture(scope="module")
def origin(tmp_path_factory, git_checkout) -> Path:
    """A repository of one commit that holds this working tree without tests, and another changelog."""
    root = tmp_path_factory.mktemp("origin") / "repository"
    package_contents.copy_tracked(ROOT, root)
    shutil.rmtree(root / "tests")
    (root / "CHANGELOG.md").write_text(CHANGELOG)
    init = (root / release.INIT).read_text()
    (root / release.INIT).write_text(release._VERSION.sub('__version__ = "0.1.0"', init))
    with pytest.MonkeyPatch.context() as patch:
        identity(patch)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"], ["tag", "v0.0.1"]):
            release.git(root, *command)
    return root


def identity(patch: pytest.MonkeyPatch) -> None:
    for who in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{who}_NAME", "A")
        patch.setenv(f"GIT_{who}_EMAIL", "a@example.org")


@pytest.fixture
def clone(origin, tmp_path, monkeypatch) -> Path:
    identity(monkeypatch)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    subprocess.run(["git", "clone", "-q", str(origin), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


def state(root: Path) -> tuple[dict[str, bytes], str, str]:
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    kept = {name: data for name, data in files.items() if not name.startswith(".git/")}
    return kept, release.git(root, "show-ref"), release.git(root, "status", "--porcelain")


def test_dry_run_then_release(clone, tiny_artifact, capsys):
    before = state(clone)
    assert release.main(["0.2.0", "--dry-run", "--artifact", str(tiny_artifact)], root=clone) == 0
    shown = capsys.readouterr().out
    assert '+__version__ = "0.2.0"' in shown and "+## 0.2.0 (2026-01-01)" in shown
    assert "dist/gft_edge-0.2.0-py3-none-any.whl" in shown and "selftest passed" in shown
    assert state(clone) == before

    assert release.main(["0.2.0", "--artifact", str(tiny_artifact)], root=clone) == 0
    out = capsys.readouterr().out
    assert "git push origin HEAD v0.2.0" in out
    assert release.git(clone, "status", "--porcelain") == ""
    assert release.git(clone, "log", "-1", "--format=%s %ct", "v0.2.0") == f"Release 0.2.0 {EPOCH}\n"
    assert release.git(clone, "diff", "--name-only", "HEAD~1").split() == ["CHANGELOG.md", "gft_edge/__init__.py"]
    assert (
        release.git(clone, "rev-parse", "HEAD~1", "origin/HEAD").split()[0]
        == release.git(clone, "rev-parse", "origin/HEAD").strip()
    )
    expected = "# Changelog\n\n## Unreleased\n\n## 0.2.0 (2026-01-01)\n\n### Added\n\n- One.\n\n## 0.0.1 (2020-01-01)\n"
    assert (clone / "CHANGELOG.md").read_text() == expected + "\n- Zero.\n"
    assert package_contents.main([str(clone / "dist")], root=clone) == 0
    assert release.main(["0.2.0"], root=clone) == 2  # the tag exists now
    assert release.main(["0.3.0"], root=clone) == 2  # nothing is unreleased now
    assert capsys.readouterr().err.splitlines() == [
        "release: tag v0.2.0 exists already; choose a newer version",
        "release: CHANGELOG.md: the section Unreleased has no entry; write what changed",
    ]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("", "not valid by PEP 440"),
        ("1.0-final-x", "not valid by PEP 440"),
        ("v1.0.0", "normal form of PEP 440; write 1.0.0"),
        ("1.0.0+here", "normal form of PEP 440; write 1.0.0"),
        ("0.0.1", "tag v0.0.1 exists"),
        ("0.0.2", "not newer than 0.1.0"),
    ],
)
def test_versions_that_are_refused(clone, capsys, version, words):
    before = state(clone)
    assert release.main([version], root=clone) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert state(clone) == before


@pytest.mark.parametrize("change", ["changed", "new"])
def test_a_tree_that_is_not_clean_is_refused(clone, capsys, change):
    name = {"changed": "README.md", "new": "note.txt"}[change]
    (clone / name).write_text("x")
    assert release.main(["0.2.0"], root=clone) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not clean" in line and name in line


def test_failing_checks_change_nothing(clone, tiny_artifact, tmp_path, capsys):
    damaged = Path(shutil.copytree(tiny_artifact, tmp_path / "damaged"))
    with (damaged / "model.onnx").open("ab") as file:
        file.write(b"x")
    before = state(clone)
    assert release.main(["0.2.0", "--artifact", str(damaged)], root=clone) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("release: selftest failed: ") and "model.onnx" in line
    assert state(clone) == before


def test_a_tag_that_git_refuses_is_rolled_back(clone, tmp_path, capsys):
    before = state(clone)
    plan = release.prepare(clone, "0.2.0", EPOCH)
    archive = tmp_path / "a.whl"
    archive.write_bytes(b"x")
    release.git(clone, "tag", "v0.2.0")  # by another hand, after the checks
    with pytest.raises(release.Refused, match="git tag failed"):
        release.publish(clone, plan, [archive])
    release.git(clone, "tag", "-d", "v0.2.0")
    assert state(clone) == before


def test_a_changelog_without_the_section_is_refused():
    with pytest.raises(release.Refused, match="found 0"):
        release.released("# Changelog\n\n## 0.1.0 (2020-01-01)\n", "0.2.0", "2026-01-01")
    assert os.environ.get("SOURCE_DATE_EPOCH") != str(EPOCH)
