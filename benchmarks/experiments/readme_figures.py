"""Copies figures of the pages in benchmarks/ into the table of the README, so that none is typed by hand.

python -m gft_edge.benchmarks.experiments.readme_figures README.md
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.cli.console import say
from gft_edge.errors import ArtifactError, GFTEdgeError, exit_code
from gft_edge.files import replacing

MACHINE = re.compile(r"NVIDIA [A-Z]\d+|AMD EPYC|Intel Xeon")
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True)
class Figure:
    """A row of a table of another page.

    Args:
        what: text in the README.
        page: in the folder of the README.
        row: first cell of the row.
        value, interval: numbers of the cells, from 0; None without an interval, or one in the cell of the value.
        unit: after the value.
    """

    what: str
    page: str
    row: str
    value: int
    interval: int | None = None
    unit: str = ""


RESULTS, GPU = "benchmarks/RESULTS.md", "benchmarks/GPU.md"
FIGURES = (
    Figure(
        "ViT-B with half of its work against the whole: FP32, CPU", RESULTS, "GFT against ViT, FP32, 1 thread", 2, 3
    ),
    Figure("the same in INT8", RESULTS, "GFT INT8 against ViT FP32, 1 thread", 2, 3),
    Figure("against ToMe at equal work", RESULTS, "GFT against ToMe at equal MACs, FP32, 1 thread", 2, 3),
    Figure("against EViT at equal work", RESULTS, "GFT against EViT at equal MACs, FP32, 1 thread", 2, 3),
    Figure("ViT-B with half of its work: FP16, H200, batch 1", GPU, "inference, batch 1: GFT over ViT", 2, unit="x"),
    Figure("the same, batch 64", GPU, "inference, batch 64: GFT over ViT", 2, unit="x"),
    Figure(
        "the same against EViT with the same patches",
        GPU,
        "inference, batch 64: GFT over EViT, same patches",
        2,
        unit="x",
    ),
    Figure(
        "points of top-1 that INT8 costs a trained ViT-S/14",
        "benchmarks/REAL_BACKBONE.md",
        "INT8, default of quantize",
        3,
        4,
    ),
    Figure("points of top-1 that a teacher gives a student of 21 % of the work", "benchmarks/DISTILLATION.md", "KL", 3),
)


def table(root: Path) -> str:
    """Returns the README's table from the pages in a folder.

    Raises:
        ArtifactError: a page or a row is missing.
    """
    lines = ["| what | measured | 95 % interval | machine | page |", "|---|---|---|---|---|"]
    for figure in FIGURES:
        cells = _row(root / figure.page, figure.row)
        value, _, after = cells[figure.value].partition(" (")
        interval = after.removesuffix(")") if figure.interval is None else cells[figure.interval]
        name, machine = Path(figure.page).stem, _machine(root / figure.page)
        lines.append(f"| {figure.what} | {value}{figure.unit} | {interval} | {machine} | [{name}]({figure.page}) |")
    return "\n".join(lines)


def with_table(text: str, root: Path) -> str:
    """Returns a page with the table between its two marks; raises ArtifactError where it has no marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ArtifactError(f"the page needs the lines {BEGIN} and {END}, once and in this order")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table(root)}\n{END}{after}"


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"page {page}: {error.strerror}") from None


def _machine(page: Path) -> str:
    """Returns the first machine that a page names; none is named where only answers are counted."""
    found = MACHINE.search(_read(page))
    return "" if found is None else found[0]


def _row(page: Path, first: str) -> list[str]:
    for line in _read(page).splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]] if line.startswith("|") else re.split(r"\s{2,}", line)
        if cells and cells[0] == first:
            return cells
    raise ArtifactError(f"page {page}: no table has a row {first!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the table into the page given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="README.md; pages are read from the folder that it is in")
    page = parser.parse_args(arguments).page
    try:
        text = with_table(_read(page), page.parent)
    except GFTEdgeError as error:
        say(f"error: {error}")
        return error.exit_code
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
