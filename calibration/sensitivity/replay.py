"""Re-runs a model from the first changed module; outputs of earlier modules are replayed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """Outputs of the parts of a model in one run, in the order they ran."""

    outputs: dict[str, Any]


class Replay:
    """Records the outputs of a model's parts and replays those before a change.

    Parts are the model's children, or the children of those that are lists (the blocks of a transformer). A run depends on
    its input and its layers only, so all parts before the first changed layer give the same outputs, to the bit. A model that
    calls a part twice always runs from the start.

    Args:
        model: the ``forward`` of its parts is wrapped in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self._known: dict[str, Any] = {}
        self._log: dict[str, Any] | None = None
        self._repeats = False
        for name, part in _parts(model):
            part.forward = functools.partial(self._call, name, part.forward)

    def _call(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name in self._known:
            return self._known[name]
        output = forward(*args, **kwargs)
        if self._log is not None:
            self._repeats |= name in self._log
            self._log[name] = output
        return output

    def record(self, run: Callable[[], T]) -> tuple[T, Recording]:
        """Runs and records the output of every part."""
        self._log = {}
        try:
            return run(), Recording({} if self._repeats else self._log)
        finally:
            self._log = None

    def again(self, run: Callable[[], T], recording: Recording, changed: Collection[str]) -> T:
        """Runs the recorded input again.

        Args:
            run: the same call as recorded.
            recording: of the same input.
            changed: names of the layers that changed.
        """
        parts = list(recording.outputs)
        places = [_place(name, parts) for name in changed]
        self._known = {part: recording.outputs[part] for part in parts[: min(places, default=len(parts))]}
        try:
            return run()
        finally:
            self._known = {}


def _place(name: str, parts: list[str]) -> int:
    """Returns the index of the part that holds a layer; 0 if unknown, as for a layer that is itself a part."""
    return next((place for place, part in enumerate(parts) if f"{name}.".startswith(f"{part}.")), 0)


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    network = getattr(model, "network", None)
    root, prefix = (network, "network.") if isinstance(network, nn.Module) else (model, "")
    parts = []
    for name, child in root.named_children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            parts += [(f"{prefix}{name}.{number}", part) for number, part in child.named_children()]
        else:
            parts.append((f"{prefix}{name}", child))
    return parts
