"""All rules of lint."""

from __future__ import annotations

from gft_edge.export.lint import operator_rules, quantization_rules, transformer_rules, type_rules
from gft_edge.export.lint.rule import Rule

RULES = tuple(
    sorted(
        (
            value
            for theme in (quantization_rules, transformer_rules, type_rules, operator_rules)
            for value in vars(theme).values()
            if isinstance(value, Rule)
        ),
        key=lambda rule: rule.id,
    )
)
"""Every rule of the theme modules, in the order of their ids."""

PARSER = Rule(
    "GE000",
    "refused by the installed parser",
    "TensorRT's own parser refuses the file (--parser).",
    lambda graph, platform: iter(()),
)
"""Not among :data:`RULES`: it reads a file, in another process."""
