"""Imports go one way, form no cycle, and take no private names from other packages; lazy and TYPE_CHECKING imports count."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ("benchmarks", "calibration", "export")
LAYERS = (
    ("__init__", "errors", "constants", "progress"),
    ("files", "storage", "labels"),
    ("budget", "resample", "stats", "hardware"),
    ("config",),
    ("preprocess", "manifest", "manifest_schema", "bundle"),
    ("data",),
    ("runtime",),
    ("model",),
    ("quant",),
    ("checkpoint",),
    ("evaluation", "controls", "control_artifact", "control_checkpoint", "control_results", "control_rules"),
    ("distill",),
    ("train",),
    ("calibration",),
    ("export",),
    ("benchmarks",),
    ("search",),
    ("report",),
    ("cli",),
    ("benchmarks.experiments", "benchmarks.torture"),
)
"""Packages and modules below ``gft_edge``, the lowest first. A module imports from its own layer and from lower ones."""
INSIDE = {
    "export": ("deploy", "foreign", "graph", "lint", "lint_deployment", "onnx", "tensorrt", "verify"),
    "benchmarks": ("logs", "measuring", "power", "roofline", "trtexec"),
}


def modules() -> dict[str, Path]:
    """Dotted names below ``gft_edge`` (the mapped folders as they are installed) and their files."""
    found = {}
    for top in ("gft_edge", *MAPPED):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT if top in MAPPED else ROOT / top).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = file
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, str, int]]:
    """Module, imported name (or nothing) and line of every import from ``gft_edge``, wherever it stands in the file."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((a.name[9:], "", node.lineno) for a in node.names if a.name.startswith("gft_edge."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            if node.module == "gft_edge" or (node.module or "").startswith("gft_edge."):
                base = (node.module or "")[9:]
                for alias in node.names:
                    full = f"{base}.{alias.name}".lstrip(".")
                    yield (full, "", node.lineno) if full in MODULES else (base or "__init__", alias.name, node.lineno)


def layer(name: str) -> int:
    """Index of the layer with the longest entry that ``name`` lies in."""
    entries = {entry: index for index, names in enumerate(LAYERS) for entry in names}
    while name not in entries:
        assert "." in name, f"{name} is in no layer: add it to LAYERS and to CONTRIBUTING.md"
        name = name.rpartition(".")[0]
    return entries[name]


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    up = [f"line {line}: {target}" for target, _, line in imports(name) if layer(target) > layer(name)]
    assert not up


@pytest.mark.parametrize("package", INSIDE)
def test_folders_of_a_package_form_no_cycle(package):
    """Between the folders of one package, and between the modules of one folder, arrows form no cycle."""
    edges = {
        tuple(part.split(".")[1] for part in (name, target))
        for name in MODULES
        if name.startswith(f"{package}.") and layer(name) == layer(package)
        for target, _, _ in imports(name)
        if target.startswith(f"{package}.")
    }
    assert {folder for edge in edges for folder in edge} <= set(INSIDE[package])
    assert not cycle({a: {y for x, y in edges if x == a and y != a} for a in INSIDE[package]})


def test_no_cycle_of_files():
    assert not cycle({name: {target for target, _, _ in imports(name)} for name in MODULES})


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes that are left when those without arrows to others are taken away again and again; empty without a cycle."""
    left = {name: {target for target in targets if target != name} for name, targets in graph.items()}
    while done := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets - done for name, targets in left.items() if name not in done}
    return sorted(left)


def test_a_cycle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]
    assert not cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("name", MODULES)
def test_no_private_names_of_other_modules(name):
    assert not [
        f"line {line}: {target} {symbol}"
        for target, symbol, line in imports(name)
        if is_private(symbol) or any(map(is_private, target.split(".")))
    ]
