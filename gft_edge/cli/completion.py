"""Shell completion of verbs, flags and file names, made by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from gft_edge.cli.parsing import Parser, nearest
from gft_edge.errors import ConfigError, MissingExtraError


def completion_script(
    shell: str,
    verbs: dict[str, str],
    load: Callable[[str], ModuleType],
    make_parser: Callable[[str, ModuleType], Parser],
) -> str:
    """Returns a completion script; completion itself needs neither shtab nor gft-edge.

    Args:
        shell: bash, fish, tcsh or zsh.
        verbs: names with one line of help each.
        load: returns the module of a verb.
        make_parser: returns the parser of a verb.

    Raises:
        ConfigError: unknown shell.
        MissingExtraError: shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError:
        raise MissingExtraError("shtab", "cli") from None
    shells = shtab.SUPPORTED_SHELLS
    if shell not in shells:
        raise ConfigError(f"no completion for {shell!r}{nearest(shell, shells)}; there are: {', '.join(shells)}")
    whole = argparse.ArgumentParser(prog="gft-edge")
    whole.add_argument("--version", action="store_true", help="print the version")
    under = whole.add_subparsers()
    for verb, text in verbs.items():
        parser = make_parser(verb, load(verb))
        for action in parser.actions:
            if action.type is Path or not (action.option_strings or action.choices):
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # read by shtab
        under.add_parser(verb, help=text, parents=[parser], add_help=False)
    return str(shtab.complete(whole, shell))
