from __future__ import annotations

import errno
import json
import os
import signal
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gft_edge import files
from gft_edge.errors import EXIT_MISSING_EXTRA, ArtifactError, CheckFailed, ConfigError, MissingExtraError
from gft_edge.export.deploy.onnxruntime_context import check_context, write_context
from gft_edge.export.graph.summary import summarize
from gft_edge.export.lint.linter import lint
from gft_edge.export.tensorrt import build as building
from gft_edge.export.tensorrt import builders
from gft_edge.export.tensorrt.build import build_engine
from gft_edge.export.tensorrt.build_plan import BuildPlan, engine_key
from gft_edge.export.tensorrt.builders import compile_plan, explain
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.files import sha256
from gft_edge.hardware import tensorrt_versions as generations
from gft_edge.manifest import MODEL, Artifact, load_artifact
from gft_edge.runtime.backends import table as backends
from gft_edge.runtime.backends.engine_files import EngineHost


def plan_for(artifact: Artifact, target: str = "rtx", **options) -> BuildPlan:
    return make_plan(summarize(onnx.load(artifact.path / MODEL)), target, BuildOptions(**options))


class TestBuild:
    @pytest.fixture(autouse=True)
    def trt(self):
        return pytest.importorskip("tensorrt_rtx")

    @pytest.mark.parametrize("name", ["fp32-none", "int8-none", "int8-compact"])
    @pytest.mark.parametrize("capabilities", [("8.6",), ("8.0", "8.9", "12.0")], ids="-".join)
    def test_engine_is_written_and_entered_in_the_manifest(self, copied, trt, name, capabilities):
        artifact = copied(name)
        plan = plan_for(artifact, compute_capabilities=capabilities, batch=(1, 2, 4))
        record = build_engine(artifact, plan)
        precision = name.partition("-")[0]
        assert record["key"] == f"rtx{trt.__version__}_{engine_key(plan, '').removeprefix('rtx_')}"
        again = load_artifact(artifact.path)
        assert set(again.manifest.files) == {
            *artifact.manifest.files,
            *(f"engines/{record['key']}.{suffix}" for suffix in ("engine", "json")),
        }
        engine = again.file(f"engines/{record['key']}.engine")
        assert engine.stat().st_size == record["engine_bytes"] > 10_000
        assert sha256(engine) == record["engine_sha256"]
        assert json.loads(again.file(f"engines/{record['key']}.json").read_text()) == record
        assert record["module"] == "tensorrt_rtx"
        assert record["version"] == record["plan"]["tensorrt"] == trt.__version__
        assert record["compute_capabilities"] == list(capabilities)
        assert record["batch"] == [1, 2, 4]
        assert record["precision"] == precision
        assert record["model_sha256"] == sha256(artifact.path / MODEL)
        assert record["layers"] > 100
        assert "not yet run" in record["evidence"]
        assert sorted(p.name for p in engine.parent.iterdir()) == [f"{record['key']}.engine", f"{record['key']}.json"]
        for capability in capabilities:
            host = EngineHost("tensorrt_rtx", trt.__version__, capability)
            context = write_context(again, record["key"], host)
            assert check_context(context, load_artifact(again.path), host) == "NvTensorRTRTXExecutionProvider"
        with pytest.raises(ArtifactError, match="compute capability"):
            check_context(context, again, EngineHost("tensorrt_rtx", trt.__version__, "7.5"))

    def test_progress_counts_each_step_up_to_its_total(self, copied):
        calls = []
        artifact = copied("fp32-none")
        plan = plan_for(artifact, compute_capabilities=("8.6",))
        build_engine(artifact, plan, lambda step, done, total: calls.append((step, done, total)))
        first, done, total = calls[0]
        assert done == 0 and total > 0
        assert (first, total, total) in calls
        counts = [call[1] for call in calls if call[0] == first]
        assert counts == sorted(counts)

    def test_interrupted_build_stops_and_leaves_nothing(self, copied):
        def impatient(step, done, total):
            raise KeyboardInterrupt

        artifact = copied("fp32-none")
        with pytest.raises(KeyboardInterrupt):
            build_engine(artifact, plan_for(artifact, compute_capabilities=("8.6",)), impatient)
        assert not (artifact.path / "engines").exists()

    def test_ctrl_c_in_a_callback_of_the_compiler_is_not_lost(self, copied):
        """TensorRT swallows exceptions of its callbacks, so the signal must not become one there."""
        calls = []

        def interrupt(step, done, total):
            if not calls:
                os.kill(os.getpid(), signal.SIGINT)
            calls.append(step)

        artifact = copied("fp32-none")
        with pytest.raises(KeyboardInterrupt):
            build_engine(artifact, plan_for(artifact, compute_capabilities=("8.6",)), interrupt)
        assert not (artifact.path / "engines").exists()
        assert load_artifact(artifact.path).manifest.files == artifact.manifest.files

    @pytest.mark.parametrize("where", ["a file in the way", "a read-only medium"])
    def test_a_place_that_cannot_be_written_is_found_before_the_compiler_runs(self, copied, monkeypatch, where):
        artifact = copied("fp32-none")
        if where == "a file in the way":
            (artifact.path / "engines").write_text("")
        else:

            def refuse(**options):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

            monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
        monkeypatch.setattr(building, "compile_plan", None)
        with pytest.raises(
            ConfigError, match=r"is a file, not a folder|cannot be written to \(Read-only file system\)"
        ):
            build_engine(artifact, plan_for(artifact, compute_capabilities=("8.6",)))

    def test_engines_for_different_gpus_stand_side_by_side(self, copied):
        artifact = copied("fp32-none")
        for capability in ("8.6", "12.0"):
            build_engine(load_artifact(artifact.path), plan_for(artifact, compute_capabilities=(capability,)))
        files = load_artifact(artifact.path).manifest.files
        assert len([name for name in files if name.endswith(".engine")]) == 2

    def test_capability_the_compiler_does_not_know_is_refused_with_those_it_knows(self, copied):
        artifact = copied("fp32-none")
        plan = plan_for(artifact, compute_capabilities=("8.6", "12.9"))
        with pytest.raises(ConfigError, match=r"compute capability 12\.9: .*cannot compile for it; it knows .*8\.6"):
            build_engine(artifact, plan)
        assert not (artifact.path / "engines").exists()

    def test_graph_that_is_no_onnx_is_refused_by_the_parsers_words(self, copied, trt, tmp_path):
        plan = plan_for(copied("fp32-none"), compute_capabilities=("8.6",))
        (tmp_path / "bad.onnx").write_bytes(b"no graph at all")
        with pytest.raises(ArtifactError, match=r"cannot parse the graph: .*Failed to parse the ONNX model"):
            compile_plan(trt, tmp_path / "bad.onnx", plan)

    def test_node_the_parser_does_not_know_is_named(self, edited, monkeypatch):
        def change(model):
            node = next(node for node in model.graph.node if node.op_type == "Gelu")
            node.name, node.op_type = "culprit", "NoSuchOperator"

        artifact = edited("fp32-none", change)
        with pytest.raises(CheckFailed, match="GE025 NoSuchOperator culprit"):
            build_engine(artifact, plan_for(artifact, compute_capabilities=("8.6",)))
        monkeypatch.setattr(building, "require_clean", lambda model, graph, plan: None)
        with pytest.raises(ArtifactError, match="cannot parse the graph: node culprit: "):
            build_engine(artifact, plan_for(artifact, compute_capabilities=("8.6",)))

    def test_graph_that_breaks_a_rule_of_lint_never_gets_to_the_compiler(self, edited, monkeypatch):
        def change(model):
            scale = next(t for t in model.graph.initializer if t.name.endswith("proj.input_scale"))
            scale.CopyFrom(numpy_helper.from_array(np.float32(0), scale.name))

        artifact = edited("int8-none", change)
        monkeypatch.setattr(building, "compile_plan", None)
        with pytest.raises(CheckFailed, match=r"GE008 .*1 of 1 scales are zero.*gft-edge lint .*model\.onnx"):
            build_engine(artifact, plan_for(artifact, compute_capabilities=("8.6",)))

    def test_changed_graph_is_refused_by_its_hash(self, copied):
        artifact = copied("fp32-none")
        plan = plan_for(artifact, compute_capabilities=("8.6",))
        with (artifact.path / MODEL).open("ab") as file:
            file.write(b"\0")
        with pytest.raises(ArtifactError, match=r"model\.onnx was changed since it was written"):
            build_engine(artifact, plan)
        assert not (artifact.path / "engines").exists()


def linear(precision: str, rest: str) -> onnx.ModelProto:
    """One linear layer of 32 features on (batch, 8, 32), quantized or not."""
    dtype = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[rest]
    weight = np.random.default_rng(0).standard_normal((32, 32)) / 6
    constants = []

    def constant(name, values, kind=dtype):
        values = np.asarray(values)
        constants.append(helper.make_tensor(name, kind, values.shape, values.flatten().tolist()))

    if precision == rest:
        constant("w", weight)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        kind = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[precision]
        quantized = np.round(weight / 0.01).clip(-127, 127)
        constant("w", quantized.astype(int) if precision == "int8" else quantized, kind)
        constant("s", 0.05)
        constant("ws", np.full(32, 0.01))
        constant("z", 0, kind)
        constant("wz", np.zeros(32, int), kind)
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
            helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(name, dtype, ["batch", 8, 32]) for name in "xy"]
    opsets = [helper.make_opsetid("", 22 if rest == "bf16" else 20)]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


ALL = ("7.5", "8.0", "8.6", "8.9", "12.0")
RTX_TABLE = {
    ("fp32", "fp32"): ALL[1:],
    ("fp16", "fp16"): ALL,
    ("bf16", "bf16"): ALL[1:],
    ("int8", "fp32"): ALL[1:],
    ("int8", "fp16"): ALL,
    ("int8", "bf16"): ALL[1:],
    ("fp8", "fp32"): ALL[3:],
    ("fp8", "fp16"): ALL[3:],
}
"""Precision and type of the rest: compute capabilities that TensorRT-RTX compiles it for."""


@pytest.mark.parametrize("capability", ALL)
@pytest.mark.parametrize(("precision", "rest"), RTX_TABLE, ids=str)
def test_rtx_compiles_what_the_table_says_and_we_refuse_the_rest_before_it_does(
    tmp_path, monkeypatch, precision, rest, capability
):
    trt = pytest.importorskip("tensorrt_rtx")
    model = linear(precision, rest)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    options = BuildOptions(compute_capabilities=(capability,))
    if capability in RTX_TABLE[precision, rest]:
        plan = make_plan(summarize(model), "rtx", options)
        assert (plan.precision, plan.rest) == (precision, rest)
        blob, layers = compile_plan(trt, path, plan)
        assert len(blob) > 1000
        assert layers >= 1
        return
    with pytest.raises(
        ConfigError, match=rf"this is {capability}|no FP32 matrix products below compute capability 8\.0"
    ):
        make_plan(summarize(model), "rtx", options)
    # without our check the compiler refuses too, with a reason
    monkeypatch.setattr("gft_edge.export.tensorrt.options.dtype_refusal", lambda *_: None)
    plan = make_plan(summarize(model), "rtx", options)
    with pytest.raises(ArtifactError, match="refused the graph: .*(HW-specific datatypes|FP32 GEMM is not supported)"):
        compile_plan(trt, path, plan)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every FP32 tensor of a graph made FP16, importance too."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize("name", ["fp32-none", "int8-compact"])
def test_whole_model_with_fp16_rest_compiles_for_turing_too(exported, tmp_path, name):
    trt = pytest.importorskip("tensorrt_rtx")
    model = halved(onnx.load(exported(name).path / MODEL))
    onnx.save(model, tmp_path / "model.onnx")
    plan = make_plan(summarize(model), "rtx", BuildOptions(compute_capabilities=("7.5", "8.9")))
    assert (plan.precision, plan.rest) == ("int8" if "int8" in name else "fp16", "fp16")
    assert len(compile_plan(trt, tmp_path / "model.onnx", plan)[0]) > 10_000
    # standardising the importance of maps squares in FP16, which lint finds and the compiler does not
    found = {finding.rule for finding in lint(model, plan.platform).findings}
    assert found == ({"GE001"} if "compact" in name else set())


def test_refusal_of_the_compiler_names_the_node(tmp_path, monkeypatch):
    trt = pytest.importorskip("tensorrt_rtx")
    model = linear("fp32", "fp32")
    model.graph.node[0].name = "the_linear"
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr("gft_edge.export.tensorrt.options.dtype_refusal", lambda *_: None)
    plan = make_plan(summarize(model), "rtx", BuildOptions(compute_capabilities=("7.5",)))
    with pytest.raises(ArtifactError, match="refused the graph: node the_linear: Cannot compile operation"):
        compile_plan(trt, tmp_path / "model.onnx", plan)


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "TensorRT gave no message"),
        (
            [
                "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for "
                "node /blocks.0/attn/qkv/MatMul.)"
            ],
            "node /blocks.0/attn/qkv/MatMul: Internal Error (Could not find any implementation for node "
            "/blocks.0/attn/qkv/MatMul.) (raise --workspace, or export without quantizing that node)",
        ),
        (
            ["[optimizer.cpp:4] Cuda failure: out of memory"],
            "Cuda failure: out of memory (free memory, lower --workspace or --optimization-level)",
        ),
        (["a", "a"], "a"),
        (
            ["In node 3 with name: /head/Gemm and operator: Gemm (importGemm): UNSUPPORTED_NODE"],
            "node /head/Gemm: In node 3 with name: /head/Gemm and operator: Gemm (importGemm): UNSUPPORTED_NODE",
        ),
    ],
)
def test_messages_become_one_line_with_the_node_first(messages, line):
    assert explain(messages) == line


def test_none_of_the_compiler_is_never_taken_for_an_engine(copied, monkeypatch):
    trt = pytest.importorskip("tensorrt_rtx")
    artifact = copied("fp32-none")
    plan = plan_for(artifact, compute_capabilities=("8.6",))
    mixed = BuildPlan.from_json({**plan.to_json(), "profile": {}})  # a dynamic input without a profile
    with pytest.raises(ArtifactError, match="refused the graph: .*[Pp]rofile"):
        compile_plan(trt, artifact.path / MODEL, mixed)


def test_missing_tensorrt_is_named_with_the_extra_that_brings_it(exported, monkeypatch):
    artifact = exported("fp32-none")
    for module, target, extra in (("tensorrt_rtx", "rtx", "rtx"), ("tensorrt", "orin-nano", "trt")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"{module} is not installed; .*gft-edge\[{extra}\]") as caught:
            build_engine(artifact, plan_for(artifact, target))
        assert caught.value.exit_code == EXIT_MISSING_EXTRA == 3


def test_tensorrt_without_a_driver_is_refused_before_anything_is_made(exported, monkeypatch):
    monkeypatch.setattr(backends.importlib, "import_module", lambda name: sys.modules["json"])
    monkeypatch.setattr(builders, "has_nvidia_driver", lambda: False)
    with pytest.raises(ConfigError, match="no NVIDIA driver here.*--plan"):
        build_engine(exported("fp32-none"), plan_for(exported("fp32-none"), "orin-nano"))


def test_table_of_types_is_the_one_of_the_generations():
    for (precision, rest), capabilities in RTX_TABLE.items():
        for capability in ALL:
            refused = any(generations.dtype_refusal(dtype, "rtx", capability) for dtype in (precision, rest))
            assert refused != (capability in capabilities)
