"""Make the HTML page of a run from the JSON files in its folder; whatever is missing is left out."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "gft-edge report runs/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="folder with artefacts and JSON files, as demo makes it"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result
    from gft_edge.report.page import write_page

    page = write_page(args.run)
    result(args, {"page": str(page)}, str(page))
    return 0
