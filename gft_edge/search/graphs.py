"""One traced graph at other token budgets: token counts are constants, so they can be exchanged without tracing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError

Pattern = tuple[bool, ...]
"""For each stage, whether it drops patches. Budgets of one pattern have the same graph but for the counts."""


def pattern_of(budget: TokenBudget) -> Pattern:
    """Returns which stages drop patches."""
    return tuple(kept < entering for entering, kept in zip(budget.stage_inputs, budget.keep))


def traced_budget(config: GFTConfig, pattern: Pattern) -> TokenBudget:
    """Returns a budget of a pattern whose counts can be told apart from each other and from the model's sizes.

    Raises:
        ConfigError: the image has too few patches.
    """
    prefix = config.num_prefix_tokens
    taken = {config.num_heads, config.embed_dim, config.num_patches + prefix, 1}
    keep: list[int] = []
    left = sum(pattern)
    count = config.num_patches
    for drops in pattern:
        if drops:
            count = count * left // (left + 1)
            left -= 1
            while count + prefix in taken:
                count -= 1
            taken.add(count + prefix)
        keep.append(count)
    if count < 2:
        raise ConfigError(f"{config.num_patches} patches are too few for {len(pattern)} stages that drop some")
    return TokenBudget(tuple(keep), config.num_patches)


def at_budget(
    graph: onnx.ModelProto, traced: TokenBudget, wanted: TokenBudget, num_prefix_tokens: int
) -> onnx.ModelProto:
    """Returns a graph at another budget: k of each TopK, and the tokens in the shapes of Reshape, are replaced.

    The result equals the graph that export writes for that budget, but for names of constants and recorded shapes.

    Args:
        graph: traced at ``traced`` without maps; left untouched.
        traced: its budget, of :func:`traced_budget`.
        wanted: of the same pattern.
        num_prefix_tokens: of the model.

    Raises:
        ConfigError: the patterns differ, or the graph is not of that budget.
    """
    pattern = pattern_of(traced)
    if pattern != pattern_of(wanted):
        raise ConfigError(f"graph of budget {traced.id}: other stages drop patches at {wanted.id}; trace it again")
    counts = [(old, new) for old, new, drops in zip(traced.keep, wanted.keep, pattern) if drops]
    tokens = {old + num_prefix_tokens: new + num_prefix_tokens for old, new in counts}
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    del result.graph.value_info[:]  # recorded shapes are those of the traced budget
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    number = 0
    for node in result.graph.node:
        if node.op_type == "TopK":
            if number == len(counts) or _integers(constants, node.input[1]) != [counts[number][0]]:
                raise ConfigError(f"graph of budget {traced.id}: its selections are not those of this budget")
            node.input[1] = _constant(result, constants, [counts[number][1]])
            number += 1
        elif node.op_type == "Reshape":
            shape = _integers(constants, node.input[1])
            if len(shape) > 2 and shape[1] in tokens:
                node.input[1] = _constant(result, constants, [shape[0], tokens[shape[1]], *shape[2:]])
    dropped = wanted.keep[-1] < wanted.num_patches
    # A selection in the last block is none: the class token alone is computed there.
    if number not in (len(counts), len(counts) - 1) or (number < len(counts) and not dropped):
        raise ConfigError(f"graph of budget {traced.id}: its selections are not those of this budget")
    return result


def _integers(constants: Mapping[str, onnx.TensorProto], name: str) -> list[int]:
    tensor = constants.get(name)
    return [] if tensor is None else [int(value) for value in numpy_helper.to_array(tensor).ravel()]


def _constant(model: onnx.ModelProto, constants: dict[str, onnx.TensorProto], values: list[int]) -> str:
    """Returns the name of an int64 constant with these values, added to the graph where it is not yet."""
    name = "budget_" + "_".join(str(value) for value in values).replace("-", "m")
    if name not in constants:
        tensor = numpy_helper.from_array(np.array(values, np.int64), name)
        model.graph.initializer.append(tensor)
        constants[name] = tensor
    return name
