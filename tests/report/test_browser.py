"""Pages as a browser shows them: on a desktop and a telephone, in light and dark."""

from __future__ import annotations

import pytest

from gft_edge.files import canonical_json
from gft_edge.report.pages.bench import write_bench_page
from gft_edge.report.pages.run import write_page
from gft_edge.report.pages.sensitivity import write_sensitivity_page
from gft_edge.storage.seals import sealed

LONG = "a class whose name goes on and on without any end in sight"
LABELS = ["bolt", "$\\frac{$ nut", "<script>alert(1)</script>", "\u87ba\u4e1d", "\u0645\u0633\u0645\u0627\u0631", LONG]
FAULTS = """(() => {
  const found = [], width = document.documentElement.clientWidth, name = box => box.textContent.slice(0, 60);
  if (document.documentElement.scrollWidth > width) found.push('the page is ' + document.documentElement.scrollWidth + ' wide');
  for (const box of document.querySelectorAll('td, th, p, li, h1, h2, h3, figcaption, summary, .card, .command code')) {
    if (!box.offsetParent) continue;
    if (box.scrollWidth > box.clientWidth + 1) found.push(box.tagName + ' is cut: ' + name(box));
    if (!box.closest('.scroll') && box.getBoundingClientRect().right > width + 1)
      found.push('outside: ' + name(box));
  }
  for (const box of document.querySelectorAll('.scroll')) {
    if (!box.offsetParent || box.scrollWidth <= box.clientWidth + 1) continue;
    const hint = box.nextElementSibling;
    if (!hint || !hint.classList.contains('hint') || !hint.offsetHeight) found.push('scrolls without a hint: ' + name(box));
    if (box.querySelector('table')) found.push('a table needs scrolling: ' + name(box));
  }
  for (const link of document.querySelectorAll('a')) {
    if (!document.getElementById(decodeURIComponent(link.hash.slice(1)))) found.push('leads nowhere: ' + link.hash);
  }
  let figures = 0;
  for (const figure of document.querySelectorAll('figure svg')) {
    if (!figure.getBoundingClientRect().width) continue;
    figures += 1;
    const scale = figure.getBoundingClientRect().width / figure.viewBox.baseVal.width;
    for (const text of figure.querySelectorAll('text')) {
      const size = parseFloat(getComputedStyle(text).fontSize) * scale;
      if (size < 8) found.push('letters of ' + size.toFixed(1) + ' px: ' + text.textContent.slice(0, 30));
    }
  }
  if (!figures) found.push('no figure is displayed');
  return found;
})()"""
BRIGHTNESS = """(() => {
  const light = color => { const [r, g, b] = color.match(/[0-9.]+/g).map(Number); return (0.3 * r + 0.59 * g + 0.11 * b) / 255; };
  const letters = [...document.querySelectorAll('td, p, h2, figure svg text')].filter(e => e.getBoundingClientRect().width)
    .map(e => light(e.tagName == 'text' ? getComputedStyle(e).fill : getComputedStyle(e).color));
  return [light(getComputedStyle(document.body).backgroundColor), Math.min(...letters), Math.max(...letters)];
})()"""


@pytest.fixture(scope="module")
def pages(samples, tmp_path_factory):
    """A page of each kind, of files that hold everything, with names that are hard to lay out."""
    run = tmp_path_factory.mktemp("pages") / "mine"
    made = {
        "one.json": samples["evaluate"](LABELS, "runs/art-a", right=50),
        "two.json": samples["evaluate"](LABELS, "runs/art-b", right=40),
        "bench.json": samples["bench"]("art-a", "art-b", "an artefact of a rather long name"),
        "guesses.json": samples["predict"](LABELS[:2], "runs/art-b"),
        "sens/sensitivity.json": samples["sensitivity"](12),
        "selection/controls.json": samples["controls"](),
        "verify.json": samples["verify"]("art-b", "inconclusive"),
        "model/config.json": samples["checkpoint"](LABELS, "builtin"),
        "run.json": {
            "small": True,
            "seconds": 12.5,
            "steps": [{"title": "train", "command": "gft-edge train --config " + "long/" * 60, "seconds": 1.0}],
            "machine": {"cpu": {"model": "Test CPU", "cores": 2}, "system": "Linux", "nvidia_driver": False},
            "versions": {"numpy": "2", "torch": None},
        },
        "broken.json": "{",
    }
    made["three.json"] = samples["evaluate"]([f"class {n:02d}" for n in range(50)], "runs/art-c", right=400)
    made["bench.json"]["results"][1] |= {"verdict": "unstable", "variation": 0.05}
    for name, content in made.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        whole = sealed(content) if name == "bench.json" else content
        (run / name).write_text(whole if isinstance(whole, str) else canonical_json(whole))
    rows = "".join(f'{{"step": {n}, "loss": {2 / n}, "train_top1": 0.5, "val_top1_full": 0.6}}\n' for n in range(1, 40))
    (run / "model/log.jsonl").write_text(rows)
    for name, size in (("maps/0.png", (992, 274)), ("maps/1.png", (992, 274)), ("wrong/000.png", (96, 96))):
        (run / name).parent.mkdir(exist_ok=True)
        samples["picture"](run / name, size)
    return {
        "report": write_page(run).page,
        "bench": write_bench_page([run / "bench.json"], run)[0],
        "sensitivity": write_sensitivity_page(run / "sens"),
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["report", "bench", "sensitivity"])
def test_nothing_is_cut_nothing_fails_and_letters_can_be_read(browser, pages, kind, width, dark):
    browser.open(pages[kind], width, dark)
    assert browser.evaluate("innerWidth") == width
    assert browser.problems == []
    assert browser.evaluate(FAULTS) == []
    paper, darkest, brightest = browser.evaluate(BRIGHTNESS)
    if dark:
        assert paper < 0.15
        assert darkest > 0.35
    else:
        assert paper > 0.9
        assert brightest < 0.65


def test_a_large_matrix_is_scrolled_on_a_telephone(browser, pages):
    browser.open(pages["report"], 390)
    browser.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    browser.evaluate("new Promise(done => setTimeout(done, 100))")
    browser.evaluate("window.dispatchEvent(new Event('resize'))")
    assert browser.evaluate("[...document.querySelectorAll('.large svg')].some(figure => figure.clientWidth >= 700)")
    assert browser.evaluate(FAULTS) == []


def test_key_columns_of_a_bench_table_are_in_sight_on_a_telephone(browser, pages):
    browser.open(pages["bench"], 390)
    shown = """[...document.querySelectorAll('td')].filter(c => c.getBoundingClientRect().right <= innerWidth + 1
      && c.getBoundingClientRect().width).map(c => c.dataset.label + ': ' + c.textContent)"""
    cells = browser.evaluate(shown)
    assert "p50 ms: 7.00 unstable" in cells
    assert any(cell.startswith("against art-a: 1.14x") and cell.endswith("unstable") for cell in cells)


def test_commands_have_a_button_that_copies_them(browser, pages):
    browser.open(pages["report"], 1280)
    browser.evaluate("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }")
    browser.evaluate("document.querySelector('.command button').click()")
    assert browser.evaluate("window.copied").startswith("gft-edge train --config long/")


def test_a_script_in_a_page_that_is_not_ours_does_not_run(browser, pages, tmp_path):
    html = pages["report"].read_text(encoding="utf-8")
    planted = tmp_path / "planted.html"
    planted.write_text(html.replace("<main>", "<main><script>window.planted = 1</script>"), encoding="utf-8")
    browser.open(planted, 1280)
    assert browser.evaluate("window.planted === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems)
