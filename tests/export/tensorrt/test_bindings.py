"""Every TensorRT attribute that the builder and the session use exists in the real bindings of the generations that use it.

The uses are read from the code (attribute_uses.py), their generations from the plans, and the attributes from the bindings
(real_bindings.py).
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import zipfile
from pathlib import Path

import pytest

from gft_edge.errors import ConfigError
from gft_edge.export.graph.summary import GraphInput, GraphSummary
from gft_edge.export.tensorrt import builders, torch_tensorrt
from gft_edge.export.tensorrt.build_plan import BuildPlan
from gft_edge.export.tensorrt.options import HARDWARE_COMPATIBILITY, BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.runtime.backends import engine, trt_messages

from .attribute_uses import Surface, Uses
from .real_bindings import WHEELS, download, surface_of

ROOTS = ("compile_plan", "load_engine", "run_once", "enqueue")


@pytest.fixture(scope="session")
def surfaces(tmp_path_factory):
    """Attributes of the bindings by generation, read when first asked for."""
    root = tmp_path_factory.mktemp("bindings")
    return functools.cache(lambda generation: surface_of(generation, root / generation))


def uses_of(surface: Surface, source: str | None = None, roots: tuple[str, ...] = ROOTS) -> Uses:
    """Uses of the named functions and all that they call; ``source`` replaces that of the builder."""
    texts = [source or Path(builders.__file__).read_text(encoding="utf-8")]
    texts += [Path(module.__file__).read_text(encoding="utf-8") for module in (engine, trt_messages)]
    return Uses("\n".join(texts), surface, roots)


def summary(precision: str, rest: str) -> GraphSummary:
    image = GraphInput("image", "fp32", (None, 3, 32, 32))
    return GraphSummary(17, precision, rest, (rest,), (image,), {"MatMul": 1}, 17, False)


@functools.cache
def plans(generation: str) -> tuple[BuildPlan, ...]:
    """Every possible plan of a generation, over the options that decide which code runs."""
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


def needed(uses: Uses, generation: str) -> set[tuple[str, str]]:
    """Attributes that the code uses in some plan of this generation."""
    found = set()
    for use in uses.found:
        for plan in plans(generation):
            if any(is_off(getattr(plan, guard)) for guard in use.guards):
                continue
            if use.from_plan is None:
                found.add((use.owner, use.member))
                break
            value = getattr(plan, use.from_plan)
            found |= {(use.owner, name) for name in ((value,) if isinstance(value, str) else value or ())}
    return found


def is_off(value: object) -> bool:
    return value is None or value is False or value in ("", (), {})


GENERATIONS = (*WHEELS, "rtx")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_running_an_engine_uses_attributes_of_every_generation(surfaces, generation):
    surface = surfaces(generation)
    uses = uses_of(surface, roots=("load_engine", "run_once", "enqueue"))
    attributes = needed(uses, generation)
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
    assert not any(use.guards for use in uses.found if use.owner == "IExecutionContext")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_attribute_used_in_a_generation_exists_there(surfaces, generation, record_property):
    surface = surfaces(generation)
    uses = uses_of(surface)
    attributes = needed(uses, generation)
    missing = {f"{owner}.{member}".lstrip(".") for owner, member in attributes if member not in surface.get(owner, {})}
    assert missing == set()
    assert uses.mismatches == []
    assert len(attributes) > 35
    record_property("attributes", len(attributes))
    print(f"{generation}: {len(attributes)} attributes of {len({owner for owner, _ in attributes})} classes")


@pytest.mark.parametrize(
    ("generation", "member"),
    [("8.6", ("IBuilderConfig", "progress_monitor")), ("11.0", ("IBuilderConfig", "int8_calibrator")),
     ("10.7", ("IBuilderConfig", "num_compute_capabilities")), ("11.0", ("BuilderFlag", "FP16")),
     ("11.0", ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"))],
)  # fmt: skip
def test_a_missing_attribute_is_used_in_other_generations_alone(surfaces, generation, member):
    surface = surfaces(generation)
    assert member[1] not in surface[member[0]]
    assert member not in needed(uses_of(surface), generation)
    others = [
        other for other in GENERATIONS if other != generation and member in needed(uses_of(surfaces(other)), other)
    ]
    assert others


def test_code_with_a_missing_attribute_is_caught(surfaces):
    source = Path(builders.__file__).read_text(encoding="utf-8")
    wrong = {
        "    if plan.progress:\n        config": "    if plan.batch:\n        config",
        "    config.max_aux_streams": "    config.max_workspace_size",
        "builder.build_serialized_network": "builder.build_engine",
    }
    surface = surfaces("8.6")
    for right, changed in wrong.items():
        assert right in source
        uses = uses_of(surface, source.replace(right, changed))
        generation = "8.6" if "progress" in right else "10.3"
        has = surfaces(generation)
        assert any(member not in has.get(owner, {}) for owner, member in needed(uses, generation)), changed


@pytest.mark.parametrize("generation", GENERATIONS)
def test_plans_cover_the_abilities_of_every_generation(generation):
    found = plans(generation)
    assert {p.dla_core is not None for p in found} == (
        {False} if generation in ("10.13", "10.16", "rtx") else {False, True}
    )
    assert {p.calibrator is not None for p in found} == ({False} if generation in ("11.0", "rtx") else {False, True})
    assert {p.progress for p in found} == {generation != "8.6"}


def test_torch_tensorrt_takes_the_settings_of_a_plan():
    with zipfile.ZipFile(download("torch-tensorrt==2.14.0")) as wheel:
        compile_ = parameters(wheel.read("torch_tensorrt/dynamo/_compiler.py"), "compile")
        save = parameters(wheel.read("torch_tensorrt/_compile.py"), "save")
    arguments = torch_tensorrt.settings(make_plan(summary("fp16", "fp16"), "h100", BuildOptions(tensorrt="10.16")))
    assert set(arguments) | {"inputs", "exported_program"} <= compile_
    assert {"module", "file_path", "output_format", "arg_inputs"} <= save


def parameters(source: bytes, name: str) -> set[str]:
    """Parameters of the last function of that name, which follows its overloads."""
    *_, function = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
