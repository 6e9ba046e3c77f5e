"""Which provider of ONNX Runtime really runs how many nodes of a session, and the refusal of a silent fallback to the processor.

ONNX Runtime opens a session on the CPU with a warning at most when a provider cannot be loaded, and gives a provider's unsupported
nodes to the CPU without one (seen with onnxruntime 1.32 and onnxruntime-gpu 1.31.1 without CUDA's libraries).
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gft_edge.errors import ConfigError

CPU = "CPUExecutionProvider"
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""Entry of the session's configuration; versions that do not know it ignore it."""

SHAPE_OPERATORS = frozenset(
    ["Shape", "Size", "Gather", "Unsqueeze", "Squeeze", "Concat", "Cast", "Constant", "ConstantOfShape", "Range"]
)
"""Operators that compute shapes; ONNX Runtime places them on the CPU on purpose, where shapes are read."""

Nodes = Mapping[str, Mapping[str, int]]
"""Provider, and the number of its nodes by operator."""


@dataclass(frozen=True)
class Assignment:
    """The providers of a session and their nodes.

    Attributes:
        providers: that the session has, in their order.
        nodes: of each provider that has any, by operator; None where this ONNX Runtime does not tell.
    """

    providers: tuple[str, ...]
    nodes: Nodes | None

    @property
    def counts(self) -> dict[str, int]:
        """Number of nodes of each provider."""
        return {name: sum(operators.values()) for name, operators in (self.nodes or {}).items()}


def assignment(session: Any) -> Assignment:
    """Returns the providers of a session that was made with :data:`RECORD_ASSIGNMENT`, before fusions.

    Args:
        session: ``onnxruntime.InferenceSession``.
    """
    providers = tuple(session.get_providers())
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return Assignment(providers, None)
    pairs = [(part.ep_name, node.op_type) for part in tell() for node in part.get_nodes()]
    return Assignment(providers, _counted(pairs))


def _counted(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    found: dict[str, collections.Counter[str]] = {}
    for provider, operator in pairs:
        found.setdefault(provider, collections.Counter())[operator] += 1
    return {provider: dict(operators) for provider, operators in found.items()}


def require_provider_runs(backend: str, provider: str, found: Assignment, allow_cpu: bool = False) -> None:
    """Refuses a session whose provider was dropped, has no node, or left computing nodes to the CPU.

    Args:
        backend: for the message.
        provider: that must run the graph.
        found: of the session.
        allow_cpu: computing nodes on the CPU are accepted, as long as the provider has some too.

    Raises:
        ConfigError: with the reason and the remedy.
    """
    if provider not in found.providers:
        raise ConfigError(
            f"backend {backend}: ONNX Runtime could not load {provider} and would run on {', '.join(found.providers)}; install the "
            "CUDA, cuDNN and TensorRT libraries that its documentation names for this version, or take --backend onnxruntime"
        )
    if found.nodes is None:
        return
    total, own = sum(found.counts.values()), found.counts.get(provider, 0)
    if not own:
        raise ConfigError(
            f"backend {backend}: {provider} takes none of the graph's {total} nodes, which would run on "
            f"{', '.join(found.counts)}; take --backend onnxruntime, or report the graph to the provider"
        )
    left = {name: count for name, count in found.nodes.get(CPU, {}).items() if name not in SHAPE_OPERATORS}
    if left and not allow_cpu:
        most = sorted(left, key=lambda name: -left[name])[:3]
        raise ConfigError(
            f"backend {backend}: {sum(left.values())} of the graph's {total} nodes would run on the CPU "
            f"({', '.join(f'{left[name]} {name}' for name in most)}), with a copy at every change; accept that with "
            f"--backend {backend},allow_cpu=on, or take --backend onnxruntime"
        )
