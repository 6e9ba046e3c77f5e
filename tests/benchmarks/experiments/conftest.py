"""Fixtures of experiments that are run as commands."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="session")
def run_command():
    """Runs the main function of an experiment; returns the content of the JSON file it writes and what it printed."""

    def run(main, out, *arguments):
        printed: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
            assert main([*arguments]) == 0
        return json.loads(out.read_text()), "\n".join(printed)

    return run
