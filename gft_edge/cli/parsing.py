"""Parsers of the command line: wrapped help, errors in one line, suggestions for mistyped names."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from gft_edge import __version__
from gft_edge.cli.console import print_out
from gft_edge.cli.terminal import error_line
from gft_edge.errors import EXIT_USER_ERROR

EXIT_CODES = """exit codes:
  0    done
  1    a check failed
  2    a user error, or a result that cannot be written; one line describes it
  3    an extra is missing; the line names it
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM); 129 when the terminal closes (SIGHUP)"""

_LISTED = re.compile(r"(  +\S+  +)(.*)")


class _Help(argparse.HelpFormatter):
    """Wraps paragraphs and lists to the terminal; an example command stays on one line, so that users can copy it."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = re.split(r"\n\s*\n", text.strip("\n"))
        return "\n\n".join("\n".join(_wrapped(block, width)) for block in blocks)


def _wrapped(block: str, width: int) -> Iterable[str]:
    prose: list[str] = []
    for line in block.splitlines():
        listed = _LISTED.fullmatch(line)
        if listed is None and not line.startswith("example: "):
            prose.append(line)
            continue
        yield from textwrap.wrap(" ".join(prose), width)
        prose = []
        if listed is None:
            yield line
        elif len(listed[1]) + 10 > width:
            yield listed[1].rstrip()
            yield from textwrap.wrap(listed[2], width, initial_indent="    ", subsequent_indent="    ")
        else:
            after = " " * len(listed[1])
            yield from textwrap.wrap(listed[2], width, initial_indent=listed[1], subsequent_indent=after)
    yield from textwrap.wrap(" ".join(prose), width)


class Parser(argparse.ArgumentParser):
    """Parser that reports errors in one line with code 2, and unknown flags before missing arguments."""

    def error(self, message: str) -> NoReturn:
        """Prints the message in one line and ends the process."""
        print(f"{self.prog}: {error_line(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints help and version as results: a full or closed standard output is an error."""
        if file is sys.stdout:
            print_out(message.rstrip("\n"))
        else:
            super()._print_message(message, file)

    @property
    def actions(self) -> list[argparse.Action]:
        """All arguments."""
        return list(self._actions)

    def flags(self) -> list[str]:
        """Returns all flags, long and short."""
        return [flag for action in self._actions for flag in action.option_strings]

    def refuse_unknown_flags(self, arguments: Iterable[str]) -> None:
        """Ends the process with one line and the nearest flag if an argument is an unknown flag."""
        flags = self.flags()
        for argument in arguments:
            if argument == "--":
                return
            name = argument.partition("=")[0]
            if not re.match(r"--?[A-Za-z]", name) or " " in argument:
                continue
            short = not name.startswith("--")
            known = name[:2] in flags if short else any(flag.startswith(name) for flag in flags)
            if not known:
                self.error(f"unknown option {name}{nearest(name, flags)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'train'?"`` for the nearest known name, or ``""`` if none is near."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def top_parser(verbs: dict[str, str]) -> Parser:
    """Returns the parser of the arguments before the verb's own.

    Args:
        verbs: names with one line of help each.
    """
    listing = "\n".join(f"  {verb:<17} {text}" for verb, text in verbs.items())
    parser = Parser(
        prog="gft-edge",
        description="Gradient Focal Transformers: from training to deployment on edge devices.",
        epilog=f"verbs:\n{listing}\n\n{EXIT_CODES}\n\nexample: gft-edge demo --out runs/demo",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"gft-edge {__version__}")
    parser.add_argument(
        "--print-completion", metavar="SHELL", help="print a completion script for bash, fish, tcsh or zsh (extra: cli)"
    )
    parser.add_argument("verb", metavar="VERB", nargs="?", help="see below; VERB --help lists its arguments")
    parser.add_argument("arguments", nargs="*", metavar="...", help="arguments of the verb")
    return parser


def verb_parser(verb: str, module: ModuleType) -> Parser:
    """Returns the parser of a verb: its own arguments and those of all verbs."""
    parser = Parser(
        prog=f"gft-edge {verb}",
        description=module.__doc__,
        epilog=f"example: {module.EXAMPLE}",
        formatter_class=_Help,
    )
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="more messages on standard error, with tracebacks of user errors"
    )
    return parser


def split_verb(arguments: Sequence[str]) -> int:
    """Returns the position of the verb: the first argument that is not a flag, or the number of arguments without one.

    The value of ``--print-completion`` is not a verb.
    """
    for number, argument in enumerate(arguments):
        if not argument.startswith("-") and (number == 0 or arguments[number - 1] != "--print-completion"):
            return number
    return len(arguments)
