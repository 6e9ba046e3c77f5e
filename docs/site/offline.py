"""Finds what a built site would load from another place."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

LOADING = {"src", "srcset", "poster", "data", "action"}
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes addresses that a browser loads by itself; a link of the text is none."""
        self._in_style = tag == "style"
        for name, value in attrs:
            text = value or ""
            if name in LOADING or (tag in ("link", "use", "image") and name in ("href", "xlink:href")):
                self.found += re.findall(r"(?:^|,\s*)((?:https?:|wss?:)?//\S+)", text)
            elif name == "style":
                self.found += IN_STYLE.findall(text)
            elif name == "class" and "mermaid" in text.split():
                self.found.append("a diagram, for which the theme loads mermaid")

    def handle_data(self, data: str) -> None:
        """Notes what a style sheet in the page loads."""
        if self._in_style:
            self.found += IN_STYLE.findall(data)

    def handle_endtag(self, tag: str) -> None:
        """Ends a style sheet."""
        self._in_style = False


def external_loads(site: Path) -> list[str]:
    """Returns a line for each address outside the site that one of its pages or style sheets loads.

    Args:
        site: folder of a built site. Scripts are not read: the theme's have addresses of functions that the site does not use.
    """
    found = []
    for file in sorted([*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.svg")]):
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".css":
            loads = IN_STYLE.findall(text)
        else:
            parser = _Loads()
            parser.feed(text)
            loads = parser.found
        found += [f"{file.relative_to(site)}: {load}" for load in loads]
    return found
