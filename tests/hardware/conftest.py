from __future__ import annotations

import json
from pathlib import Path

import pytest

BOARDS = Path(__file__).parents[1] / "recorded/boards"


@pytest.fixture
def plant(tmp_path):
    """Writes a board's files below a folder; a value of null becomes a folder, which cannot be read."""

    def make(name, **changes):
        for path, text in {**json.loads((BOARDS / f"{name}.json").read_text()), **changes}.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                file.mkdir(exist_ok=True)
            else:
                file.write_text(text)
        return tmp_path

    return make
