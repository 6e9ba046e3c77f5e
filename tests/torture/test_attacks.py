"""Inputs that once ended in a traceback, a crash, a hang or worse: each is used or refused.

Files lie in ``tests/attacks/READER/``; what must fit the artefact at hand, or would be large, is made here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gft_edge.benchmarks.torture.contained import GOOD, run_contained
from gft_edge.benchmarks.torture.mutate import reseal
from gft_edge.benchmarks.torture.readers import Reader

ATTACKS = Path(__file__).parents[1] / "attacks"
FILES = sorted(path for path in ATTACKS.rglob("*") if path.is_file() and path.name != "README.md")


def outcome(reader: Reader, path: Path):
    def attack():
        code = reader.read(path)
        return "refused" if isinstance(code, int) and code in (2, 3) else "ok"

    return next(iter(run_contained([attack])))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_attack_is_used_or_refused(every_reader, path):
    assert path.parent.name in every_reader, "the folder must have the name of a reader"
    found = outcome(every_reader[path.parent.name], path)
    assert found.kind in GOOD, f"{found.kind}: {found.detail}"


def _set(*keys: Any, to: Any) -> Callable[[Reader], bytes]:
    """The first intact record with one entry changed, sealed anew."""

    def make(reader: Reader) -> bytes:
        record = json.loads(reader.seeds[0])
        node = record
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to
        return reseal(json.dumps(record).encode("utf-8", "surrogatepass"))

    return make


MADE: dict[str, tuple[str, Callable[[Reader], bytes]]] = {
    "no inputs": ("manifest", _set("inputs", to=[])),
    "a family member's name with a slash": ("manifest", _set("family", to={"../x": {}})),
    "a name with NUL": ("manifest", _set("family", to={"a\0b": {}})),
    "a label of half a character": ("manifest", _set("labels", 0, to="\ud800")),
    "a label that clears the screen": ("manifest", _set("labels", 0, to="\x1b[2J\r\n")),
    "a file outside": ("manifest", _set("files", "../../x", to={"sha256": "0", "size": 1})),
    "an absolute file": ("manifest", _set("files", "/etc/passwd", to={"sha256": "0", "size": 1})),
    "an image of 2**40 pixels a side": ("manifest", _set("preprocess", "height", to=2**40)),
    "a standard deviation of 400 digits": ("manifest", _set("preprocess", "std", to=[10**400] * 3)),
    "a backbone on a hub": ("config", _set("model", "backbone", to="hf-hub:someone/anything")),
    "a backbone in a folder": ("config", _set("model", "backbone", to="local-dir:/etc")),
    "a depth of 10,000": ("config", _set("model", "depth", to=10_000)),
    "a width of a million": ("config", _set("model", "embed_dim", to=1_000_000)),
    "a million classes": ("config", _set("model", "num_classes", to=1_000_000)),
    "brackets 100,000 deep": ("policy", lambda reader: b"rules = " + b"[" * 100_000),
    "dotted keys of 100 kB": ("recipe", lambda reader: b"a" + b".a" * 50_000 + b" = 1\n"),
    "a core list of 1 MB": ("tegrastats", lambda reader: b"RAM 1/2MB " + b"CPU [" * 200_000),
}


@pytest.mark.parametrize("name", MADE)
def test_made_attack_is_used_or_refused(every_reader, tmp_path, name):
    reader, make = MADE[name]
    path = tmp_path / f"input{every_reader[reader].suffix}"
    path.write_bytes(make(every_reader[reader]))
    found = outcome(every_reader[reader], path)
    assert found.kind in GOOD, f"{found.kind}: {found.detail}"
