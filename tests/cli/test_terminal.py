"""Text on a terminal: nothing that it would obey, columns that line up, nothing lost by wrapping."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.cli import console
from gft_edge.cli.terminal import LONGEST_LINE, columns, error_line, terminal_width, visible, width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 100 %", "plain text, 100 %"),
        ("Äpfel 猫 café", "Äpfel 猫 café"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("bell\a cr\r nul\0 del\x7f", r"bell\x07 cr\r nul\x00 del\x7f"),
        ("c1 \x9b31m \x85", r"c1 \x9b31m \x85"),
        ("\u202egnp.exe\u202c \u2066x\u2069", r"\u202egnp.exe\u202c \u2066x\u2069"),
        ("\ufeffant", r"\ufeffant"),
        ("a\nb\tc\u2028d", r"a\nb\tc\u2028d"),
        ("\udcff.png", r"\udcff.png"),
        ("\u0646\u200c\u062e", "\u0646\u200c\u062e"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, shown):
    assert visible(text) == shown


def test_newlines_stay_where_they_are_meant():
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@given(st.text())
def test_anything_becomes_printable(text):
    line = error_line(text)
    assert "\n" not in line
    assert all(c.isprintable() or c in "\u200c\u200d\u00a0\u3000" or c.isspace() or not c.isascii() for c in line)
    line.encode()


def test_an_error_line_is_bounded_and_keeps_beginning_and_end():
    line = error_line("recipe x: value " + "9" * 10_000_000 + " is too large; give less")
    assert len(line) < 400
    assert line.startswith("recipe x: value 999")
    assert line.endswith("is too large; give less")
    assert len(error_line("word " * 10_000)) < LONGEST_LINE * 1.1


def test_a_label_with_a_newline_makes_no_second_row():
    text = console.table(("label", "n"), [("ant\nfalse row  1", 2), ("\x1b[2Jbee", 3)])
    assert text.splitlines()[2:] == [r"ant\nfalse row  1  2", r"\x1b[2Jbee         3"]


def test_wide_and_combining_characters_line_up():
    lines = console.table(("label", "n"), [("日本語", 1), ("e\u0301te\u0301", 2), ("ascii", 3)]).splitlines()
    assert {width(line) for line in lines} == {9}


@pytest.mark.parametrize("limit", [20, 33, 60])
def test_a_table_too_wide_is_wrapped_and_complete(limit):
    rows = [("name", "why"), ("blocks.0.attn.qkv", "query, key and value projection of 日本語"), ("x", "y")]
    lines = columns(rows, limit).splitlines()
    assert all(width(line) <= limit for line in lines)
    joined = "".join("".join(lines).split())
    for row in rows:
        for character in set("".join("".join(row).split())):
            assert joined.count(character) >= "".join(row).count(character)
    assert columns(rows, None).count("\n") == 3


def test_only_a_terminal_has_a_width(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert terminal_width() is None
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal_width() is None  # piped: nothing is wrapped, whatever COLUMNS says
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal_width() == 40
    assert all(len(line) <= 40 for line in console.table(("a", "b"), [("x" * 50, "y" * 50)]).splitlines())
