from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path

import onnx
import pytest

from gft_edge.benchmarks.trtexec.program import timing_arguments
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.graph.summary import GraphInput, GraphSummary, summarize
from gft_edge.export.tensorrt.build_plan import BuildPlan, for_version
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.files import canonical_json
from gft_edge.hardware import tensorrt_versions
from gft_edge.hardware.devices import DEVICES, device
from gft_edge.hardware.tensorrt_versions import GENERATIONS, default_version, generation, platform
from gft_edge.manifest import MODEL

DATA = Path(__file__).parent / "data"


def recorded_summary() -> GraphSummary:
    """Summary of gft_base quantized and exported at its own budget."""
    data = json.loads((DATA / "gft_base-int8.json").read_text())
    inputs = tuple(GraphInput(i["name"], i["dtype"], tuple(i["shape"])) for i in data["inputs"])
    return GraphSummary(**{**data, "products": tuple(data["products"]), "inputs": inputs})


VIT_B_INT8 = recorded_summary()


def graph(precision: str = "fp32", rest: str | None = None, **changes) -> GraphSummary:
    rest = rest or precision
    image = GraphInput("image", rest, (None, 3, 224, 224))
    summary = GraphSummary(20, precision, rest, (rest,), (image,), {"MatMul": 4, "TopK": 1}, 197, False)
    return dataclasses.replace(summary, **changes)


def plan(summary: GraphSummary, target: str = "orin-nano", version: str | None = None, **options) -> BuildPlan:
    return make_plan(summary, target, BuildOptions(tensorrt=version, **options))


@pytest.mark.parametrize(
    ("target", "version"),
    [("orin-nano", "10.3"), ("agx-orin", "11.4.1"), ("thor", "10.13"), ("h100", "11.4"), ("rtx", None)],
)
def test_plan_of_vit_b_int8_is_the_recorded_one(target, version):
    found = canonical_json(plan(VIT_B_INT8, target, version).to_json())
    file = DATA / f"plan-{target}.json"
    if os.environ.get("GFT_EDGE_WRITE_SNAPSHOTS"):
        file.write_text(found)
    assert found == file.read_text()


@pytest.mark.parametrize("target", [*DEVICES, "rtx"])
@pytest.mark.parametrize("version", [None, "8.6", "10.3", "10.7", "10.13", "10.16", "11.4.1"])
@pytest.mark.parametrize(
    "summary", [graph(), graph("fp16"), graph("bf16"), graph("int8", "fp16"), graph("fp8", "fp16")]
)
def test_every_combination_is_planned_or_refused_in_words(target, version, summary):
    if target == "rtx" and version is not None:
        return
    try:
        made = plan(summary, target, version)
    except ConfigError as error:
        assert len(str(error)) > 30
        return
    assert BuildPlan.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert made.compute_capabilities
    assert "--onnx=my models/model.onnx" in shlex.split(made.command("my models/model.onnx"))
    command = made.command()
    assert command.startswith("tensorrt_rtx " if target == "rtx" else "trtexec ")
    assert ("--stronglyTyped" in command) == made.generation.startswith("10.")
    removed_in_11 = {"--fp16", "--int8", "--bf16", "--best", "--calib"}
    assert made.generation.startswith("8.") or not removed_in_11 & set(command.split())
    if made.generation == "8.6":
        assert not {"--stripWeights", "--stronglyTyped"} & set(command.split())


REFUSED = {
    "FP8 on Orin": (graph("fp8", "fp16"), {}, "FP8 needs compute capability 8.9 or newer, this is 8.7; use INT8"),
    "FP8 on A100": (graph("fp8", "fp16"), {"target": "a100"}, "FP8 needs compute capability 8.9"),
    "FP8 on 8.6": (graph("fp8", "fp32"), {"target": "h100", "version": "8.6"}, "TensorRT 8.6 has no FP8 networks"),
    "BF16 on 8.6": (graph("bf16"), {"version": "8.6"}, "TensorRT 8.6 has no BF16 networks"),
    "BF16 on Turing": (graph("bf16"), {"target": "t4"}, "BF16 needs compute capability 8.0 or newer, this is 7.5"),
    "FP16 types on 8.6": (graph("fp16"), {"version": "8.6"}, "takes a graph typed FP32 and a flag"),
    **{
        f"RTX on {capability}": (
            graph(),
            {"target": "rtx", "compute_capabilities": ("8.6", capability)},
            f"TensorRT-RTX does not support compute capability {capability}; it runs on 7.5, 8.0, 8.6, 8.9 and on 12.0 or newer",
        )
        for capability in ("7.2", "8.7", "9.0", "10.0", "10.3", "11.0")
    },
    "FP32 on Turing with RTX": (
        graph(),
        {"target": "rtx", "compute_capabilities": ("8.6", "7.5")},
        "no FP32 matrix products below compute capability 8.0",
    ),
    "INT8 with FP32 rest on Turing with RTX": (
        graph("int8", "fp32"),
        {"target": "rtx", "compute_capabilities": ("7.5",)},
        "no FP32 matrix products below compute capability 8.0",
    ),
    "FP32 importance on Turing with RTX": (
        graph("fp16", products=("fp16", "fp32")),
        {"target": "rtx", "compute_capabilities": ("7.5",)},
        "no FP32 matrix products",
    ),
    "weak typing on 11": (graph(), {"target": "h100", "weak": True}, "TensorRT 11.4 has no precision flags"),
    "weak typing on RTX": (graph(), {"target": "rtx", "weak": True}, "TensorRT-RTX has no precision flags"),
    "weak typing of FP8": (graph("fp8", "fp16"), {"target": "h100", "version": "10.7", "weak": True}, "strongly typed"),
    "calibrator on 11": (
        graph(),
        {"target": "h100", "calibration_cache": "c", "calibration_header": "TRT-1-EntropyCalibration2"},
        "TensorRT 11.4 has no calibrators",
    ),
    "calibrator beside Q/DQ": (
        graph("int8", "fp32"),
        {"version": "8.6", "calibration_cache": "c", "calibration_header": "TRT-1-EntropyCalibration2"},
        "the graph has Q/DQ",
    ),
    "calibrator strongly typed": (
        graph(),
        {"version": "10.3", "calibration_cache": "c", "calibration_header": "TRT-1-EntropyCalibration2"},
        "needs --weak",
    ),
    "calibrator unknown": (
        graph(),
        {"version": "8.6", "calibration_cache": "c", "calibration_header": "TRT-8601-Percentile"},
        "first line 'TRT-8601-Percentile', expected",
    ),
    "DLA on Orin Nano": (graph("fp16"), {"version": "10.3", "dla": 0}, "Jetson Orin Nano 8GB .* has no DLA"),
    "DLA on Thor": (graph("fp16"), {"target": "thor", "dla": 0}, "Jetson Thor T5000 has no DLA"),
    "DLA on a card": (graph("fp16"), {"target": "h100", "dla": 0}, "H100 SXM has no DLA"),
    "DLA on 10.16": (graph("fp16"), {"target": "agx-orin", "version": "10.16", "dla": 0}, "10.7 is the last 10.x"),
    "DLA on RTX": (graph("fp16"), {"target": "rtx", "dla": 0}, "does not support the DLA"),
    "DLA core 2": (graph("fp16"), {"target": "agx-orin", "dla": 2, "batch": (1, 1, 1)}, "has cores 0 to 1"),
    "DLA core -1": (graph("fp16"), {"target": "agx-orin", "dla": -1, "batch": (1, 1, 1)}, "has cores 0 to 1"),
    "DLA in FP32": (graph(), {"target": "agx-orin", "dla": 0, "batch": (1, 1, 1)}, "computes FP16 and INT8"),
    "DLA with FP32 rest": (
        graph("int8", "fp32"),
        {"target": "agx-orin", "dla": 0, "batch": (1, 1, 1)},
        "the rest of this graph is FP32",
    ),
    "DLA with dynamic batch": (graph("fp16"), {"target": "agx-orin", "dla": 0}, "takes one batch size"),
    "long INT8 attention": (
        graph("int8", "fp16", tokens=785, quantized_attention=True, quantized_tokens=785),
        {},
        "INT8 attention over 785 tokens: no TensorRT fuses it above 512",
    ),
    "Xavier": (graph(), {"target": "xavier-nx"}, "JetPack 5 with TensorRT 8.5 is the last for Xavier"),
    "10.x on Xavier": (graph(), {"target": "agx-xavier", "version": "10.3"}, "JetPack 5 with TensorRT 8.5 is the last"),
    "8.5": (graph(), {"version": "8.5"}, "8.6 is the oldest supported"),
    "12": (graph(), {"target": "h100", "version": "12.0"}, "it knows up to 11.x"),
    "10.3 on Thor": (graph(), {"target": "thor", "version": "10.3"}, "it needs 10.13 or newer"),
    "10.3 on Blackwell": (graph(), {"target": "b200", "version": "10.3"}, "it needs 10.8 or newer"),
    "11.2 on a Jetson": (graph(), {"target": "agx-orin", "version": "11.2"}, "not for JetPack"),
    "11.4.1 on Orin Nano": (graph(), {"version": "11.4.1"}, "not documented for Jetson Orin Nano"),
    "version of RTX": (graph(), {"target": "rtx", "version": "1.7"}, "built by the installed TensorRT-RTX"),
    "no version": (graph(), {"version": "ten"}, "expected numbers with dots"),
    "unknown device": (graph(), {"target": "orin-nan"}, "unknown device 'orin-nan' .did you mean 'orin-nano'"),
    "strip on 8.6": (graph(), {"version": "8.6", "strip": True}, "cannot build plans without weights"),
    "strip on RTX": (graph(), {"target": "rtx", "strip": True}, "cannot build plans without weights"),
    "refit on RTX": (graph(), {"target": "rtx", "refit": True}, "cannot build these without a GPU"),
    "Ampere+ on a Jetson": (graph(), {"hardware_compatibility": "ampere+"}, "does not cover JetPack"),
    "Ampere+ on RTX": (graph(), {"target": "rtx", "hardware_compatibility": "ampere+"}, "--compute-capability"),
    "Ampere+ on Turing": (graph(), {"target": "t4", "hardware_compatibility": "ampere+"}, "older than Ampere"),
    "same capability on 10.3": (
        graph(),
        {"target": "h100", "version": "10.3", "hardware_compatibility": "same-capability"},
        "needs TensorRT 10.13",
    ),
    "all of the memory": (graph(), {"version": "10.3", "workspace_mib": 6000}, "more than half of the 8 GB"),
    "no workspace": (graph(), {"workspace_mib": 0}, "expected at least 1"),
    "level": (graph(), {"optimization_level": 6}, "expected 0 to 5"),
    "batch of a static graph": (
        graph(inputs=(GraphInput("image", "fp32", (1, 3, 224, 224)),)),
        {"batch": (1, 1, 8)},
        "exported for batch 1 only",
    ),
    "batch out of order": (graph(), {"batch": (2, 1, 8)}, "expected 1 <= smallest <= usual <= largest"),
    "no capability": (graph(), {"target": "rtx", "compute_capabilities": ()}, "needs at least one"),
    "odd capability": (graph(), {"target": "rtx", "compute_capabilities": ("86",)}, "expected two numbers"),
    "odd compatibility": (graph(), {"hardware_compatibility": "all"}, "there are ampere., same-capability"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_combinations_are_refused_with_the_reason(name):
    summary, choice, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=reason):
        plan(summary, **choice)


class TestTyping:
    def test_8_6_is_weak_and_takes_int8_with_fp16(self):
        made = plan(graph("int8", "fp32"), version="8.6")
        assert made.network_flags == ("EXPLICIT_BATCH",)
        assert made.builder_flags == ("FP16", "INT8")
        assert " --fp16 --int8 " in made.command()
        assert not made.progress

    def test_10_is_strong_unless_asked(self):
        assert plan(graph("int8", "fp16"), version="10.3").network_flags == ("STRONGLY_TYPED",)
        weak = plan(graph("int8", "fp32"), version="10.3", weak=True)
        assert (weak.network_flags, weak.builder_flags) == ((), ("FP16", "INT8"))
        assert "--stronglyTyped" not in weak.command()
        assert any("deprecated" in note for note in plan(graph(), version="10.16", weak=True).notes)

    def test_11_has_no_flags(self):
        made = plan(graph("int8", "fp16"), "h100")
        assert made.network_flags == made.builder_flags == made.cleared_flags == ()

    def test_int8_with_fp32_rest_says_what_it_costs(self):
        for target, version, words in (
            ("orin-nano", "10.3", "or build with --weak"),
            ("h100", "11.4", "export it in FP16"),
            ("rtx", None, "export it in FP16"),
        ):
            made = plan(graph("int8", "fp32"), target, version)
            assert any("the rest of this graph is FP32" in note and words in note for note in made.notes)
        assert "TensorRT picks FP16 or FP32 for the rest" in plan(graph("int8", "fp32"), version="8.6").meaning
        assert not any("the rest" in note for note in plan(graph("int8", "fp16"), version="10.3").notes)

    @pytest.mark.parametrize("version", ["8.6", "10.3", "10.16"])
    def test_fp32_is_without_tf32_unless_asked(self, version):
        assert plan(graph(), version=version).cleared_flags == ("TF32",)
        assert "--noTF32" in plan(graph(), version=version).command()
        assert plan(graph(), version=version, tf32=True).cleared_flags == ()
        assert plan(graph(), version=version, weak=True).cleared_flags == ()

    def test_calibrator_follows_the_caches_header_and_trtexec_reads_entropy_only(self):
        choice = {"version": "8.6", "calibration_cache": "c.cache"}
        entropy = plan(graph(), calibration_header="TRT-8601-EntropyCalibration2", **choice)
        minmax = plan(graph(), calibration_header="TRT-8602-MinMaxCalibration", **choice)
        assert (entropy.calibrator, minmax.calibrator) == ("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator")
        assert entropy.builder_flags == ("FP16", "INT8")
        assert "--calib=c.cache" in entropy.command()
        assert minmax.command() is None


class TestResources:
    @pytest.mark.parametrize(
        ("target", "mib"),
        [
            ("orin-nano-4gb", 512),
            ("orin-nano", 1024),
            ("orin-nx", 2048),
            ("agx-orin", 4096),
            ("h100", 4096),
            ("rtx", 1024),
        ],
    )
    def test_workspace_is_an_eighth_of_the_memory_within_bounds(self, target, mib):
        assert plan(graph(), target).workspace_bytes == mib << 20
        assert plan(graph(), target, workspace_mib=300).workspace_bytes == 300 << 20

    def test_timing_cache_names_all_that_timings_depend_on(self):
        made = plan(graph(), version="10.3", power_mode="15W")
        assert made.timing_cache == "timing_trt10.3_sm87_orin-nano-8gb-super_15W.cache"
        assert plan(graph(), "rtx").timing_cache is None

    def test_profile_gives_each_dynamic_input_its_three_shapes(self):
        made = plan(graph(), batch=(1, 4, 16))
        assert made.profile == {"image": ((1, 3, 224, 224), (4, 3, 224, 224), (16, 3, 224, 224))}
        assert (
            "--minShapes=image:1x3x224x224 --optShapes=image:4x3x224x224 --maxShapes=image:16x3x224x224"
            in made.command()
        )
        static = graph(inputs=(GraphInput("image", "fp32", (1, 3, 224, 224)),))
        assert plan(static, batch=(1, 1, 1)).profile == {}

    def test_dla_tells_what_falls_back(self):
        made = plan(
            dataclasses.replace(VIT_B_INT8, rest="fp16", products=("fp16",)),
            "agx-orin",
            "11.4.1",
            dla=1,
            batch=(1,) * 3,
        )
        assert made.builder_flags == ("GPU_FALLBACK",)
        assert {"TopK", "LayerNormalization", "Gelu", "MatMul(computed)"} <= set(made.dla_fallback)
        assert "MatMul" not in made.dla_fallback
        assert "--useDLACore=1 --allowGPUFallback" in made.command()
        assert any("fall back to the GPU" in note for note in made.notes)

    def test_compatibility_refit_and_strip_are_flags(self):
        made = plan(graph(), "h100", "10.16", refit=True, strip=True, version_compatible=True,
                    hardware_compatibility="same-capability")  # fmt: skip
        assert made.builder_flags == ("REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE")
        assert made.hardware_compatibility == "SAME_COMPUTE_CAPABILITY"
        for word in (
            "--refit",
            "--stripWeights",
            "--versionCompatible",
            "--hardwareCompatibilityLevel=sameComputeCapability",
        ):
            assert word in made.command()
        assert any("executes code from the file" in note for note in made.notes)


class TestGenerations:
    @pytest.mark.parametrize(
        ("version", "name"),
        [("8.6.1", "8.6"), ("10.0", "10.3"), ("10.3.0", "10.3"), ("10.6", "10.3"), ("10.7", "10.7"), ("10.12.0", "10.7"),
         ("10.13.3.9", "10.13"), ("10.16.2.10", "10.16"), ("11.0", "11.0"), ("11.4.1", "11.0"), ("rtx", "rtx")],
    )  # fmt: skip
    def test_version_is_held_to_the_newest_row_not_newer(self, version, name):
        assert generation(version).name == name

    def test_defaults_run_on_their_devices(self):
        for profile in DEVICES.values():
            if profile.compute_capability != "7.2":
                assert plan(graph("fp16"), profile.name).tensorrt == default_version(profile)
        assert default_version(device("orin-nano")) == "10.16"
        assert default_version(device("agx-orin")) == default_version(device("thor")) == "11.4.1"

    def test_rows_are_in_order_and_opsets_grow(self):
        assert [g.opsets[1] for g in GENERATIONS] == sorted(g.opsets[1] for g in GENERATIONS)

    def test_a_new_version_is_a_new_row(self, monkeypatch):
        newest = dataclasses.replace(GENERATIONS[-1], name="12.0", inverted_trtexec=False)
        monkeypatch.setattr(tensorrt_versions, "GENERATIONS", (*GENERATIONS, newest))
        monkeypatch.setattr(tensorrt_versions, "MAJOR_NUMBERS", (*tensorrt_versions.MAJOR_NUMBERS, 12))
        made = plan(graph("fp16"), "h100", "12.1")
        assert (made.generation, made.tensorrt) == ("12.0", "12.1")
        assert generation("11.4").name == "11.0"
        given = {version: timing_arguments(Path("e"), version) for version in ((11, 4), (12, 1))}
        assert "--useCudaGraph" in given[12, 1] and "--useCudaGraph" not in given[11, 4]

    def test_platform_of_lint(self):
        assert platform(None).version is None
        assert platform(None, "10.3").generation.name == "10.3"
        assert platform("rtx").capability is None
        assert platform("orin-nano", "10.3").capability == "8.7"
        with pytest.raises(ConfigError, match="needs 10.13"):
            platform("thor", "10.3")

    def test_plan_is_held_to_the_generation_that_is_installed(self):
        made = plan(graph(), version="10.3")
        assert for_version(made, "10.3.0").tensorrt == "10.3.0"
        with pytest.raises(ConfigError, match=r"TensorRT 10\.3.* 11\.4\.0\.106"):
            for_version(made, "11.4.0.106")
        assert for_version(plan(graph(), "rtx"), "1.7.1.116").tensorrt == "1.7.1.116"


class TestSummary:
    @pytest.mark.parametrize(("name", "top_k"), [("fp32-none", 2), ("int8-compact", 4)])
    def test_of_an_exported_graph(self, exported, name, top_k):
        """With maps the kept patches are sorted, by a second TopK."""
        found = summarize(onnx.load(exported(name).path / MODEL))
        assert (found.precision, found.rest) == (name.partition("-")[0], "fp32")
        assert found.inputs == (GraphInput("image", "fp32", (None, 3, 32, 32)),)
        assert (found.opset, found.tokens, found.quantized_attention) == (20, 17, False)
        assert found.operators["TopK"] == top_k

    def test_height_must_be_static(self):
        text = '<ir_version: 10, opset_import: ["" : 20]> g (float[B,3,H,W] image) => (float[B,3,H,W] y) { y = Relu(image) }'
        with pytest.raises(ArtifactError, match="only the first axis may be dynamic"):
            summarize(onnx.parser.parse_model(text))


@pytest.mark.parametrize("change", [{"batch": None, "more": 1}, {"profile": 3}, {"profile": {"image": 3}}])
def test_damaged_plan_is_refused(change):
    data = {**plan(graph()).to_json(), **change}
    if change.get("more"):
        del data["batch"]
    with pytest.raises(ArtifactError, match="build plan: "):
        BuildPlan.from_json(data)
