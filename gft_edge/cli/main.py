"""``gft-edge VERB``: parses the arguments, runs one verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from gft_edge.cli.console import print_out, standard_output
from gft_edge.cli.parsing import nearest, split_verb, top_parser, verb_parser
from gft_edge.cli.process import abandon_stdout, ended_by_signals, how_ended, ignore_signals, prepare_streams
from gft_edge.cli.terminal import error_line, visible
from gft_edge.errors import EXIT_OK, EXIT_USER_ERROR, GFTEdgeError, MissingExtraError, OutputError
from gft_edge.files import chain

VERBS = {
    "doctor": "show what is installed and what works on this machine, with reasons",
    "demo": "run the whole chain on the built-in task and write a report page",
    "train": "train a model from a recipe",
    "distill": "train a model from a recipe that also learns from a teacher's answers",
    "import-published": "convert a .pth file of the published code to a checkpoint",
    "adopt": "make a focal GFT checkpoint of any trained ViT, without training",
    "evaluate": "measure the accuracy of a checkpoint or artefact",
    "controls": "measure whether the patches that a model keeps are better than random ones",
    "search": "find the smallest model that is still right: budgets and precisions by accuracy and cost",
    "calibrate": "find activation ranges and the number of images they need",
    "sensitivity": "measure the effect of INT8 on each layer; choose layers for mixed precision",
    "quantize": "calibrate and quantize a checkpoint",
    "export": "export a checkpoint to an ONNX artefact",
    "lint": "find problems of a graph: errors, slow parts, parts that a target cannot build",
    "build": "compile an artefact into a TensorRT engine",
    "verify": "check that an artefact computes the same as its model",
    "sweep": "measure milliseconds against tokens on one backend",
    "bench": "measure and compare the latency of artefacts, or import trtexec results",
    "predict": "classify images and draw the patches that the model kept",
    "bundle": "make the folder that a board or server runs: artefact, its files, hashes, signature",
    "selftest": "test a bundle where it is used: files, signature, device, golden images",
    "report": "write the HTML page of a run, or of bench files of several machines",
}
"""Verbs and their one-line help, in the order of a typical workflow."""


def verb_module(verb: str) -> ModuleType:
    """Imports the module of a verb."""
    return importlib.import_module(f"gft_edge.cli.verbs.{verb.replace('-', '_')}")


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Parses the arguments of a verb and runs it; errors propagate."""
    module = verb_module(verb)
    code: int = module.run(verb_parser(verb, module).parse_args(arguments))
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Exit codes: 0 ok, 1 a check failed, 2 user error or a result that cannot be written, 3 missing extra, 130 interrupted,
    143 terminated.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    verb = next((argument for argument in arguments[:1] if argument in VERBS), "")
    prog = f"gft-edge {verb}".rstrip()
    with ended_by_signals() as received:
        try:
            code = _run(arguments)
            with standard_output():
                sys.stdout.flush()
            return code
        except SystemExit:  # from help, version, or a parsing error
            raise
        except BaseException as error:
            if isinstance(error, BrokenPipeError):
                abandon_stdout()
                return EXIT_OK
            stop = _interrupt(error, received)
            if stop is not None:
                word, code = how_ended(received)
                _print_error(f"{prog}: {word}" + (f"; {stop}" if str(stop) else ""))
                return code
            problem = _user_problem(error)
            if problem is None:
                raise
            if isinstance(error, OutputError):
                abandon_stdout()
            if "-v" in arguments or "--verbose" in arguments:
                logging.getLogger("gft_edge").error("details", exc_info=error)
            _print_error(f"{prog}: {problem}")
            return problem.exit_code


def _run(arguments: Sequence[str]) -> int:
    """Parses the arguments and runs the verb; errors propagate."""
    top = top_parser(VERBS)
    if not arguments:
        print_out(top.format_help().rstrip())
        return EXIT_USER_ERROR
    place = split_verb(arguments)
    top.refuse_unknown_flags(arguments[:place])
    options = top.parse_args(arguments[: place + 1])
    if options.print_completion is not None:
        from gft_edge.cli.completion import completion_script

        print_out(completion_script(options.print_completion, VERBS, verb_module, verb_parser))
        return EXIT_OK
    verb = options.verb
    if verb not in VERBS:
        near = nearest(verb or "", VERBS) or f"; there are: {', '.join(VERBS)}"
        top.error("no VERB given" if verb is None else f"unknown verb {verb!r}{near}")
    module = verb_module(verb)
    parser = verb_parser(verb, module)
    parser.refuse_unknown_flags(arguments[place + 1 :])
    args = parser.parse_args(arguments[place + 1 :])
    _log(logging.INFO if args.verbose else logging.ERROR)
    code: int = module.run(args)
    return code


class _SafeFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n\t")


def _log(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_SafeFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def _interrupt(error: BaseException, received: list[signal.Signals]) -> KeyboardInterrupt | None:
    """Returns the interrupt that caused an error; libraries (torch.export, TensorRT) wrap it in their own errors."""
    found = next((one for one in chain(error) if isinstance(one, KeyboardInterrupt)), None)
    return KeyboardInterrupt() if found is None and received else found


def _user_problem(error: BaseException) -> GFTEdgeError | None:
    """Returns the error to show in one line; None for a bug, which keeps its traceback."""
    if isinstance(error, GFTEdgeError):
        return error
    if isinstance(error, ModuleNotFoundError):
        from gft_edge.hardware.environment import PACKAGES

        name = (error.name or "").partition(".")[0]
        return MissingExtraError(name, PACKAGES[name][1]) if name in PACKAGES else None
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return GFTEdgeError(f"{error.filename}: {reason}" if error.filename else reason)
    if isinstance(error, MemoryError):
        return GFTEdgeError("out of memory; use smaller batches or images, or a machine with more memory")
    return None


def _print_error(text: str) -> None:
    with contextlib.suppress(OSError):
        print(error_line(text), file=sys.stderr)


def program() -> NoReturn:
    """Entry point of ``gft-edge``: :func:`main`, whose exit code no later signal replaces."""
    code = main()
    ignore_signals()
    sys.exit(code)


if __name__ == "__main__":
    program()
