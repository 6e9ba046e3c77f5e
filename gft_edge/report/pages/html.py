"""Templates, and the parts of every page: its style, its one script, and a policy that blocks everything else."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

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
    made.globals["policy"] = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return made
