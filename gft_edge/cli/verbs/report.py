"""Write an HTML page: of a run, from the result files in its folder, or of bench files.

In the folder of a run, results are found by the contents of the files, not by their names: artefacts, checkpoints with
their log.jsonl, and the files that evaluate --out, bench --out, predict --out, calibrate, quantize, sensitivity and
verify write. The page and the output name parts without data and files that cannot be used.

Bench files of several runs and machines are compared: copy the bench file from the board and pass it here.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

EXAMPLE = "gft-edge report runs/demo, or: gft-edge report host.json orin.json --out runs/compared"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "run",
        nargs="+",
        type=Path,
        metavar="RUN_DIR|BENCH.json",
        help="folder with artefacts, checkpoints and result files; or one or more files of gft-edge bench",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the page of bench files (folder of the first file)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result
    from gft_edge.cli.early import require_file
    from gft_edge.errors import ConfigError

    if len(args.run) == 1 and args.run[0].suffix != ".json":
        from gft_edge.bundle import is_bundle
        from gft_edge.report.pages.run import write_page

        run = args.run[0]
        if inside := next((folder for folder in (run, run.absolute().parent) if is_bundle(folder)), None):
            raise ConfigError(
                f"run {run}: {inside} is a bundle, which would not pass its check with a page in it; copy the results of "
                "its artifact/reports to another folder and give that"
            )
        if args.out and args.run[0].is_dir():
            raise ConfigError("--out is for bench files; the page of a run is written to its folder")
        written = write_page(args.run[0])
        lines = [str(written.page)]
        lines += [f"left out: {part.what} ({part.why})" for part in written.left_out]
        lines += [f"not used: {file.file}: {file.why}" for file in written.unused]
        data = {
            "page": str(written.page),
            "left_out": [asdict(part) for part in written.left_out],
            "not_used": [asdict(file) for file in written.unused],
        }
        result(args, data, "\n".join(lines))
        return 0
    folders = [path for path in args.run if path.is_dir()]
    if folders:
        raise ConfigError(f"{folders[0]} is a folder; give one run folder, or only bench files")
    for path in args.run:
        require_file(path, "bench file")
    from gft_edge.report.pages.bench import write_bench_page

    page, merged = write_bench_page(args.run, args.out or args.run[0].parent)
    result(args, {"page": str(page), "merged": str(merged)}, str(page))
    return 0
