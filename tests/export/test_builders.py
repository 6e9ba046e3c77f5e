from __future__ import annotations

import json
import sys

import pytest

from gft_edge.errors import EXIT_MISSING_EXTRA, ArtifactError, ConfigError, MissingExtraError
from gft_edge.export.builders import COMPUTE_CAPABILITIES, EngineSpec, build_engine, key
from gft_edge.files import sha256
from gft_edge.manifest import MODEL, load_artifact, register_files


class TestEngineSpec:
    def test_defaults_cover_ampere_to_blackwell(self):
        spec = EngineSpec()
        assert (spec.flavour, spec.compute_capabilities, spec.batch) == ("rtx", COMPUTE_CAPABILITIES, (1, 1, 8))
        assert COMPUTE_CAPABILITIES == ("8.0", "8.6", "8.9", "12.0")

    @pytest.mark.parametrize("flavour", ["trt", "jetson", "", "RTX"])
    def test_unknown_target_is_refused_with_the_known_ones(self, flavour):
        with pytest.raises(ConfigError, match=f"unknown target {flavour!r}; there are: rtx"):
            EngineSpec(flavour)

    @pytest.mark.parametrize("capability", ["7.5", "7.0", "5.3", "0.0"])
    def test_capability_below_8_is_refused_with_the_reason(self, capability):
        with pytest.raises(ConfigError, match=f"compute capability {capability}: .*use 8.0 or newer"):
            EngineSpec(compute_capabilities=("8.6", capability))

    @pytest.mark.parametrize("capability", ["8", "86", "8.", ".6", "8,6", "sm_86", "-8.6", "8.6.1", ""])
    def test_malformed_capability_is_refused(self, capability):
        with pytest.raises(ConfigError, match=f"compute capability {capability!r}: expected two numbers"):
            EngineSpec(compute_capabilities=(capability,))

    def test_no_capability_is_refused(self):
        with pytest.raises(ConfigError, match="needs at least one compute capability"):
            EngineSpec(compute_capabilities=())

    @pytest.mark.parametrize("batch", [(0, 1, 8), (2, 1, 8), (1, 9, 8), (8, 8, 1), (-1, -1, -1)])
    def test_batch_sizes_out_of_order_are_refused(self, batch):
        with pytest.raises(ConfigError, match="expected 1 <= smallest <= usual <= largest"):
            EngineSpec(batch=batch)

    def test_key_names_everything_that_an_engine_depends_on(self):
        spec = EngineSpec("rtx", ("8.6", "12.0"), (1, 4, 16))
        assert key(spec, "1.7.1.116", "int8") == "rtx1.7.1.116_sm86-sm120_int8_b1-4-16"


class TestBuild:
    @pytest.fixture(autouse=True)
    def trt(self):
        return pytest.importorskip("tensorrt_rtx")

    @pytest.mark.parametrize("name", ["fp32-none", "int8-none", "int8-compact"])
    @pytest.mark.parametrize("capabilities", [("8.6",), ("8.0", "8.9", "12.0")], ids="-".join)
    def test_engine_is_written_and_entered_in_the_manifest(self, copied, trt, name, capabilities):
        artifact = copied(name)
        spec = EngineSpec("rtx", capabilities, (1, 2, 4))
        phases = []
        record = build_engine(artifact, spec, phases.append)
        precision = name.partition("-")[0]
        assert record["key"] == key(spec, trt.__version__, precision)
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
        assert record["version"] == trt.__version__
        assert record["compute_capabilities"] == list(capabilities)
        assert record["batch"] == [1, 2, 4]
        assert record["precision"] == precision
        assert record["model_sha256"] == sha256(artifact.path / MODEL)
        assert record["layers"] > 100
        assert "not yet run" in record["evidence"]
        assert phases
        assert sorted(p.name for p in engine.parent.iterdir()) == [f"{record['key']}.engine", f"{record['key']}.json"]

    def test_engines_for_different_gpus_stand_side_by_side(self, copied):
        artifact = copied("fp32-none")
        for capability in ("8.6", "12.0"):
            build_engine(load_artifact(artifact.path), EngineSpec("rtx", (capability,)))
        files = load_artifact(artifact.path).manifest.files
        assert len([name for name in files if name.endswith(".engine")]) == 2

    def test_capability_the_compiler_does_not_know_is_refused_with_those_it_knows(self, copied):
        artifact = copied("fp32-none")
        with pytest.raises(ConfigError, match=r"compute capability 9\.9: .*cannot compile for it; it knows .*8\.6"):
            build_engine(artifact, EngineSpec("rtx", ("8.6", "9.9")))
        assert not (artifact.path / "engines").exists()

    def test_graph_that_is_no_onnx_is_refused_with_the_parsers_words(self, copied):
        artifact = copied("fp32-none")
        (artifact.path / MODEL).write_bytes(b"no graph at all")
        artifact = register_files(artifact, [MODEL])
        with pytest.raises(ArtifactError, match=r"cannot parse the graph: .*Failed to parse the ONNX model"):
            build_engine(artifact, EngineSpec("rtx", ("8.6",)))
        assert not (artifact.path / "engines").exists()

    def test_node_the_compiler_does_not_know_is_named(self, edited):
        def change(model):
            node = next(node for node in model.graph.node if node.op_type == "Gelu")
            node.name, node.op_type = "culprit", "NoSuchOperator"

        artifact = edited("fp32-none", change)
        with pytest.raises(ArtifactError, match="cannot parse the graph: node culprit: "):
            build_engine(artifact, EngineSpec("rtx", ("8.6",)))

    def test_changed_graph_is_refused_by_its_hash(self, copied):
        artifact = copied("fp32-none")
        with (artifact.path / MODEL).open("ab") as file:
            file.write(b"\0")
        with pytest.raises(ArtifactError, match=r"model\.onnx was changed since it was written"):
            build_engine(artifact, EngineSpec("rtx", ("8.6",)))
        assert not (artifact.path / "engines").exists()


def test_missing_tensorrt_is_named_with_the_extra_that_brings_it(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"tensorrt_rtx is not installed; .*gft-edge\[rtx\]") as caught:
        build_engine(exported("fp32-none"), EngineSpec())
    assert caught.value.exit_code == EXIT_MISSING_EXTRA == 3
