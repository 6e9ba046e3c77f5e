"""Results are found by what files hold; any file that cannot be used is named with the reason, and never ends the verb."""

from __future__ import annotations

import copy
import json

import pytest

from gft_edge.report.results.checks import COUNT, NUMBER, SHARE, TEXT, Maybe, Pair, Table, checked
from gft_edge.report.results.run_files import find, picture

LABELS = ["bolt", "gear", "nut", "screw", "washer"]
ODD = [None, "x", -1, 1.5, True, [], {}, [["x"]], {"x": ["y"]}, float("nan"), float("inf"), 10**400, "\ud800"]


@pytest.fixture
def everything(samples):
    bench = samples["bench"]("art-a", "art-b")
    bench["results"][0]["layers"] = {
        "int8": "half of the time",
        "count": 3,
        "reformats": 1,
        "attention": "fused",
        "fused_attention": 1,
        "timed": True,
        "table": [{"name": "a", "role": "gemm", "precision": "int8", "share": 0.5, "time_ms": 0.1}],
    }
    return {
        "evaluate": samples["evaluate"](LABELS),
        "bench": bench,
        "predict": samples["predict"](LABELS),
        "sensitivity": samples["sensitivity"](2),
        "controls": samples["controls"](),
        "search": samples["search"](),
        "verify": samples["verify"](),
    }


def entries(value, path=()):
    """Paths of every entry of JSON data, of lists the first item's."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield (*path, key)
            yield from entries(part, (*path, key))
    elif isinstance(value, list) and value:
        yield (*path, 0)
        yield from entries(value[0], (*path, 0))


def changed(data, path, value=None, remove=False):
    data = copy.deepcopy(data)
    *before, last = path
    part = data
    for key in before:
        part = part[key]
    if remove:
        del part[last]
    else:
        part[last] = value
    return data


@pytest.mark.parametrize("kind", ["evaluate", "bench", "predict", "sensitivity", "controls", "search", "verify"])
def test_every_entry_may_be_missing_or_of_any_kind(everything, laid, kind):
    data = everything[kind]
    paths = list(entries(data))
    assert len(paths) > 5
    used = 0
    for path in paths:
        for number, value in enumerate(["remove", *ODD]):
            odd = changed(data, path, remove=True) if value == "remove" else changed(data, path, value)
            run = laid({"file.json": json.dumps(odd)})
            found = find(run)  # raises nothing
            assert len(found.unused) <= 1
            if found.unused:
                assert found.unused[0].file == "file.json"
                assert 5 < len(found.unused[0].why) <= 300 and "\n" not in found.unused[0].why
            used += not found.unused
            del number
    assert used < len(paths) * len(ODD)  # some are refused


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.json", "[1, 2]", "expected a JSON object"),
        ("a.json", '{"note": 1}', "is not a result that a page shows"),
        ("a.json", '{"results": [], "machine": {}}', "has no seal"),
        ("a.json", '{"schema": 2, "machine": {"cpu": ["x"]}, "results": [1]}', "machine.cpu: expected an object"),
        ("c/log.jsonl", '{"step": 1, "loss": 2}', "no config.json of a finished checkpoint"),
        ("art/manifest.json", '{"files": {}}', "has no seal"),
        ("art/manifest.json", "{", "cannot be read as JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(laid, name, content, why):
    (unused,) = find(laid({name: content})).unused
    assert unused.file == name
    assert why in unused.why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"right": 51}, "51 correct of 50 images"),
        ({"top1": 0.5}, "not a top-1 of 0.5"),
        ({"interval": [0.9, 0.95]}, "does not contain the top-1"),
        ({"confusion": [[1, 2], [3, 4]]}, "expected 5 x 5 numbers"),
        ({"per_class": [{"label": "bolt", "right": 3, "count": 2}]}, "more correct answers than images"),
    ],
)
def test_an_evaluation_that_contradicts_itself_is_not_used(samples, laid, change, why):
    data = samples["evaluate"](LABELS)
    data["results"][0] |= change
    (unused,) = find(laid({"x.json": data})).unused
    assert why in unused.why


def test_files_of_the_chain_that_no_page_shows_are_passed_over(laid):
    known = {
        "recipe.json": {"model": {}, "data": {}, "train": {}},
        "policy.json": {"rules": [], "smoothquant": None},
        "bench-merged.json": {"schema": 2, "source": "merge", "machines": {}, "results": []},
        "certificates.json": {"bound": None, "bound_images": 0, "check": None, "check_images": 0},
        "bundle.json": {"artifact_sha256": "", "device": None, "facts": {}, "files": {}, "schema": 1},
        "plan.json": {"builder_flags": [], "network_flags": [], "trtexec": []},
    }
    found = find(laid(known))
    assert found.is_empty and not found.unused


def test_a_log_is_read_once_per_step_and_without_a_torn_last_line(samples, laid):
    lines = ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": 1.0}', '{"step": 2, "loss": 1.5}', '{"step": 3, "lo']
    run = laid({"c/config.json": samples["checkpoint"](LABELS), "c/log.jsonl": "\n".join(lines)})
    found = find(run)
    assert not found.unused
    assert [(row["step"], row["loss"]) for row in found.checkpoints["c"].log] == [(1, 2.0), (2, 1.5)]
    for bad in ("[1]", '{"step": 1}', '{"step": 1, "loss": NaN}', "no"):
        found = find(laid({"c/log.jsonl": f"{bad}\n{lines[1]}\n"}))
        assert [unused.file for unused in found.unused] == ["c/log.jsonl"]
        assert "line 1" in found.unused[0].why


def test_pictures_are_taken_from_inside_the_folder_only(laid, tmp_path, samples):
    run = laid({"sub/maps/0.png": 8, "maps/1.png": 8})
    samples["picture"](tmp_path / "secret.png", (8, 8))
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    assert picture(run, run / "sub", "maps/0.png") == run / "sub/maps/0.png"
    assert picture(run, run, "runs/elsewhere/maps/1.png") == run / "maps/1.png"
    assert picture(run, run, "/else/mine/maps/1.png") == run / "maps/1.png"
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "", ".", "a\0b", "none.png"):
        assert picture(run, run, name) is None


def test_links_that_go_in_circles_end(laid, samples):
    run = laid({"a/b.json": samples["bench"]("x", "y")})
    (run / "a/again").symlink_to(run)
    assert len(find(run).benches) == 1


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (TEXT, ["", "a"], [1, None, ["a"]]),
        (NUMBER, [1, -1.5], [True, "1", float("nan"), float("inf"), 10**400, None]),
        (COUNT, [0, 3], [-1, 1.0, True, 10**30]),
        (SHARE, [0, 1, 0.5], [1.01, -0.1, float("nan")]),
        (Pair(SHARE), [[0, 1]], [[0], [0, 1, 1], "ab"]),
        ([COUNT], [[], [1, 2]], [{}, [1.5], None]),
        (Table(TEXT), [{}, {"a": "b"}], [{"a": 1}, [1]]),
        (Maybe(COUNT), [None, 1], [-1]),
        ({"a": TEXT, "b": Maybe(TEXT)}, [{"a": "x", "more": 1}], [{"b": "x"}, {"a": 1}, []]),
    ],
)
def test_forms(form, good, bad):
    for value in good:
        found = checked(value, form, "it")
        assert found == value or set(found) == {"a", "b"}
    for value in bad:
        with pytest.raises(Exception, match="it") as caught:
            checked(value, form, "it")
        assert type(caught.value).__name__ == "ArtifactError"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"points": []}, "none is on the front"),
        ({"recommended": {"point": 3, "why": "", "commands": []}}, "is not the number of a point"),
        ({"checkpoints": []}, "is not the number of a checkpoint"),
        ({"cost": {"axis": "ms", "kind": "bound", "source": ""}}, "has no ms"),
    ],
)
def test_a_front_that_contradicts_itself(samples, laid, change, why):
    (unused,) = find(laid({"front.json": json.dumps({**samples["search"](), **change})})).unused
    assert why in unused.why
