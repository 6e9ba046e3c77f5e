"""Writes the page with all rules of deployments."""

from __future__ import annotations

from gft_edge.export.lint_deployment.linter import BUNDLE_RULES, NVINFER_RULES, TRITON_RULES

_HEAD = """# Lint of deployments

    gft-edge lint BUNDLE
    gft-edge lint config_infer_primary.txt
    gft-edge lint models/gft_147-98-49/config.pbtxt

checks a bundle, a configuration of DeepStream's nvinfer, or a model of a Triton repository against the graph and the
labels that it names, and against the manifest of the artefact where there is one: in the bundle around it, or beside the
graph. Every finding has the file, the line, the key and what to write instead. Exit code 1 with an error, 0 with warnings
alone. `--json` gives the same as data. A bundle's graph is checked too, for the bundle's device.

Nothing here was verified on hardware: the rules come from public sources and documentation.
"""


def rules_page() -> str:
    """Returns docs/lint_deployment.md."""
    parts = [_HEAD]
    for title, rules in (("Bundles", BUNDLE_RULES), ("DeepStream", NVINFER_RULES), ("Triton", TRITON_RULES)):
        rows = [f"| `{rule.id}` | {rule.severity} | {rule.title} | {_cell(rule.why)} |" for rule in rules]
        parts.append(
            "\n".join([f"## {title}", "", "| rule | severity | fault | why |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
