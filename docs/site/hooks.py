"""Hooks of mkdocs: the files of the site, Markdown as GitHub reads it, and a check that no page loads from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offline import external_loads  # mkdocs puts the folder of a hook on the path

ROOT = Path(__file__).parents[2]
SOURCES = (
    "*.md",
    "LICENSE",
    "docs/*.md",
    "docs/*.svg",
    "docs/*.png",
    "docs/api/*.md",
    "docs/site/*.js",
    "docs/site/*.css",
    "benchmarks/*.md",
    "benchmarks/*.svg",
    "examples/*/README.md",
    "gft_edge/builtin/card.md",
)
"""Pages and what they show, as patterns from the root of the repository."""

MAPPED = ("benchmarks", "calibration", "export")
"""Folders that the installed package has inside ``gft_edge``."""

FENCE = re.compile(r" {0,3}(```|~~~)")
ITEM = re.compile(r" {0,3}([-*+]|\d+\.) ")


def on_startup(**_: Any) -> None:
    """Makes ``build/layout``, links to the files in the layout of the installed package: griffe does not read setuptools' map.

    Before the configuration is read, since mkdocstrings leaves out a folder that is not there then.
    """
    package = ROOT / "build/layout/gft_edge"
    shutil.rmtree(package.parent, ignore_errors=True)
    for source, place in [(ROOT / "gft_edge", package), *((ROOT / name, package / name) for name in MAPPED)]:
        shutil.copytree(source, place, copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__"))


def on_files(files: Any, config: Any) -> Any:
    """Returns the files of the site under their paths in the repository, and those of the theme."""
    from mkdocs.structure.files import File, Files

    theirs = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(config.docs_dir)]
    ours = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in sources()]
    return Files([*theirs, *ours])


def sources() -> list[str]:
    """Returns the paths of all pages and of what they show, from the root of the repository."""
    return sorted({path.relative_to(ROOT).as_posix() for pattern in SOURCES for path in ROOT.glob(pattern)})


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the page with a blank line before each list, and paragraphs of an item four columns in: GitHub needs neither."""
    return "\n".join(_for_python_markdown(markdown.split("\n")))


def _for_python_markdown(lines: list[str]) -> Iterator[str]:
    fenced, before, width = False, "", 0  # width of the mark of the item that the line may belong to
    for line in lines:
        item = None if fenced else ITEM.match(line)
        if item:
            if not width and before.strip():
                yield ""
            width = len(item[0])
        elif width and line.strip() and not line.startswith(" " * width) and (not before.strip() or FENCE.match(line)):
            width = 0
        elif width and line.strip():
            line = " " * (4 - width) + line
        if FENCE.match(line.removeprefix("    ") if width else line):
            fenced = not fenced
        yield line
        before = line


def on_post_build(config: Any) -> None:
    """Removes the sitemap, which holds the day of the build; fails when a page loads anything from outside the site."""
    from mkdocs.exceptions import PluginError

    for name in ("sitemap.xml", "sitemap.xml.gz"):
        (Path(config.site_dir) / name).unlink(missing_ok=True)
    found = external_loads(Path(config.site_dir))
    if found:
        raise PluginError("the site loads from elsewhere: " + "; ".join(found))
