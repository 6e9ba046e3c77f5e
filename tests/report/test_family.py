"""What every page of the family has, whatever it shows: read from its HTML, without a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

KINDS = ("report", "bench", "compare", "sensitivity", "front", "controls")
VOID = {"meta", "link", "img", "br", "path", "use", "rect"}


class Elements(HTMLParser):
    """Every element as its tag, its attributes, and the classes of what is around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        made = {name: value or "" for name, value in attrs}
        self.found.append((tag, made, tuple(name for _, name in self._open)))
        if tag not in VOID:
            self._open.append((tag, made.get("class", "")))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass


@pytest.fixture(scope="module")
def texts(pages) -> dict[str, str]:
    return {kind: pages[kind].read_text(encoding="utf-8") for kind in KINDS}


@pytest.fixture(params=KINDS)
def html(texts, request) -> str:
    return texts[request.param]


@pytest.fixture
def elements(html):
    return Elements(html).found


def attributes(elements, tag):
    return [attrs for name, attrs, _ in elements if name == tag]


def test_it_is_a_page_by_itself(html, elements):
    assert html.startswith('<!doctype html>\n<html lang="en">')
    metas = attributes(elements, "meta")
    assert {"charset": "utf-8"} in metas
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    for _, attrs, _ in elements:
        for name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
            assert re.match(r"(#|data:)", attrs.get(name, "#")), attrs
        assert not re.search(r"url\((?!#)", attrs.get("style", ""))
    assert not re.search(r"@import|url\((?![#'\"]?#)", re.search(r"<style>.*?</style>", html, re.DOTALL)[0])
    assert len(attributes(elements, "script")) == 1 and not attributes(elements, "iframe")
    (policy,) = (attrs["content"] for attrs in metas if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:;") and "http" not in policy


def test_ids_are_unique_and_links_lead_to_them(elements):
    ids = [attrs["id"] for _, attrs, _ in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs.get("href") or attrs.get("xlink:href") for tag, attrs, _ in elements if tag in ("a", "use")]
    assert {link[1:] for link in links} <= set(ids)
    clips = [found for _, attrs, _ in elements for found in re.findall(r"url\(#(.*?)\)", attrs.get("clip-path", ""))]
    assert clips and set(clips) <= set(ids)


def test_the_contents_name_every_section(elements):
    listed = [attrs["href"][1:] for tag, attrs, around in elements if tag == "a" and "contents" in around]
    assert listed == [attrs["id"] for attrs in attributes(elements, "section")]
    assert len(listed) >= 2


def test_every_picture_has_a_text(elements):
    for tag, attrs, around in elements:
        if tag == "img":
            assert attrs.get("alt", "").strip()
        if tag == "svg" and "brand" not in around:
            assert attrs["role"] == "img" and attrs["aria-label"].strip()
        if attrs.get("role") in ("region", "img"):
            assert attrs["aria-label"].strip()
    assert any(attrs.get("class") == "tip" for attrs in attributes(elements, "g"))


def test_every_command_has_a_button_that_copies_it(html, elements):
    blocks = re.findall(r'<div class="command">(.*?)</div>', html, re.DOTALL)
    assert all(
        re.fullmatch(r'<code>[^<]+</code><button type="button" class="copy" aria-label="[^"]+">.*</button>', b)
        for b in blocks
    )
    assert all(attrs.get("type") == "button" for attrs in attributes(elements, "button"))
    assert len(re.findall(r"<code>gft-edge ", html)) == len(re.findall(r'<div class="command"><code>gft-edge ', html))


def test_it_is_dark_by_the_system_and_by_its_switch(html, elements):
    assert '@media (prefers-color-scheme: dark) { :root:not([data-theme="light"])' in html
    assert re.search(r':root\[data-theme="dark"\] \{ color-scheme: dark; --paper: #1', html)
    assert [attrs["aria-pressed"] for attrs in attributes(elements, "button") if attrs["class"] == "theme"] == ["false"]
    assert next(tag for tag, attrs, _ in elements if tag == "a" and attrs["class"] == "skip")
    drawn = "".join(re.findall(r"<svg role.*?</svg>", html, re.DOTALL))
    fills = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawn))
    assert fills <= {"#000000"}, "a colour that does not follow the page"


def test_the_pages_are_one_family(texts):
    def parts(html):
        return [re.search(rf"<{tag}.*?</{tag}>", html, re.DOTALL)[0] for tag in ("style", "script", "footer")]

    first = parts(texts["report"])
    assert all(parts(html) == first for html in texts.values())
    heads = {
        re.sub(r'(?<=class="kind">)[^<]*', "", re.search(r"<header.*?</header>", h, re.DOTALL)[0])
        for h in texts.values()
    }
    assert len(heads) == 1


def test_the_report_begins_with_a_picture(texts):
    html = texts["report"]
    hero = html[html.index('<div class="hero">') : html.index("<section id=")]
    assert hero.count("<img ") == 5 and hero.count("<svg role") == 2
    assert "art-a top-1 83.3 %" in hero and "7.00 ms" in hero
    assert "classified as <b><bdi>bolt</bdi></b>" in hero


def test_the_same_files_give_the_same_pages(pages, texts, samples, tmp_path):
    from gft_edge.report.pages.controls import write_controls
    from gft_edge.report.pages.front import write_front
    from gft_edge.report.pages.sensitivity import write_sensitivity_page

    write_controls(tmp_path, samples["controls"]())
    write_front(tmp_path / "front.json", samples["search"]())
    (tmp_path / "sensitivity.json").write_bytes((pages["sensitivity"].parent / "sensitivity.json").read_bytes())
    write_sensitivity_page(tmp_path)
    for kind in ("controls", "front", "sensitivity"):
        assert (tmp_path / f"{kind}.html").read_text(encoding="utf-8") == texts[kind]
