"""Recognises the outputs of PyTorch's modules in a graph by their values: the module of a node, the first module not found."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from gft_edge.budget import TokenBudget
from gft_edge.export.verify.places import Place, agreement_db, decibels, finite
from gft_edge.model.scores import SCORES
from gft_edge.quant.modules import Quantizer
from gft_edge.stats.agreement import Arrays

SAME_TENSOR_DB, SAME_INT8_TENSOR_DB = 60.0, 30.0
"""Least agreement of a module's output with its tensor: float32 rounding stays above 100 dB, INT8 rounding ties above 40."""
_SAMPLE = 4096


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its path, and its float inputs and outputs."""

    path: str
    inputs: tuple[npt.NDArray[Any], ...]
    outputs: tuple[npt.NDArray[Any], ...]


def module_calls(
    model: nn.Module, images: npt.NDArray[np.float32], budget: TokenBudget, graph: onnx.GraphProto
) -> list[ModuleCall]:
    """Returns the calls of all modules, in the order in which they finish (children before parents).

    Args:
        model: in eval mode.
        images: preprocessed, (B, 3, H, W).
        budget: of the graph.
        graph: whose maps are computed too, and whose order of the patches is followed.
    """
    calls: list[ModuleCall] = []

    def recorder(path: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            calls.append(ModuleCall(path, tuple(_float_arrays(inputs)), tuple(_float_arrays(output))))

        return hook

    modules = [(path, m) for path, m in model.named_modules() if path and not isinstance(m, Quantizer)]
    handles = [module.register_forward_hook(recorder(path)) for path, module in modules]
    try:
        with torch.no_grad():
            _run_as(graph, model, torch.from_numpy(images), budget)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _run_as(graph: onnx.GraphProto, model: nn.Module, images: Tensor, budget: TokenBudget) -> None:
    """Runs a model with maps if a graph has them; without them patches go on in the order in which TopK gives them."""
    config: Any = model.config
    if len(graph.output) > 1:
        model(images, budget, maps=True)
    elif config.variant == "focal" and not SCORES[config.score].reads_neighbours:
        model(images, budget, choose=lambda scores, k: scores.topk(k, dim=1).indices)
    else:
        model(images, budget)


def _float_arrays(value: Any) -> Iterator[npt.NDArray[Any]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach().cpu().numpy()
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _float_arrays(part)


class Recognizer:
    """Finds an array among the tensors of a graph by a sample of its values.

    Args:
        arrays: tensors of the graph, by name.
        same_db: least SQNR of a tensor that is recognised as the array.
    """

    def __init__(self, arrays: Arrays, same_db: float = SAME_TENSOR_DB) -> None:
        self._same_db = same_db
        self._by_shape: dict[tuple[int, ...], list[tuple[str, npt.NDArray[Any]]]] = {}
        self._known: dict[tuple[tuple[int, ...], bytes], tuple[str, float]] = {}
        for name, array in arrays.items():
            if array.dtype.kind == "f":
                self._by_shape.setdefault(array.shape, []).append((name, _sample(array)))

    def __call__(self, array: npt.NDArray[Any]) -> tuple[str, float]:
        """Returns name and SQNR of the most similar tensor of the same shape, the earliest of equal ones; "" if none is similar."""
        sample = _sample(array)
        key = (array.shape, sample.tobytes())  # the output of one module is the input of the next
        if key not in self._known:
            self._known[key] = self._nearest(array.shape, sample)
        return self._known[key]

    def _nearest(self, shape: tuple[int, ...], sample: npt.NDArray[Any]) -> tuple[str, float]:
        best, best_db = "", -math.inf
        for name, values in self._by_shape.get(shape, ()):
            db = agreement_db(sample, values)
            if db > best_db:
                best, best_db = name, db
        return (best, best_db) if best_db >= self._same_db else ("", best_db)


def _sample(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    flat = array.reshape(-1).astype(np.float32)
    return flat[:: max(1, len(flat) // _SAMPLE)]


def first_bad_module(calls: Iterable[ModuleCall], recognize: Recognizer) -> Place | None:
    """Returns the first module from which on no output of PyTorch is found in the graph; None when the last ones are found.

    Maps, which no later module reads, count by themselves.

    Args:
        calls: of PyTorch, in order.
        recognize: finds the graph's tensors on the same images.
    """
    before = math.inf
    first: tuple[ModuleCall, float] | None = None
    maps: tuple[ModuleCall, float] | None = None
    calls = list(calls)
    for call in calls:
        if not call.outputs:
            continue
        name, db = recognize(call.outputs[0])
        if name:
            before, first = min(before, db), None
        elif first is None:
            first = (call, db)
        lost = [db for name, db in map(recognize, call.outputs[1:]) if not name]
        if name and lost and maps is None:
            maps = (call, lost[0])
    first = first or maps
    if first is None:
        return None
    call, db = first
    inputs_found = all(recognize(array)[0] for array in call.inputs)
    path = call.path if inputs_found else _caller(call.path, {call.path for call in calls})
    where = path or "the model itself"
    text = f"module {where}: no tensor of the graph is its output (nearest: {decibels(db)})"
    if not inputs_found:
        text = f"module {where}: the input of {call.path} is not in the graph (nearest output: {decibels(db)})"
    text += f"; tensors before it have {decibels(before)}"
    return Place("module", path, text, module=path, sqnr_db=finite(db), sqnr_before_db=finite(before))


def _caller(path: str, called: Collection[str]) -> str:
    """Returns the innermost module around a path that runs as a whole; "" for the model itself."""
    while path := path.rpartition(".")[0]:
        if path in called:
            break
    return path


def node_modules(graph: onnx.GraphProto, calls: Iterable[ModuleCall], recognize: Recognizer) -> dict[str, str]:
    """Returns the innermost module that computes each tensor, by tensor name; "" for the model itself.

    A node belongs to a module if it is on a path from the module's inputs to its outputs.
    """
    producers = {name: node for node in graph.node for name in node.output if name}
    modules: dict[str, str] = {}
    for call in sorted(calls, key=lambda call: call.path.count(".")):
        inputs = {recognize(array)[0] for array in call.inputs}
        outputs = {recognize(array)[0] for array in call.outputs} - {""}
        if "" in inputs:
            # The image itself is no node's output; any other unknown input would let the walk leave the module.
            if call.inputs[0].shape[1:] != _input_shape(graph):
                continue
            inputs.discard("")
        pending = list(outputs - inputs)
        while pending:
            name = pending.pop()
            if name in inputs or name not in producers or modules.get(name) == call.path:
                continue
            modules[name] = call.path
            pending.extend(producers[name].input)
    return modules


def _input_shape(graph: onnx.GraphProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[1:])
