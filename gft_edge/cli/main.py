"""``gft-edge VERB``: parses, runs one verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from gft_edge import __version__
from gft_edge.errors import EXIT_OK, EXIT_USER_ERROR, GFTEdgeError, MissingExtraError

VERBS = {
    "doctor": "what is installed, what will and will not work here, and why",
    "demo": "the whole chain on the built-in task, ending in a report page",
    "train": "train a model by a recipe",
    "import-published": "turn a .pth file of the published code into a checkpoint",
    "evaluate": "accuracy of a checkpoint or artefact",
    "calibrate": "find the ranges of activations, and how many images they need",
    "sensitivity": "what INT8 does to each layer, and the layers to choose for mixed precision",
    "quantize": "calibrate and quantize a checkpoint to INT8",
    "export": "export a checkpoint to an ONNX artefact",
    "lint": "find what makes a graph wrong, slow or impossible to build on a target",
    "build": "compile an artefact into a TensorRT engine",
    "verify": "prove that an artefact still computes what the model computes",
    "bench": "measure artefacts against each other, or take in what trtexec measured",
    "predict": "classify images and draw what the model kept",
    "report": "make the HTML page of a run, or of bench files of several machines",
}
"""Verbs and their one-line help, in the order a user meets them."""


def _verb_module(verb: str) -> ModuleType:
    return importlib.import_module(f"gft_edge.cli.{verb.replace('-', '_')}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR)


def _top_parser() -> _Parser:
    listing = "\n".join(f"  {verb:<17} {text}" for verb, text in VERBS.items())
    parser = _Parser(
        prog="gft-edge",
        description="Gradient Focal Transformers from training to a board on a robot.",
        epilog=f"verbs:\n{listing}\n\nexample: gft-edge demo --out runs/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gft-edge {__version__}")
    parser.add_argument("verb", metavar="VERB", choices=list(VERBS), help="what to do; VERB --help tells more")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the verb")
    return parser


def _verb_parser(verb: str, module: ModuleType) -> _Parser:
    parser = _Parser(
        prog=f"gft-edge {verb}",
        description=module.__doc__,
        epilog=f"example: {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="more on standard error; tracebacks of user errors"
    )
    return parser


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Parses one verb's arguments and runs it; errors pass through."""
    module = _verb_module(verb)
    code: int = module.run(_verb_parser(verb, module).parse_args(arguments))
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (0 ok, 1 check failed, 2 user error, 3 missing extra)."""
    top = _top_parser().parse_args(argv)
    module = _verb_module(top.verb)
    args = _verb_parser(top.verb, module).parse_args(top.arguments)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.ERROR, stream=sys.stderr, format="%(name)s: %(message)s"
    )
    try:
        code: int = module.run(args)
        sys.stdout.flush()
        return code
    except GFTEdgeError as error:
        problem = error
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        from gft_edge.environment import PACKAGES

        if name not in PACKAGES:
            raise
        problem = MissingExtraError(name, PACKAGES[name][1])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        print(f"gft-edge {top.verb}: interrupted", file=sys.stderr)
        return 130
    if args.verbose:
        logging.getLogger("gft_edge").error("details", exc_info=problem)
    text = " ".join(str(problem).split()).removeprefix(f"{top.verb}: ")  # modules name the verb for callers from Python
    print(f"gft-edge {top.verb}: {text}", file=sys.stderr)
    return problem.exit_code


if __name__ == "__main__":
    sys.exit(main())
