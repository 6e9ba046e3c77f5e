"""Compares the wheel and the sdist with the files that git tracks.

    python tools/package_contents.py dist

Every tracked file below the folders of the package belongs in both, with the same bytes, except the project's own studies and
the pages of measurements. Nothing else belongs in them but what the build writes. Exit code 2 when something differs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

FOLDERS = {
    "gft_edge/": "gft_edge/",
    "benchmarks/": "gft_edge/benchmarks/",
    "calibration/": "gft_edge/calibration/",
    "export/": "gft_edge/export/",
}
"""Folders of the package in the repository, and where they are installed."""
NOT_SHIPPED = ("benchmarks/experiments/", "benchmarks/torture/")
BESIDE = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
"""Tracked files of the sdist outside those folders."""
_EGG_INFO = ("PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt", "top_level.txt")
WRITTEN_SDIST = frozenset(("PKG-INFO", "setup.cfg", *(f"gft_edge.egg-info/{name}" for name in _EGG_INFO)))
WRITTEN_WHEEL = frozenset(
    ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"),
)
"""Files that the build writes, of the wheel below its ``.dist-info`` folder."""


def tracked(root: Path) -> list[str]:
    """Returns the paths of the files that git tracks below ``root`` and that exist, relative to it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [path for path in listed.split("\0") if path and (root / path).is_file()]


def copy_tracked(root: Path, target: Path) -> None:
    """Copies the tracked files, as they are in the working tree, into a new folder."""
    for path in tracked(root):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, target / path)


def build(tree: Path, out: Path, kind: str, epoch: int) -> Path:
    """Builds one distribution with the setuptools of this environment, without a network, and returns its path.

    Args:
        tree: source tree; the build leaves files in it.
        out: folder to write into.
        kind: ``"sdist"`` or ``"wheel"``.
        epoch: time in seconds since 1970 of the files in a wheel.

    Raises:
        RuntimeError: the build failed; the text is the last line that it printed.
    """
    out.mkdir(parents=True, exist_ok=True)
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out.resolve())],
        cwd=tree,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "it printed nothing").splitlines()[-1])
    return out / done.stdout.splitlines()[-1]


def unpacked(sdist: Path, folder: Path) -> Path:
    """Unpacks an sdist into a folder and returns the source tree in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


def shipped(paths: Iterable[str]) -> list[str]:
    """Returns the tracked paths that belong in the package."""
    return [
        path
        for path in paths
        if path.startswith(tuple(FOLDERS))
        and not path.startswith(NOT_SHIPPED)
        and not (path.startswith("benchmarks/") and path.count("/") == 1 and not path.endswith(".py"))
    ]


def wheel_problems(wheel: Path, tree: Path, files: Sequence[str]) -> list[str]:
    """Returns a line for each file of a wheel that is missing, extra or not that of ``tree``; ``files`` are the tracked ones."""
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info/"
    expected = {}
    for path in shipped(files):
        folder = path[: path.index("/") + 1]
        expected[FOLDERS[folder] + path.removeprefix(folder)] = path
    return _problems(wheel.name, content, expected, {info + name for name in WRITTEN_WHEEL}, tree)


def sdist_problems(sdist: Path, tree: Path, files: Sequence[str]) -> list[str]:
    """Returns a line for each file of an sdist, as :func:`wheel_problems` does."""
    top = sdist.name.removesuffix(".tar.gz") + "/"
    content = {}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None:
                content[member.name.removeprefix(top)] = file.read()
    expected = {path: path for path in (*shipped(files), *BESIDE)}
    return _problems(sdist.name, content, expected, WRITTEN_SDIST, tree)


def _problems(
    archive: str, content: dict[str, bytes], expected: dict[str, str], written: Iterable[str], tree: Path
) -> list[str]:
    found, wanted = set(content), {*expected, *written}
    lines = [f"{archive}: {name} is missing" for name in sorted(wanted - found)]
    lines += [f"{archive}: {name} does not belong in it" for name in sorted(found - wanted)]
    for name in sorted(found & set(expected)):
        if content[name] != (tree / expected[name]).read_bytes():
            lines.append(f"{archive}: {name} differs from {expected[name]}")
    return lines


def main(argv: list[str] | None = None, root: Path = Path(__file__).parents[1]) -> int:
    """Compares the distributions of a folder with the working tree; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: package_contents.py DIST", file=sys.stderr if "--help" not in arguments else sys.stdout)
        return 0 if "--help" in arguments else 2
    folder = Path(arguments[0])
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if not wheels or not sdists:
        print(f"{folder}: expected a wheel and an sdist; make release writes them", file=sys.stderr)
        return 2
    files = tracked(root)
    lines = [line for wheel in wheels for line in wheel_problems(wheel, root, files)]
    lines += [line for sdist in sdists for line in sdist_problems(sdist, root, files)]
    print("\n".join(lines) or f"{len(wheels) + len(sdists)} archives hold the tracked files and nothing else")
    return 2 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
