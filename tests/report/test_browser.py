"""Pages as a browser shows them: on a desktop and a telephone, in light and dark."""

from __future__ import annotations

import pytest

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
CONTRAST = """(() => {
  const part = value => { value /= 255; return value <= 0.03928 ? value / 12.92 : Math.pow((value + 0.055) / 1.055, 2.4); };
  const rgba = text => { const found = text.match(/[0-9.]+/g).map(Number); return found.length < 4 ? [...found, 1] : found; };
  const light = color => 0.2126 * part(color[0]) + 0.7152 * part(color[1]) + 0.0722 * part(color[2]);
  const behind = box => { for (; box; box = box.parentElement) { const color = rgba(getComputedStyle(box).backgroundColor);
    if (color[3] > 0.9) return color; } return [255, 255, 255, 1]; };
  const found = new Set();
  for (const box of document.querySelectorAll('body *')) {
    if (!box.getClientRects().length || !box.checkVisibility({ visibilityProperty: true })) continue;
    if (![...box.childNodes].some(node => node.nodeType == 3 && node.textContent.trim())) continue;
    const style = getComputedStyle(box), figure = box.ownerSVGElement;
    const one = light(rgba(figure ? style.fill : style.color)), two = light(behind(figure || box));
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) found.add(ratio.toFixed(2) + ' ' + box.tagName + ': ' + box.textContent.trim().slice(0, 30));
  }
  return [...found];
})()"""
BRIGHTNESS = """(() => {
  const light = color => { const [r, g, b] = color.match(/[0-9.]+/g).map(Number); return (0.3 * r + 0.59 * g + 0.11 * b) / 255; };
  const letters = [...document.querySelectorAll('td, p, h2, figure svg text')].filter(e => e.getBoundingClientRect().width)
    .map(e => light(e.tagName == 'text' ? getComputedStyle(e).fill : getComputedStyle(e).color));
  return [light(getComputedStyle(document.body).backgroundColor), Math.min(...letters), Math.max(...letters)];
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["report", "bench", "compare", "sensitivity", "front", "controls"])
def test_nothing_is_cut_nothing_fails_and_letters_can_be_read(browser, pages, kind, width, dark):
    browser.open(pages[kind], width, dark)
    assert browser.evaluate("innerWidth") == width
    assert browser.problems == []
    assert browser.evaluate(FAULTS) == []
    assert browser.evaluate(CONTRAST) == []  # WCAG 2.1, AA
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
    planted.write_text(html.replace("<h1>", "<script>window.planted = 1</script><h1>"), encoding="utf-8")
    browser.open(planted, 1280)
    assert browser.evaluate("window.planted === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_the_switch_turns_the_colours_and_is_kept(browser, pages):
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(pages["front"], 1280)
    browser.evaluate("localStorage.clear()")
    try:
        browser.open(pages["front"], 1280)
        light = browser.evaluate(paper)
        assert browser.evaluate("document.querySelector('.theme').getAttribute('aria-pressed')") == "false"
        browser.evaluate("document.querySelector('.theme').click()")
        assert browser.evaluate("document.querySelector('.theme').getAttribute('aria-pressed')") == "true"
        assert browser.evaluate(paper) != light
        browser.open(pages["front"], 1280)
        assert browser.evaluate(paper) != light
        browser.open(pages["front"], 1280, dark=True)
        browser.evaluate("document.querySelector('.theme').click()")
        assert browser.evaluate(paper) == light
    finally:
        browser.evaluate("localStorage.clear()")


def test_without_a_clipboard_the_command_is_selected(browser, pages):
    browser.open(pages["front"], 390)
    browser.evaluate("navigator.clipboard.writeText = () => Promise.reject(); document.execCommand = () => false")
    browser.evaluate("document.querySelector('.copy').click()")
    browser.evaluate("new Promise(done => setTimeout(done, 50))")
    assert browser.evaluate("String(getSelection())") == "gft-edge export ckpt"
    assert "Ctrl+C" in browser.evaluate("document.querySelector('[role=status]').textContent")


def test_a_point_shows_its_value(browser, pages):
    browser.open(pages["front"], 1280)
    shown = browser.evaluate("""(() => { const part = document.querySelector('.wide .tip use, .wide .tip path');
      const at = part.getBoundingClientRect(), where = { clientX: at.x + at.width / 2, clientY: at.y + at.height / 2 };
      part.dispatchEvent(new PointerEvent('pointermove', { bubbles: true, ...where }));
      const box = document.querySelector('.tooltip');
      return [box.hidden, box.textContent, box.getBoundingClientRect().width]; })()""")
    assert shown[0] is False and shown[2] > 0
    assert shown[1].splitlines()[0] == "7-7, fp32" and "top-1 80.00 % (75.00 to 85.00)" in shown[1]


def test_the_keyboard_reaches_the_content_first_and_then_every_control(browser, pages):
    browser.open(pages["front"], 1280)
    order = browser.evaluate("""[...document.querySelectorAll('a, button, summary, [tabindex="0"]')]
      .filter(box => box.checkVisibility({ visibilityProperty: true })).map(box => box.className || box.tagName)""")
    assert order[:3] == ["skip", "theme", "SUMMARY"] and "copy" in order
    assert not browser.evaluate("document.querySelectorAll('[tabindex]:not([tabindex=\"0\"]):not(main)').length")
    ring = "(() => { const b = document.querySelector('.skip'); b.focus(); return b.getBoundingClientRect().left >= 0; })()"
    assert browser.evaluate(ring)
