"""Makes a release: changelog, version, archives, checks, commit and tag. Nothing is pushed.

    make release VERSION=1.2.0 [DRY_RUN=1]

Everything is built and checked in a copy. The working tree changes only after every check has passed, and is put back if the
commit or the tag fails. Exit code 2 and one line for what stops a release.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from package_contents import build, copy_tracked, sdist_problems, tracked, unpacked, wheel_problems
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

CHANGELOG = "CHANGELOG.md"
INIT = "gft_edge/__init__.py"
HEADING = "## Unreleased\n"
_VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
_KEPT_VARIABLES = ("HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE")


class Refused(Exception):
    """What stops a release, in one line."""


@dataclass(frozen=True)
class Plan:
    """A release before it is made.

    Attributes:
        version: of the release.
        epoch: its time in seconds since 1970; the files in the wheel and the commit get it.
        before: commit that it begins from.
        texts: new text of each file that changes, by path.
    """

    version: str
    epoch: int
    before: str
    texts: dict[str, str]

    @property
    def tag(self) -> str:
        """Name of the tag."""
        return f"v{self.version}"


def released(changelog: str, version: str, date: str) -> str:
    """Returns a changelog whose unreleased entries stand under ``version (date)``, below a new empty section.

    Raises:
        Refused: it has no section "Unreleased", or one without an entry.
    """
    if changelog.count(HEADING) != 1:
        raise Refused(f"{CHANGELOG}: expected one line '{HEADING.strip()}', found {changelog.count(HEADING)}")
    head, _, rest = changelog.partition(HEADING)
    section, mark, older = rest.partition("\n## ")
    parts = re.split(r"^(?=### )", section, flags=re.MULTILINE)
    kept = [part for part in parts if not part.startswith("### ") or re.search(r"^[-*] ", part, re.MULTILINE)]
    if not re.search(r"^[-*] ", section, re.MULTILINE):
        raise Refused(f"{CHANGELOG}: the section Unreleased has no entry; write what changed")
    return f"{head}{HEADING}\n## {version} ({date})\n{''.join(kept).rstrip()}\n{mark}{older}"


def prepare(root: Path, version: str, epoch: int) -> Plan:
    """Returns the plan of a release from the clean working tree of ``root``.

    Raises:
        Refused: bad version, dirty tree, existing tag, a version that is not newer, a changelog without entries.
    """
    try:
        parsed = Version(version)
    except InvalidVersion:
        raise Refused(f"version {version!r} is not valid by PEP 440; an example is 1.2.0") from None
    if str(parsed) != version or parsed.local:
        raise Refused(f"version {version!r} is not in the normal form of PEP 440; write {parsed.public}")
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        raise Refused(
            f"the working tree is not clean ({changed[0].strip()}, {len(changed)} in all); commit or remove it"
        )
    tags = git(root, "tag", "--list", "v*").split()
    if f"v{version}" in tags:
        raise Refused(f"tag v{version} exists already; choose a newer version")
    current = _VERSION.search((root / INIT).read_text(encoding="utf-8"))
    if current is None:
        raise Refused(f'{INIT}: no line __version__ = "..."')
    newest = max((_parsed(tag[1:]) for tag in tags), default=Version("0.dev0"))
    if parsed <= newest or parsed < _parsed(current[1]):
        raise Refused(f"version {version} is not newer than {max(newest, _parsed(current[1]))}")
    date = time.strftime("%Y-%m-%d", time.gmtime(epoch))
    init = (root / INIT).read_text(encoding="utf-8")
    texts = {
        CHANGELOG: released((root / CHANGELOG).read_text(encoding="utf-8"), version, date),
        INIT: _VERSION.sub(f'__version__ = "{version}"', init, count=1),
    }
    return Plan(version, epoch, git(root, "rev-parse", "HEAD").strip(), texts)


def _parsed(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0.dev0")


def checked(root: Path, plan: Plan, work: Path, artifact: Path | None) -> tuple[Path, Path]:
    """Builds and checks the archives of a plan in the folder ``work``; returns the sdist and the wheel.

    Args:
        root: repository.
        plan: of the release.
        work: empty folder.
        artifact: for the self-test; None exports the built-in checkpoint.

    Raises:
        Refused: a check failed.
    """
    tree, dist, files = work / "tree", work / "dist", tracked(root)
    copy_tracked(root, tree)
    for path, text in plan.texts.items():
        (tree / path).write_text(text, encoding="utf-8")
    try:
        sdist = build(tree, dist, "sdist", plan.epoch)
        wheel = build(unpacked(sdist, work / "unpacked"), dist, "wheel", plan.epoch)
    except RuntimeError as error:
        raise Refused(f"the build failed: {error}") from None
    print(f"built {sdist.name}, and from it {wheel.name}")
    problems = [*sdist_problems(sdist, tree, files), *wheel_problems(wheel, tree, files)]
    if problems:
        raise Refused(f"contents: {problems[0]} ({len(problems)} in all)")
    print("contents: the tracked files and nothing else")
    _run("twine", [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)])
    print("twine check --strict: passed")
    program = installed(wheel, work / "environment")
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    _run("doctor", [program, "doctor"], environment)
    if artifact is None:
        artifact = work / "artifact"
        _run("export", [sys.executable, "-m", "gft_edge.cli.main", "export", "builtin", "--out", str(artifact)])
    _run("selftest", [program, "selftest", str(artifact)], environment)
    print("the wheel in an empty environment with numpy and ONNX Runtime: doctor and selftest passed")
    return sdist, wheel


def installed(wheel: Path, environment: Path) -> str:
    """Installs a wheel into a new environment with numpy and ONNX Runtime alone; returns the path of its ``gft-edge``.

    The two come from the environment that runs this program, as links, so that no network is needed.

    Raises:
        Refused: it cannot be installed.
    """
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    site = next(environment.glob("lib/python*/site-packages"))
    for name in _with_requirements("numpy", "onnxruntime"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    _run("installation of the wheel", [*pip, str(wheel)])
    return str(environment / "bin/gft-edge")


def _with_requirements(*names: str) -> list[str]:
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            needed = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
            waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def publish(root: Path, plan: Plan, archives: Sequence[Path]) -> None:
    """Writes the files of a plan, commits and tags them, and copies the archives into ``dist/``.

    Raises:
        Refused: git refused the commit or the tag; the working tree is as it was.
    """
    when = {"GIT_AUTHOR_DATE": f"@{plan.epoch} +0000", "GIT_COMMITTER_DATE": f"@{plan.epoch} +0000"}
    copied: list[Path] = []
    made = not (root / "dist").exists()
    try:
        for path, text in plan.texts.items():
            (root / path).write_text(text, encoding="utf-8")
        git(root, "commit", "-q", "-m", f"Release {plan.version}", "--", *plan.texts, variables=when)
        (root / "dist").mkdir(exist_ok=True)
        for archive in archives:
            copied.append(root / "dist" / archive.name)
            shutil.copy(archive, copied[-1])
        git(root, "tag", "-a", plan.tag, "-m", f"gft-edge {plan.version}", variables=when)
    except BaseException:
        git(root, "reset", "-q", "--soft", plan.before)
        git(root, "checkout", "-q", plan.before, "--", *plan.texts)
        for archive in copied:
            archive.unlink(missing_ok=True)
        if made:
            shutil.rmtree(root / "dist", ignore_errors=True)
        raise


def git(root: Path, *arguments: str, variables: dict[str, str] | None = None) -> str:
    """Runs git in a folder and returns what it prints.

    Raises:
        Refused: it failed; the text is its last line.
    """
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"git {arguments[0]} failed: {_last(done.stderr + done.stdout)}")
    return done.stdout


def _run(what: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"{what} failed: {_last(done.stdout + done.stderr)}")


def _last(text: str) -> str:
    return (text.strip() or "it printed nothing").splitlines()[-1]


def show(root: Path, plan: Plan, archives: Sequence[Path]) -> None:
    """Prints what a release would change."""
    for path, text in plan.texts.items():
        old = (root / path).read_text(encoding="utf-8")
        lines = difflib.unified_diff(old.splitlines(), text.splitlines(), f"a/{path}", f"b/{path}", "", "", 2, "")
        print("\n".join(lines))
    print("dry run, nothing was changed; a release would write")
    for archive in archives:
        print(f"  dist/{archive.name}, {archive.stat().st_size} bytes")
    print(f"  a commit 'Release {plan.version}' and the tag {plan.tag}")


def main(argv: Sequence[str] | None = None, root: Path = Path(__file__).parents[1]) -> int:
    """Makes a release of the repository ``root``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="release.py", description=__doc__.splitlines()[0])
    parser.add_argument("version", help="of the release, such as 1.2.0")
    parser.add_argument("--dry-run", action="store_true", help="build and check, show the changes, and change nothing")
    parser.add_argument(
        "--artifact", type=Path, help="for the self-test; the built-in checkpoint is exported without it"
    )
    args = parser.parse_args(argv)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    try:
        plan = prepare(root, args.version, epoch)
        with tempfile.TemporaryDirectory(prefix="gft-edge-release-") as folder:
            archives = checked(root, plan, Path(folder), args.artifact)
            if args.dry_run:
                show(root, plan, archives)
                return 0
            publish(root, plan, archives)
    except Refused as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    names = " ".join(f"dist/{archive.name}" for archive in archives)
    print(f"released {args.version}: commit {git(root, 'rev-parse', '--short', 'HEAD').strip()}, tag {plan.tag}")
    print(f"next, after a look at it:\n  git push origin HEAD {plan.tag}\n  python -m twine upload {names}")
    print(f"to undo it instead:\n  git tag -d {plan.tag} && git reset --keep HEAD~1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
