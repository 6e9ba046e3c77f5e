"""Templates, and the parts of every page: its style, its one script, and a policy that blocks everything else."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gft_edge import __version__
from gft_edge.report.figures.overlays import INFERNO

TEMPLATES = Path(__file__).parents[1] / "templates"


@functools.cache
def environment() -> Any:
    """Returns the template environment: it escapes text, and an unknown name is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    made.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f} %"
    script = made.get_template("script.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals["script"] = script
    made.globals["version"] = __version__
    made.globals["heading"] = ""
    made.globals["inferno"] = [tuple(map(int, stop)) for stop in INFERNO]
    made.globals["policy"] = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return made


def render(template: str, data: Mapping[str, Any]) -> str:
    """Returns a whole page.

    Args:
        template: name of a template that extends ``base.html.j2``.
        data: of the template, among it ``title``, ``kind`` of the page and ``sections``.
    """
    return _with_own_ids(environment().get_template(template).render(**data).lstrip())


def _with_own_ids(html: str) -> str:
    """Returns a page whose figures share no id: equal figures, and those of different widths, have equal ids otherwise."""
    count = itertools.count(1)

    def renamed(figure: re.Match[str]) -> str:
        names: dict[str, str] = {}
        number = next(count)

        def name(found: re.Match[str]) -> str:
            return found[1] + names.setdefault(found[2], f"f{number}-{len(names)}")

        def tag(found: re.Match[str]) -> str:
            return re.sub(r"""((?:\bid|xlink:href)="#?|url\(#)([mpcCh][0-9a-f_]{10,})(?=["')])""", name, found[0])

        return re.sub(r"<[^>]+>", tag, figure[0])

    return re.sub(r"<svg role=.*?</svg>", renamed, html, flags=re.DOTALL)
