"""The documentation site, built as ``make docs`` builds it, and its pages in a browser that opens them as files."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

pytest.importorskip("material", reason="the site needs the extra docs; make docs installs it")

ROOT = Path(__file__).parents[2]
PAGES = ("index.html", "docs/cli.html", "docs/api/quantization.html", "benchmarks/RESULTS.html")
OUTSIDE = """[...document.querySelectorAll('.md-content p, .md-content li, .md-content h2, .md-content img')]
  .filter(e => e.offsetParent && !e.closest('table') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.tagName + ' ' + e.textContent.slice(0, 60))"""
TYPE = """(() => {
  const field = document.querySelector('.md-search__input');
  field.focus();
  field.value = 'governor';
  for (const name of ['input', 'keyup']) field.dispatchEvent(new Event(name, {bubbles: true}));
})()"""
FOUND = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.getAttribute('href'))"


def build(root: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=quiet, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_pages_and_the_reference_are_there(site):
    api = (site / "docs/api/runtime.html").read_text(encoding="utf-8")
    assert 'id="gft_edge.runtime.classifier.Classifier.predict"' in api and "Pillow images" in api
    export = (site / "docs/api/export.html").read_text(encoding="utf-8")
    assert 'id="gft_edge.export.onnx.artifact.export_with_data"' in export  # a folder that package-dir maps
    assert not list(site.glob("sitemap*"))


class Elements(HTMLParser):
    """Counts the elements that Markdown makes."""

    def __init__(self, html: str):
        super().__init__()
        self.count: Counter[str] = Counter()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag in ("li", "ol", "ul", "pre", "table", "tr", "h1", "h2", "h3", "img", "em", "strong"):
            self.count[tag] += 1


def test_the_site_reads_a_page_as_others_do(site):
    """Lists, blocks and tables are those of CommonMark, which the pages are written for."""
    other = MarkdownIt("commonmark").enable("table")
    pages = [page for place in ("*.md", "docs/*.md", "benchmarks/*.md") for page in ROOT.glob(place)]
    assert len(pages) > 40
    for page in pages:
        place = page.relative_to(ROOT).with_suffix(".html")
        html = (site / ("index.html" if page.name == "README.md" else place)).read_text(encoding="utf-8")
        article = re.search(r"<article[^>]*>(.*?)</article>", html, re.DOTALL)[1]
        assert Elements(article).count == Elements(other.render(page.read_text(encoding="utf-8"))).count, page


def test_a_broken_link_a_missing_anchor_and_a_page_outside_the_navigation_fail(tmp_path):
    root = tmp_path / "root"
    (root / "docs/site").mkdir(parents=True)
    for name in ("hooks.py", "offline.py"):
        shutil.copy(ROOT / "docs/site" / name, root / "docs/site")
    for name in ("gft_edge", "benchmarks", "calibration", "export"):
        (root / name).mkdir()
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    kept = (
        config.partition("\nnav:\n")[0]
        .partition("\nplugins:\n")[0]
        .replace("  polyfills: [docs/site/iframe-worker.js]", "")
    )
    (root / "mkdocs.yml").write_text(kept.replace("watch:", "# ") + "\nplugins: [search]\nnav: [README.md]\n")
    readme = root / "README.md"
    readme.write_text("# One\n[here](#one)\n")
    assert build(root, tmp_path / "good").returncode == 0
    for text, problem in (("[x](docs/none.md)", "docs/none.md"), ("[x](#two)", "#two"), ("![x](//a.b/c.png)", "a.b/c")):
        readme.write_text(f"# One\n{text}\n")
        done = build(root, tmp_path / "bad")
        assert done.returncode != 0 and problem in done.stdout + done.stderr
    readme.write_text("# One\n")
    (root / "docs/more.md").write_text("# More\n")
    done = build(root, tmp_path / "bad")
    assert done.returncode != 0 and "docs/more.md" in done.stdout + done.stderr


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_without_a_network_and_fits(browser, site, page, width, dark):
    browser.open(site / page, width, dark)
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OUTSIDE) == []
    shown = browser.evaluate("document.body.dataset.mdColorScheme || getComputedStyle(document.body).backgroundColor")
    assert (shown == "slate") == dark


def test_the_search_finds_a_page_without_a_server(browser, site):
    browser.open(site / "docs/cli.html", 1280)
    browser.evaluate(TYPE)
    end = time.monotonic() + 30
    while not (found := browser.evaluate(FOUND)) and time.monotonic() < end:
        time.sleep(0.1)
    assert any("governor.html" in link for link in found)
    assert browser.problems == []
