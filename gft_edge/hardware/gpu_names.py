"""Compares a GPU name that a program printed with a device profile."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gft_edge.hardware.devices import FAMILIES, Device

_MODULES = {"nano", "nx", "agx"}


def other_gpu(found: Mapping[str, str], wanted: Device) -> str | None:
    """Returns a sentence if a log is of another GPU than the profile; None if it is the same, or the log has too little.

    Args:
        found: ``device`` (``"NVIDIA A100-SXM4-40GB"``, ``"Orin"``) and ``compute_capability``, where they are known.
        wanted: the profile.
    """
    name, capability = found.get("device", ""), found.get("compute_capability", "")
    if (not capability or _same_number(capability, wanted.compute_capability)) and _is_name_of(name, wanted):
        return None
    shown = f"{name or 'a GPU'} (compute capability {capability})" if capability else name
    return (
        f"the log is of {shown}, --target is {wanted.title} (compute capability {wanted.compute_capability}): another GPU, "
        "so there is no bound"
    )


def _same_number(first: str, second: str) -> bool:
    return [part.lstrip("0") for part in first.split(".")] == [part.lstrip("0") for part in second.split(".")]


def _is_name_of(name: str, wanted: Device) -> bool:
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    if not words:
        return True
    parts = wanted.name.split("-")
    if wanted.is_jetson:
        family = next(part for part in parts if part in FAMILIES)
        module = words & _MODULES  # most programs print the family alone
        return family in words and module <= set(parts)
    sizes = {word for word in words if re.fullmatch(r"\d+gb", word)}
    return parts[0] in words and (len(parts) == 1 or not sizes or parts[1] in sizes)
