"""A quantization policy as a recipe of NVIDIA's Model-Optimizer (0.44 and later, tried with 0.47); does not import it.

``mtq.quantize`` takes an ordered list: of the entries that match a quantizer the last one decides. In a policy the first rule that
matches a layer decides. So the rules follow in reverse order, after an entry that switches every quantizer off.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gft_edge.errors import ConfigError
from gft_edge.files import replacing
from gft_edge.quant.policy import LayerPrecision, QuantPolicy, is_attend

ALGORITHM = "max"
_CFG: dict[LayerPrecision, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "int8": ({"num_bits": 8, "axis": 0}, {"num_bits": 8, "axis": None}),
    "int8-weights": ({"num_bits": 8, "axis": 0}, None),
    "fp8": ({"num_bits": [4, 3], "axis": None}, {"num_bits": [4, 3], "axis": None}),
}
"""Quantizers of weights and of the input, by precision."""


def quant_cfg(policy: QuantPolicy, names: Iterable[str]) -> list[dict[str, Any]]:
    """Returns a policy as the ordered entries of ``quant_cfg``.

    Args:
        policy: precision of each layer.
        names: of the linear layers, convolutions and attentions of the model; rules for none of them are left out.

    Raises:
        ConfigError: the policy quantizes attention or uses SmoothQuant, which a recipe expresses for no model of timm, or it
            quantizes none of the layers.
    """
    if policy.smoothquant is not None:
        raise ConfigError(
            "recipe: Model-Optimizer's SmoothQuant keeps its factors at the inputs of the layers, ours are in the weights before "
            "them; leave out smoothquant"
        )
    used = {}
    for name in names:
        rule = policy.rule_for(name)
        if rule is None or (is_attend(name) and rule.precision == "high"):
            continue
        if is_attend(name):
            raise ConfigError(
                f"recipe: Model-Optimizer has no quantizer for the products of {name}; keep attention high"
            )
        used[rule.pattern] = rule
    if all(rule.precision == "high" for rule in used.values()):
        raise ConfigError("recipe: the policy quantizes no layer of this model")
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for rule in reversed([rule for rule in policy.rules if rule.pattern in used]):
        sides = (None, None) if rule.precision == "high" else _CFG[rule.precision]
        for side, cfg in zip(("weight", "input"), sides):
            entry: dict[str, Any] = {"quantizer_name": f"{rule.pattern}.{side}_quantizer"}
            entries.append({**entry, "enable": False} if cfg is None else {**entry, "cfg": cfg, "enable": True})
    return entries


def recipe(policy: QuantPolicy, names: Iterable[str]) -> dict[str, Any]:
    """Returns the content of a recipe file; arguments and errors as :func:`quant_cfg`."""
    return {
        "metadata": {
            "recipe_type": "ptq",
            "description": "weights per output channel, activations per tensor, symmetric",
        },
        "quantize": {"algorithm": ALGORITHM, "quant_cfg": quant_cfg(policy, names)},
    }


def write_recipe(path: Path, policy: QuantPolicy, names: Iterable[str]) -> None:
    """Writes a recipe for ``modelopt.recipe.load_recipe``: JSON, which is YAML too.

    Args:
        path: ends in .yaml or .yml, which ``load_recipe`` requires.
        policy, names: as for :func:`quant_cfg`.

    Raises:
        ConfigError: another suffix, a place that is not writable, or as :func:`quant_cfg`.
        OutputError: writing failed.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"recipe {path}: Model-Optimizer reads .yaml and .yml only")
    text = json.dumps(recipe(policy, names), indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
