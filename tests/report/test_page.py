"""Every claim of a run's page depends on data in its folder: it appears with the data, and only then."""

from __future__ import annotations

import json
import re
from html import escape
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from gft_edge.cli.main import main
from gft_edge.errors import ArtifactError
from gft_edge.report.figures import svg
from gft_edge.report.pages.html import environment
from gft_edge.report.pages.run import write_page
from gft_edge.report.pages.tables import table
from gft_edge.report.pages.view import Figure as PageFigure
from gft_edge.report.pages.view import Section

LABELS = ["bolt", "gear", "nut", "screw", "washer"]
HOSTILE = [
    "<script>alert(1)</script>",
    "$\\frac{$ and $x^2$",
    "\U0001f9ab \u87ba\u4e1d",
    "\u0645\u0633\u0645\u0627\u0631",
    "a\x00b\x1b[31m\ud800",
    '"><img src=x onerror=alert(1)>',
]


class Texts(HTMLParser):
    """The visible text by the id of its section (empty before the first section)."""

    def __init__(self):
        super().__init__()
        self.sections, self.tags, self._now, self._silent = {"": ""}, [], "", 0

    def handle_starttag(self, tag, attrs):
        self.sections[self._now] += " "
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._now = dict(attrs)["id"]
            self.sections[self._now] = ""
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent -= tag in ("script", "style")

        self.sections[self._now] += " " if tag in ("td", "th", "p", "li", "b", "h2", "h3", "text") else ""

    def handle_data(self, data):
        if not self._silent:
            self.sections[self._now] += data


@pytest.fixture(autouse=True)
def _letters_alone(monkeypatch, request):
    """Figures are drawn, but of their SVG only the letters are written: laying them out takes most of a page's time."""
    if request.function.__name__ == "test_names_of_any_script_are_text_and_nothing_else":
        return

    def letters(draw, width, height, title):
        figure = Figure(figsize=(width, height))
        draw(figure, figure.add_subplot())
        found = [text.get_text() for text in figure.findobj(Text) if text.get_text()]
        return "<svg>" + "".join(f"<text>{escape(text)}</text>" for text in found) + "</svg>"

    monkeypatch.setattr(svg, "svg", letters)


def read(page):
    texts = Texts()
    texts.feed(page.read_text(encoding="utf-8"))
    joined = {anchor: re.sub(r"\s+([:,.;)])", r"\1", text) for anchor, text in texts.sections.items()}
    texts.sections = joined
    return texts


def claims(texts):
    """Returns all text about the run, without the list of missing parts."""
    return " ".join(" ".join(text for anchor, text in texts.sections.items() if anchor != "left-out").split())


# Texts of a page, and the kind of file that each one needs.
CLAIMS = {
    r"top-1 on ": "evaluate",
    r"top-1, per cent|95 % interval": "evaluate or controls",
    r"Does the selection matter|own is better by|is worth|McNemar": "controls",
    r"accuracy of ": "evaluate",
    r"Wilson": "evaluate",
    r"Errors by class": "evaluate",
    r"Wrong predictions": "evaluate",
    r"latency of ": "bench",
    r"\d ms\b": "bench",
    r"as fast as": "bench",
    r"in flight": "bench",
    r"ONNX Runtime on ": "bench",
    r"Importance and kept patches": "predict",
    r"kept patches and importance of single images": "predict",
    r"alone in INT8": "sensitivity",
    r"Mixed precision": "sensitivity",
    r"Verification: passed 1": "verify",
    r"verification of ": "verify",
    r"SQNR of the|logit SQNR": "verify or sensitivity",
    r"trained|further training|training images": "checkpoint",
    r"transformer blocks": "checkpoint",
    r"Accuracy against latency": "evaluate and bench",
    r"compiled|engine was built|tensorrt": "engine",
    r"quantized to INT8|layers in INT8\.|Activation ranges": "quantize",
    r"typefaces|words|never seen|not trained on": "nothing",
    r"energy of ": "power",
}


def files(samples, kinds):
    made = {
        "evaluate": {
            "one.json": samples["evaluate"](LABELS, "runs/art-a", right=41),
            "sub/two.json": samples["evaluate"](LABELS, "runs/art-b", right=33),
            "sub/wrong/000.png": 48,
        },
        "bench": {"speed of it.json": samples["bench"]("art-a", "art-b")},
        "predict": {"guesses.json": samples["predict"](LABELS[:2], "runs/art-b"), "maps/0.png": 64, "maps/1.png": 64},
        "sensitivity": {"sens/result.json": samples["sensitivity"](8)},
        "controls": {"selection.json": samples["controls"]()},
        "verify": {"checked.json": samples["verify"]("art-b")},
        "checkpoint": {
            "model/config.json": samples["checkpoint"](LABELS),
            "model/log.jsonl": "".join(f'{{"step": {n}, "loss": {2 - n / 20}}}\n' for n in range(1, 31)),
        },
    }
    return {name: content for kind in kinds for name, content in made[kind].items()}


@pytest.mark.parametrize(
    "kinds",
    [
        ("bench",),
        ("evaluate",),
        ("predict",),
        ("sensitivity",),
        ("controls",),
        ("verify",),
        ("checkpoint",),
        ("evaluate", "bench"),
        ("evaluate", "bench", "predict", "sensitivity", "controls", "verify", "checkpoint"),
    ],
    ids="+".join,
)
def test_a_claim_stands_with_its_data_and_not_without(samples, laid, kinds):
    written = write_page(laid(files(samples, kinds)))
    assert not written.unused
    text = claims(read(written.page))
    for claim, needed in CLAIMS.items():
        every = set(needed.split(" and ")) <= set(kinds)
        there = every or bool(set(needed.split(" or ")) & set(kinds))
        assert bool(re.search(claim, text)) == there, f"{claim}: {re.search(claim, text)}"


def test_numbers_and_names_are_those_of_the_files(samples, laid):
    written = write_page(laid(files(samples, ("evaluate", "bench"))))
    texts = read(written.page)
    top, accuracy = " ".join(texts.sections[""].split()), " ".join(texts.sections["accuracy"].split())
    assert "mine: accuracy and latency" in top
    assert "2 files of accuracies, 1 bench file" in top
    assert "top-1 on 50 test images of parts" in top
    assert "art-b: latency 7.00 ms" in top and "1.14x as fast as art-a (1.12 to 1.16)" in top
    for number in ("82.00 %", "66.00 %", "41 of 50", "33 of 50"):
        assert number in accuracy
    classes = texts.sections["errors-by-class"]
    assert "Wrong predictions: 17 of 17" in classes and "bolt 50.0 %, true class washer" in " ".join(classes.split())
    assert "10 of 10" in classes  # screw or washer, the most confused pair
    images = [attrs["src"] for tag, attrs in texts.tags if tag == "img"]
    assert len(images) == 1  # the one picture that lies there
    assert images[0].startswith("data:image/png;base64,")


def test_images_of_the_training_split_are_called_that(samples, laid):
    page = write_page(laid({"a.json": samples["evaluate"](LABELS, split="train")})).page
    accuracy = read(page).sections["accuracy"]
    assert "50 train images of parts" in " ".join(accuracy.split())
    assert "training split" in accuracy


def test_accuracies_on_different_images_are_not_put_beside_each_other(samples, laid):
    one, two = samples["evaluate"](LABELS, "a"), samples["evaluate"](LABELS, "b", split="val")
    written = write_page(laid({"1.json": one, "2.json": two, "speed.json": samples["bench"]("a", "b")}))
    texts = read(written.page)
    assert "accuracy-against-latency" not in texts.sections
    assert "accuracy against latency" in [part.what for part in written.left_out]
    assert texts.sections["accuracy"].count("These models") == 0 == texts.sections["accuracy"].count("; these models")


def test_unstable_stands_wherever_the_figure_stands(samples, laid):
    stable = write_page(laid({"speed.json": samples["bench"]("a", "b")})).page
    assert "unstable" not in claims(read(stable))
    bench = samples["bench"]("a", "b")
    bench["results"][0] |= {"verdict": "unstable", "variation": 0.06}
    accuracies = {f"{n}.json": samples["evaluate"](LABELS, n) for n in "ab"}
    texts = read(write_page(laid({"speed.json": bench, **accuracies})).page)
    for place in ("", "accuracy-against-latency", "latency"):
        assert "unstable" in texts.sections[place], place
    # the speed-up of the stable one rests on an unstable baseline
    assert re.search(r"1\.14x \[1\.12, 1\.16\] unstable", texts.sections["latency"])
    assert "6.0% unstable" in texts.sections["latency"] and "8.00 ms unstable" in texts.sections["latency"]
    assert "images/s, 2 in flight" in texts.sections["latency"]


def test_one_round_is_not_called_stable(samples, laid):
    page = write_page(laid({"b.json": samples["bench"]("a", "b", rounds_ms=[[7.0, 7.1]], variation=0.0)})).page
    text = read(page).sections["latency"]
    assert "one round" in text and "0.0%" not in text


@pytest.mark.parametrize(("verdict", "tone"), [("pass", "good"), ("inconclusive", "warn"), ("fail", "bad")])
def test_verdicts_are_counted_on_top_in_their_own_colours(samples, laid, verdict, tone):
    run = laid({"v.json": samples["verify"]("art", verdict), "w.json": samples["verify"]("other", "pass")})
    html = write_page(run).page.read_text()
    counts = {"pass": 1, "inconclusive": 0, "fail": 0}
    counts[verdict] += 1
    line = html[html.index('id="verdicts"') :]
    line = " ".join(re.sub(r"<[^>]*>", " ", line[: line.index("</p>")]).split())
    counted = f"passed {counts['pass']} inconclusive {counts['inconclusive']} failed {counts['fail']}"
    assert line.endswith(f"Verification: {counted}")
    word = {"pass": "passed", "inconclusive": "inconclusive", "fail": "failed"}[verdict]
    assert re.search(rf'<span class="{tone}">{word}[ ,<]', html)
    assert "logits differ by 0.3" not in html or verdict == "fail"


def test_further_training_is_told_from_a_course_from_the_start(samples, laid):
    log = "".join(f'{{"step": {n}, "loss": 0.7, "train_top1": 0.9}}\n' for n in range(1, 5))
    page = write_page(laid({"c/config.json": samples["checkpoint"](LABELS, "builtin", 4), "c/log.jsonl": log})).page
    text = " ".join(read(page).sections["training"].split())
    assert (
        "c: 4 steps of further training on the training images of parts, starting from the checkpoint that ships"
        in text
    )
    assert "The loss stays level: these steps changed little." in text
    known = samples["checkpoint"](LABELS, "builtin", 4)
    known["provenance"]["recipe"]["data"]["name"] = "scenes"
    page = write_page(laid({"c/config.json": known, "c/log.jsonl": log})).page
    assert "already trained on these images" in " ".join(read(page).sections["training"].split())
    falling = "".join(f'{{"step": {n}, "loss": {1 / n}}}\n' for n in range(1, 5))
    page = write_page(laid({"c/config.json": samples["checkpoint"](LABELS, "builtin", 4), "c/log.jsonl": falling})).page
    assert "level" not in read(page).sections["training"]
    page = write_page(laid({"c/config.json": samples["checkpoint"](LABELS, "", 4), "c/log.jsonl": log})).page
    assert "c: 4 steps on the training images of parts." in " ".join(read(page).sections["training"].split())


def test_sections_are_numbered_without_gaps_and_the_contents_lead_to_each(samples, laid):
    kinds = ("evaluate", "bench", "predict", "sensitivity", "controls", "verify", "checkpoint")
    texts = read(write_page(laid(files(samples, kinds))).page)
    numbers = [int(number) for number in re.findall(r"<h2>(\d+)\. ", (laid({}) / "report.html").read_text())]
    assert numbers == list(range(1, len(numbers) + 1))
    ids = [attrs["id"] for _, attrs in texts.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) or all(not i.startswith("section") for i in ids)
    links = [attrs["href"][1:] for tag, attrs in texts.tags if tag == "a"]
    assert [link for link in links if link not in ("main", "contents")] == [a for a in texts.sections if a]


def test_names_of_any_script_are_text_and_nothing_else(samples, laid, recwarn):
    names = {f"{n}.json": samples["evaluate"](HOSTILE, f"runs/{name}") for n, name in enumerate(("a", HOSTILE[1]))}
    made = {
        **names,
        "bench.json": samples["bench"]("a", *HOSTILE),
        "p.json": samples["predict"](HOSTILE[:2]),
        "maps/0.png": 32,
        "v.json": samples["verify"](HOSTILE[0]),
        "c/config.json": samples["checkpoint"](HOSTILE),
    }
    written = write_page(laid(made))
    html = written.page.read_text(encoding="utf-8")
    texts = read(written.page)
    assert not written.unused
    assert [tag for tag, _ in texts.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in texts.tags for name in attrs)
    assert all(attrs["src"].startswith("data:") for tag, attrs in texts.tags if tag == "img")
    for name in (*HOSTILE[:4], HOSTILE[5]):
        assert name in " ".join(texts.sections.values())
    assert "\x00" not in html and "\x1b" not in html
    assert "$\\frac{$ and $x^2$" in texts.sections["errors-by-class"]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_file_names_no_class_unless_it_is_one(samples, laid):
    made = {"p.json": samples["predict"](["ant", "bee"]), "maps/0.png": 32, "maps/1.png": 32}
    page = write_page(laid(made)).page
    text = read(page).sections["importance-and-kept-patches"]
    assert "0.png" in text and "true class" not in text
    assert '<span class="bad">' not in page.read_text()


def test_many_classes_are_told_by_pairs_and_the_worst(samples, laid):
    labels = [f"class {n:03d}" for n in range(60)]
    page = write_page(laid({"a.json": samples["evaluate"](labels, right=520)})).page
    text = read(page).sections["errors-by-class"]
    assert "Worst classes first: 40 of 60" in text
    assert "Rows: true class" not in text
    assert "class 059" in text and "Most confused pairs" in text


def test_the_page_names_what_it_leaves_out_and_so_does_the_terminal(samples, laid, capsys):
    run = laid({"speed.json": samples["bench"]("a", "b"), "odd.json": {"results": [{"top1": 2}], "split": "test"}})
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == str(run / "report.html")
    assert "left out: accuracy (no file of evaluate --out)" in out
    assert "left out: training curve" in out and "left out: pictures" in out
    assert "left out: latency" not in out
    assert re.search(r"not used: odd\.json: .*has no entry 'model'", out)
    shown = read(run / "report.html").sections["left-out"]
    assert "accuracy: no file of evaluate --out" in shown and "odd.json" in shown
    assert main(["report", str(run), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {part["what"] for part in data["left_out"]} >= {"accuracy", "training curve"}
    assert [file["file"] for file in data["not_used"]] == ["odd.json"]


def test_a_folder_with_nothing_to_show_is_refused_and_says_why(laid):
    with pytest.raises(ArtifactError, match="holds no artefact, checkpoint or result file"):
        write_page(laid({}))
    with pytest.raises(ArtifactError, match=r"broken\.json: .*cannot be read as JSON"):
        write_page(laid({"broken.json": "{"}))
    assert not (laid({}) / "report.html").exists()


def test_the_same_files_give_the_same_page(samples, laid):
    run = laid(files(samples, ("evaluate", "bench", "predict")))
    first = write_page(run).page.read_bytes()
    assert write_page(run).page.read_bytes() == first


def test_a_section_of_text_figure_and_table_needs_no_template():
    section = Section("A figure", text="a < b", figures=(PageFigure("<svg></svg>", "c"),), table=table(["d"], [["e"]]))
    html = environment().get_template("macros.html.j2").module.plain_parts(section)
    assert section.anchor == "a-figure"
    assert "<p>a &lt; b</p>" in html and "<figure><svg></svg><figcaption>c</figcaption></figure>" in html
    assert "<bdi>e</bdi>" in html


def test_a_comparison_of_selections_shows_every_rule_gain_and_verdict(samples, laid):
    record = samples["controls"](budgets=("12-6",))
    texts = read(write_page(laid({"controls.json": record})).page)
    text = claims(texts)
    (at,) = record["budgets"]
    assert at["verdict"] in text
    for rule in ("most important", "random", "least important", "static", "oracle", "all, 24 pixels, 1.04 of the cost"):
        assert rule in text
    assert "normalised gain G = 0.86 (0.40 to 1.20)." in text
    assert "30, 31, 29" in text and "+15.0 (+5.0 to +25.0)" in text and "0.031" in text
    assert "value of the selection of runs/ckpt run PyTorch ran every rule" in " ".join(text.split())
    assert "1 comparison of selections" in " ".join(text.split())


def test_a_comparison_on_an_artefact_says_what_ran_and_what_is_left_out(samples, laid):
    record = {**samples["controls"](budgets=("12-6",)), "backend": "onnxruntime", "precision": "int8", "full": None}
    (at,) = record["budgets"]
    at["lower_resolution"], at["rules"] = None, at["rules"][:-1]
    text = " ".join(claims(read(write_page(laid({"controls.json": record})).page)).split())
    assert "value of the selection of runs/ckpt run ONNX Runtime ran every rule" in text
    assert "Every patch: not measured, the artefact has no graph of the full budget." in text
    assert "scored by the graph itself" in text and "Smaller images are left out" in text
    assert "With every patch" not in text and "a lower bound" not in text


def test_a_comparison_of_an_older_version_is_shown(samples, laid):
    record = {key: value for key, value in samples["controls"]().items() if key not in ("backend", "precision")}
    written = write_page(laid({"controls.json": record}))
    assert not written.unused
    assert "PyTorch ran every rule" in " ".join(claims(read(written.page)).split())


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"images": 0}, "holds no image or no budget"),
        ({"budgets": []}, "holds no image or no budget"),
        ({"images": 39}, "is not a top-1 of"),
    ],
)
def test_a_comparison_that_contradicts_itself_is_named(samples, laid, change, facts):
    written = write_page(laid({"one.json": {**samples["controls"](), **change}, "two.json": samples["controls"]()}))
    assert [unused.file for unused in written.unused] == ["one.json"]
    assert facts in written.unused[0].why


def test_unreadable_images_are_named_on_the_page_up_to_five(samples, laid):
    names = [f"bolt/{number}.jpg" for number in range(7)]
    card = {
        **{"schema": 1, "images": 30, "data": "parts", "split": "train", "choice": "balanced", "seed": 0, "pool": 90},
        **{
            "hashed": "file bytes",
            "class_counts": {"bolt": 30},
            "preprocess": "p",
            "evaluation": None,
            "id": "ab" * 32,
        },
    }
    found = {
        "verify.json": {**samples["verify"](), "unreadable": names[:1]},
        "card.json": {**card, "unreadable": names},
    }
    text = " ".join(write_page(laid(found)).page.read_text().split())
    assert "art: unreadable images left out (1): <code>bolt/0.jpg</code>." in text
    shown = ", ".join(f"<code>{name}</code>" for name in names[:5])
    assert f"Unreadable images left out (7): {shown} and 2 more." in text
    assert "nreadable" not in write_page(laid({"card.json": card, "verify.json": samples["verify"]()})).page.read_text()
