"""Runs verbs in forks of a process that has imported all modules, so that a start takes milliseconds instead of seconds."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HEAVY = (
    "tomllib",
    "torch._dynamo",
    "torch.export",
    "torch.onnx",
    "torchvision",
    "timm",
    "onnx.shape_inference",
    "onnxscript",
    "onnxslim",
    "onnxruntime",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "jinja2",
    "tensorrt_rtx",
    "gft_edge.cli.main",
    "gft_edge.export.onnx.artifact",
    "gft_edge.export.verify.artifact_alone",
    "gft_edge.train.loop",
)
"""Modules that verbs import."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = ("os.", "shutil.", "tempfile.")
READING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr", "os.chdir")


@dataclass(frozen=True)
class Ended:
    """End of a verb.

    Attributes:
        code: exit code; a negative value is the number of the signal that ended the verb.
        said: output on both streams.
        seconds: time from the start, or from the signal if one was sent.
        events: number of file events in the watched folder.
        signalled: True if the signal was sent before the verb ended.
    """

    code: int
    said: str
    seconds: float
    events: int = 0
    signalled: bool = False


@dataclass(frozen=True)
class Surroundings:
    """Environment of a verb.

    Args:
        stdout: file for standard output; None captures the output.
        user: ID of the user and group that run the verb; None for those of this process.
    """

    stdout: Path | None = None
    user: int | None = None


USUAL = Surroundings()


def warm_up() -> None:
    """Imports the modules that verbs need, so that forked processes have them."""
    for name in HEAVY:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(name)


def run_verb(
    argv: Sequence[object],
    folder: Path,
    kill_at: int = 0,
    send: tuple[signal.Signals, float] | None = None,
    limit: float = 120.0,
    around: Surroundings = USUAL,
) -> Ended:
    """Runs a verb in a forked process with its own process group.

    Args:
        argv: arguments of the command line.
        folder: working folder; events of files in it are counted.
        kill_at: number of the event before which the process kills itself; 0 for none.
        send: a signal and its delay in seconds. SIGINT goes to the process group, as from a terminal.
        limit: seconds after which the group is killed with SIGKILL.
        around: environment of the verb.
    """
    reader, writer = os.pipe()
    words = [str(word) for word in argv]
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_child(words, folder, kill_at, writer, around)
    os.close(writer)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    began, signalled = time.monotonic(), False
    deadline, output = began + limit, b""
    moment = None if send is None else began + send[1]
    status = None
    while status is None:
        wait = 0.02 if moment is None else max(0.0, min(0.02, moment - time.monotonic()))
        if select.select([reader], [], [], wait)[0]:
            output += os.read(reader, 1 << 16)
        now = time.monotonic()
        if moment is not None and send is not None and now >= moment:
            moment, began, signalled = None, now, True
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if send[0] == signal.SIGINT else os.kill)(child, send[0])
        if now > deadline:
            _end(child)
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
    seconds = time.monotonic() - began
    _end(child)  # processes that the verb started
    while select.select([reader], [], [], 0)[0] and (chunk := os.read(reader, 1 << 16)):
        output += chunk
    os.close(reader)
    text = output.decode("utf-8", "replace")
    text, _, count = text.rpartition(_COUNT) if _COUNT in text else (text, "", "0")
    ended = os.waitstatus_to_exitcode(status)
    return Ended(ended, text, seconds, int(count.split()[0]), signalled)


def run_together(
    commands: Sequence[Sequence[object]], folder: Path, delays: Sequence[float], limit: float
) -> list[Ended]:
    """Runs verbs at the same time in one folder.

    Args:
        commands: arguments of each verb.
        folder: working folder of all verbs.
        delays: seconds before each verb starts.
        limit: seconds after which each verb is killed.

    Raises:
        RuntimeError: a process that waits for a verb ended without a result.
    """
    pipes = []
    for argv, delay in zip(commands, delays):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                time.sleep(delay)
                os.write(writer, json.dumps(asdict(run_verb(argv, folder, limit=limit))).encode())
            finally:
                os._exit(0)
        os.close(writer)
        pipes.append((child, reader))
    texts = []
    for child, reader in pipes:
        with os.fdopen(reader, "rb") as pipe:
            texts.append(pipe.read())
        os.waitpid(child, 0)
    if not all(texts):
        raise RuntimeError("a process that waits for a verb ended without a result")
    return [Ended(**json.loads(text)) for text in texts]


def said_so(verb: str, ended: Ended) -> bool:
    """Returns True if the last line of the output is the verb's message and there is no traceback."""
    lines = [line for line in ended.said.splitlines() if line.strip()]
    return bool(lines) and lines[-1].startswith(f"gft-edge {verb}: ") and "Traceback" not in ended.said


_COUNT = "\n#events "


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _run_child(words: Sequence[str], folder: Path, kill_at: int, writer: int, around: Surroundings) -> None:
    """Runs a verb in the child process; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for number, stream in ((0, nowhere), (1, writer), (2, writer)):
            os.dup2(stream, number)
        _apply(around)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        seen = _count_events(folder, kill_at)
        from gft_edge.cli.main import main

        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writer, f"{_COUNT}{seen[0]}\n".encode())
    finally:
        os._exit(code)


def _apply(around: Surroundings) -> None:
    if around.stdout is not None:
        os.dup2(os.open(around.stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 1)
    if around.user is not None:
        os.setgroups([])
        os.setgid(around.user)
        os.setuid(around.user)


def _count_events(folder: Path, kill_at: int) -> list[int]:
    """Counts later events that change files in a folder; kills this process before event number ``kill_at``."""
    root, seen = str(folder), [0]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            mode, flags = (*arguments, None, None)[1:3]
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and not (
                isinstance(flags, int) and flags & WRITES
            ):
                return
        elif not event.startswith(EVENTS) or event in READING:
            return
        if not any(_is_below(one, root, folder) for one in arguments[:2]):
            return
        seen[0] += 1
        if seen[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def _is_below(value: object, root: str, folder: Path) -> bool:
    if isinstance(value, (str, bytes, os.PathLike)):
        text = os.fsdecode(value)
        return text.startswith(root) or (bool(text) and not text.startswith("/"))
    return False
