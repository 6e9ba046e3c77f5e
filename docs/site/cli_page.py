"""Writes docs/cli.md from the parsers of the verbs: ``python docs/site/cli_page.py docs/cli.md``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from gft_edge.cli.main import VERBS, verb_module
from gft_edge.cli.parsing import Parser, verb_parser
from gft_edge.files import replacing

HEAD = """# Command line

<!-- Written by `python docs/site/cli_page.py docs/cli.md` from the parsers of the verbs. -->

`gft-edge VERB --help` prints the same. Results go to stdout, progress to stderr. Each verb has its arguments, and these:

| argument | meaning |
|---|---|
{common}

| exit code | means |
|---|---|
| 0 | done |
| 1 | a check failed |
| 2 | a user error, or a result that cannot be written; one line describes it |
| 3 | an extra is missing; the line names it |
| 130, 143, 129 | interrupted (Ctrl-C), terminated (SIGTERM), terminal closed (SIGHUP) |

`gft-edge --print-completion SHELL` prints a completion script for bash, fish, tcsh or zsh (extra: cli).

| verb | does |
|---|---|
{verbs}
"""
EVERYWHERE = ("-h", "--json", "-v")
"""First flags of the arguments that every verb has."""


def page() -> str:
    """Returns docs/cli.md; it does not depend on the width of a terminal or the version of Python."""
    parsers = {verb: verb_parser(verb, verb_module(verb)) for verb in VERBS}
    common = [_row(action) for action in next(iter(parsers.values())).actions if _is_common(action)]
    verbs = [f"| [`{verb}`](#{verb}) | {_escaped(text)} |" for verb, text in VERBS.items()]
    head = HEAD.format(common="\n".join(common), verbs="\n".join(verbs))
    return "\n".join([head, *(_section(verb, parser) for verb, parser in parsers.items())])


def _section(verb: str, parser: Parser) -> str:
    example = verb_module(verb).EXAMPLE
    return f"## {verb}\n\n{_prose(parser.description or '')}\n\n```sh\n{example}\n```\n{_tables(parser)}"


def _tables(parser: Parser) -> str:
    """Returns one table of all arguments; a group with a name of its own begins with a row that names it."""
    rows = ["", "| argument | meaning |", "|---|---|"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not _is_common(action)]
        named = group.title not in ("positional arguments", "options", "optional arguments")
        if named and actions:
            rows.append(f"| **{_escaped(str(group.title))}** | {_escaped(group.description or '')} |")
        rows += [_row(action) for action in actions]
    return "\n".join(rows) + "\n"


def _is_common(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.option_strings[0] in EVERYWHERE


def _row(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": ""}
    needed = "required; " if action.required and action.option_strings else ""
    return f"| {_spelling(action)} | {needed}{_escaped(text)} |"


def _spelling(action: argparse.Action) -> str:
    """Returns how an argument is written, as code: ``-v, --verbose``, ``--threads N [N ...]``."""
    name = action.metavar if isinstance(action.metavar, str) else None
    if name is None:
        name = action.dest.upper() if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}"
    many = {"+": f"{name} [{name} ...]", "*": f"[{name} ...]", "?": f"[{name}]", 0: ""}
    value = many.get(action.nargs, name) if action.nargs is not None else name
    return f"`{' '.join([', '.join(action.option_strings), value]).strip()}`".replace("|", "\\|")


def _escaped(text: str) -> str:
    """Returns text whose characters mean themselves in a cell of a Markdown table."""
    return re.sub(r"([|*_\[\]])", r"\\\1", text).replace("<", "&lt;")


def _prose(text: str) -> str:
    return "\n\n".join("\n".join(_lines(block)) for block in re.split(r"\n\s*\n", text.strip()))


def _lines(block: str) -> Iterable[str]:
    return (_escaped(line.strip()) for line in block.splitlines())


if __name__ == "__main__":
    with replacing(Path(sys.argv[1])) as temporary:
        temporary.write_text(page(), encoding="utf-8")
