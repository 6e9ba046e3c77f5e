"""Runs native code of other libraries in a child process: a crash, a hang or its memory use cannot end the caller.

ONNX's shape inference, function inliner and TensorRT's parsers are C++ that ends the process on some malformed graphs.
One child serves all calls of a process. It starts at the first call, in about 0.2 s, and again after a crash.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from gft_edge.errors import ArtifactError

SECONDS = 120.0
"""Time limit of a call: shape inference of a graph of 20,000 nodes needs about 2 s."""

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from gft_edge.export.graph.native import serve; serve()"
)


class NativeError(Exception):
    """The library refused the graph or failed.

    Args:
        message: one line.
        crashed: the library ended its process or did not return.
    """

    def __init__(self, message: str, *, crashed: bool = False) -> None:
        super().__init__(message)
        self.crashed = crashed


class _Child:
    """A Python process that runs one function at a time and answers in order."""

    def __init__(self) -> None:
        if not sys.executable:
            raise ArtifactError("graph: no Python to run ONNX's shape inference with, sys.executable is empty")
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.answers: queue.Queue[tuple[bool, bytes] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        while (header := self.process.stdout.read(9)) and len(header) == 9:
            ok, size = struct.unpack("<?Q", header)
            self.answers.put((ok, self.process.stdout.read(size)))
        self.answers.put(None)

    def ask(self, function: str, payload: bytes, seconds: float) -> bytes:
        """Returns the result of the function; raises :class:`NativeError`."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it ended: the listener reports it
            _send(self.process.stdin, function.encode())
            _send(self.process.stdin, payload)
        try:
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            raise NativeError(f"did not return within {seconds:g} s", crashed=True) from None
        if answer is None:
            code = self.process.wait()
            raise NativeError(f"ended its process ({_cause(code)})", crashed=True)
        ok, data = answer
        if not ok:
            raise NativeError(data.decode(errors="replace"))
        return data

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _cause(code: int) -> str:
    import signal

    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


_lock = threading.Lock()
_child: _Child | None = None


def start() -> None:
    """Starts the child, so that it is ready when the graph is read; harmless when it runs."""
    with _lock:
        _running()


def _running() -> _Child:
    """Returns the child, a new one if it ended or belongs to a parent process; the lock is held."""
    global _child
    if _child is None or _child.owner != os.getpid() or _child.process.poll() is not None:
        _child = _Child()
    return _child


def call(function: str, payload: bytes, seconds: float = SECONDS) -> bytes:
    """Runs one of :data:`FUNCTIONS` in the child.

    Args:
        function: its name.
        payload: a serialised model or another input of the function.
        seconds: limit, after which the child is ended.

    Raises:
        NativeError: the library refused the graph, ended its process or did not return.
    """
    global _child
    with _lock:
        child = _running()
        try:
            return child.ask(function, payload, seconds)
        except NativeError as error:
            if error.crashed:
                child.stop()
                _child = None
            raise


@atexit.register
def stop() -> None:
    """Ends the child, if there is one."""
    global _child
    with _lock:
        if _child is not None and _child.owner == os.getpid():
            _child.stop()
        _child = None


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


# What runs in the child.


LONGEST = 1 << 20
"""Elements of a vector among the inputs up to which ONNX propagates data: it makes an object of each, 0.5 us and 100 bytes."""


def infer_shapes(payload: bytes) -> bytes:
    """Runs ONNX's shape inference, with data propagation where its cost is bounded; returns a serialised model with types."""
    import onnx

    model = onnx.ModelProto.FromString(payload)
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input]
    longest = max((shape[0].dim_value for shape in shapes if len(shape) == 1), default=0)
    return bytes(onnx.shape_inference.infer_shapes(model, data_prop=longest <= LONGEST).SerializeToString())


def inline_functions(payload: bytes) -> bytes:
    """Returns a serialised model with the nodes of local functions in place of their calls."""
    import onnx.inliner

    return bytes(onnx.inliner.inline_local_functions(onnx.ModelProto.FromString(payload)).SerializeToString())


def upgrade_opset(payload: bytes) -> bytes:
    """Returns a serialised model in opset 13, the first whose DequantizeLinear has scales per channel."""
    import onnx.version_converter

    return bytes(onnx.version_converter.convert_version(onnx.ModelProto.FromString(payload), 13).SerializeToString())


def parse(payload: bytes) -> bytes:
    """Lets a TensorRT parser read a file.

    Args:
        payload: JSON with ``module`` (``"tensorrt"`` or ``"tensorrt_rtx"``) and ``path``.

    Returns:
        JSON: a list of node, operator, domain and description of each error.
    """
    import importlib

    request = json.loads(payload)
    trt = importlib.import_module(request["module"])
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0) if builder is not None else None
    if network is None:
        raise RuntimeError(f"{request['module']} {trt.__version__} made no network")
    parser = trt.OnnxParser(network, logger)
    read = parser.parse_from_file(request["path"])
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    found: list[dict[str, Any]] = [
        {"node": error.node_name(), "operator": error.node_operator(), "description": error.desc()} for error in errors
    ]
    if not read and not found:
        found = [{"node": "", "operator": "", "description": "cannot be parsed, without a reason"}]
    return json.dumps(found).encode()


FUNCTIONS: dict[str, Callable[[bytes], bytes]] = {
    "infer_shapes": infer_shapes,
    "inline_functions": inline_functions,
    "parse": parse,
    "upgrade_opset": upgrade_opset,
}


def serve() -> None:
    """Answers calls on standard input until it closes; output of libraries on standard output is dropped."""
    import onnx  # noqa: F401  while the caller reads its file

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    while (header := requests.read(8)) and len(header) == 8:
        name = requests.read(struct.unpack("<Q", header)[0]).decode()
        payload = requests.read(struct.unpack("<Q", requests.read(8))[0])
        try:
            ok, data = True, FUNCTIONS[name](payload)
        except BaseException as error:
            ok, data = False, " ".join(str(error).split() or [type(error).__name__]).encode()
        answers.write(struct.pack("<?Q", ok, len(data)))
        answers.write(data)
        answers.flush()
