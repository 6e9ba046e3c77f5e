"""Any file: findings or one line, never a traceback, an abort or a hang."""

from __future__ import annotations

import os
import random
import resource
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gft_edge.errors import ArtifactError
from gft_edge.export.graph import native
from gft_edge.export.graph.loading import read_graph
from gft_edge.export.lint.linter import lint
from gft_edge.hardware.tensorrt_versions import Platform, platform

from .lint_graphs import graph, rules

DATA = Path(__file__).parent / "data"


def judge(path: Path):
    return lint(read_graph(path).model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cycle", "reads its own output through"),
        ("selfloop", "reads its own output"),
        ("split", "3 outputs and num_outputs 2"),
        ("rawcut", "holds 0 bytes"),
        ("dtype", "unknown data type 77"),
        ("noout", "has no output"),
    ],
)
def test_broken_graphs_are_one_line(name, words):
    with pytest.raises(ArtifactError, match=words) as caught:
        judge(DATA / f"{name}.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "found"), [("topk9", set()), ("ge002_short", {"GE002"}), ("ge002_long", {"GE002"})])
def test_cases_are_judged(name, found):
    assert rules(judge(DATA / f"{name}.onnx")) == found


def test_a_rule_broken_inside_a_function_is_found_at_its_node():
    report = judge(DATA / "functions.onnx")
    assert "GE011" in rules(report)
    assert any(finding.node.startswith("TopK") for finding in report.findings)


@pytest.mark.parametrize("name", ["external", "extlost/m"])
def test_missing_weights_are_said_and_the_rest_is_judged(name):
    loaded = read_graph(DATA / f"{name}.onnx")
    assert len(loaded.notes) == 1 and "judged without" in loaded.notes[0]
    lint(loaded.model)


def test_a_native_crash_ends_neither_lint_nor_the_next_one(monkeypatch):
    monkeypatch.setattr(native, "_START", "import os; os.abort()")
    native.stop()
    with pytest.raises(ArtifactError, match="SIGABRT"):
        lint(graph("y = Relu(x)"))
    monkeypatch.undo()
    assert lint(graph("y = Relu(x)")).findings == ()


def test_a_native_hang_is_ended(monkeypatch):
    monkeypatch.setattr(native, "_START", "import time; time.sleep(60)")
    native.stop()
    with pytest.raises(native.NativeError, match="did not return"):
        native.call("infer_shapes", b"", seconds=0.2)
    monkeypatch.undo()
    assert lint(graph("y = Relu(x)")).findings == ()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"<?xml version='1.0'?><net/>", "an XML file"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!doctype html><html>", "web page"),
        (b"hello", "cannot be read as ONNX"),
        (graph("y = Relu(x)").SerializeToString()[:-7], "cannot be read as ONNX"),
    ],
)
def test_other_files_are_named(tmp_path, data, words):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=words):
        judge(path)


def test_folder_pipe_archive_and_more_than_a_protobuf_holds(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    with zipfile.ZipFile(tmp_path / "zip.onnx", "w") as archive:
        archive.writestr("m.onnx", b"")
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(2_300_000_000)
    for name, words in ((".", "directory"), ("pipe.onnx", "a pipe"), ("zip.onnx", "zip"), ("large.onnx", "2.3 GB")):
        with pytest.raises(ArtifactError, match=words):
            judge(tmp_path / name)


def external(
    model: onnx.ModelProto, location: str, shape, name: str = "w", offset: int | None = None
) -> onnx.ModelProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    entries = {"location": location} | ({} if offset is None else {"offset": str(offset)})
    tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items())
    model.graph.initializer.append(tensor)
    return model


QDQ = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = MatMul(d, w) y = Identity(m)"


def test_three_gigabytes_of_weights_are_judged_in_seconds_and_little_memory(tmp_path):
    model = graph(QDQ, "float[B,8,30000] x", "float[B,8,30000] y", z=np.int8(0))
    external(model, "weights.bin", [30000, 30000])
    external(model, "weights.bin", [], "s", offset=3_600_000_000)
    onnx.save(model, tmp_path / "m.onnx")
    with (tmp_path / "weights.bin").open("wb") as file:
        file.seek(3_600_000_000)
        file.write(np.float32(-1).tobytes())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    loaded = read_graph(tmp_path / "m.onnx")
    report = lint(loaded.model)
    assert loaded.notes == ()
    assert rules(report) == {"GE006", "GE008"}  # the scale was read from its place: it is negative
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_vector_of_millions_costs_shape_inference_nothing(tmp_path):
    onnx.save(external(graph("y = Mul(x, w)"), "weights.bin", [800_000_000]), tmp_path / "m.onnx")
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(3_200_000_000)
    start = time.monotonic()
    assert lint(read_graph(tmp_path / "m.onnx").model).findings == ()
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("y = Add(x, gone)", "Add y reads gone"),
        ("z = Relu(x)", "no node makes output y"),
        (
            "y = If(c) <then_branch = yes () => (float[B,8,32] a) { a = Add(x, gone) }, "
            "else_branch = no () => (float[B,8,32] b) { b = Relu(x) }>",
            "Add a reads gone",
        ),
    ],
)
def test_names_that_nobody_gives(text, words):
    with pytest.raises(ArtifactError, match=words):
        lint(graph(text, "float[B,8,32] x, bool c"))


@pytest.mark.parametrize("layout", ["beside", "parent", "absolute", "link", "hub"])
def test_weights_are_found_wherever_they_lie(tmp_path, layout):
    folder, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    scale = np.float32(-1).tobytes()
    location = {"parent": "../w.bin", "absolute": str(blobs / "w.bin")}.get(layout, "w.bin")
    real = {"beside": folder / "w.bin", "parent": folder.parent / "w.bin"}.get(layout, blobs / "w.bin")
    real.write_bytes(scale)
    if layout in ("link", "hub"):
        (folder / "w.bin").symlink_to(real)
    graph_file = blobs / "m" if layout == "hub" else folder / "m.onnx"
    onnx.save(external(graph(QDQ, z=np.int8(0), w=np.ones((32, 32), np.float32)), location, [], "s"), graph_file)
    if layout == "hub":
        (folder / "m.onnx").symlink_to(graph_file)
    loaded = read_graph(folder / "m.onnx")
    assert loaded.notes == ()
    assert "GE008" in rules(lint(loaded.model))


def test_weights_cut_short_and_a_folder_in_their_place_are_said(tmp_path):
    (tmp_path / "cut.bin").write_bytes(b"\0" * 10)
    (tmp_path / "folder.bin").mkdir()
    model = external(graph("y = MatMul(x, w)"), "cut.bin", [32, 32])
    onnx.save(external(model, "folder.bin", [4], "unused"), tmp_path / "m.onnx")
    notes = " ".join(read_graph(tmp_path / "m.onnx").notes)
    assert "has 10 bytes" in notes and "folder.bin, which should hold weights, is no file" in notes


@pytest.mark.parametrize("opset", [None, -1, 0, 2**40])
def test_operator_sets_that_there_are_not(opset):
    model = graph("y = Relu(x)")
    del model.opset_import[:]
    if opset is not None:
        model.opset_import.append(helper.make_opsetid("", opset))
    with pytest.raises(ArtifactError, match="operator set"):
        lint(model)


def test_oddities_are_judged():
    same = graph("a = Relu(x) y = Relu(a)")
    for node in same.graph.node:
        node.name = "same"
    empty = graph("y = Concat<axis: int = 1>(x, e)", e=np.zeros((1, 0, 32), np.float32))
    unsorted = graph("y = Relu(a)  a = Neg(x)")
    huge = graph("y = Relu(x)", f"float[{2**40},{2**20}] x", "float[a,b] y")
    for model in (same, empty, unsorted, huge):
        assert lint(model).findings == ()
    sparse = graph("y = Add(x, w)")
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [32]))
    assert rules(lint(sparse)) == {"GE026"}


def test_bodies_are_judged_and_named():
    body = """y = If(c) <then_branch = yes () => (float[B,8,32] a) { a = Det(x) },
                       else_branch = no () => (float[B,8,32] b) { b = Relu(x) }>"""
    found = [f for f in lint(graph(body, "float[B,8,32] x, bool c")).findings if f.rule == "GE025"]
    assert len(found) == 1 and "If" in found[0].node and "then_branch" in found[0].node and "Det" in found[0].node
    assert lint(graph(body, c=np.array(False))).findings == ()  # the branch that is taken is clean


@pytest.mark.parametrize("first", ["branch", "input"])
@pytest.mark.parametrize("blocks", [2, 24, 400])
def test_residual_sums_are_found_in_either_order_however_deep(first, blocks):
    body = ""
    for number in range(blocks):
        x, y = f"x{number}" if number else "x", f"x{number + 1}"
        branch = "".join(f"b{number}_{i} = Relu(b{number}_{i - 1}) " for i in range(1, 20))
        sum_ = f"b{number}_19, d{number}" if first == "branch" else f"d{number}, b{number}_19"
        body += f"q{number} = QuantizeLinear({x}, s, z) d{number} = DequantizeLinear(q{number}, s, z) "
        body += f"b{number}_0 = Relu({x}) {branch} {y} = Add({sum_}) "
    model = graph(
        f"{body} k1, i = TopK(x{blocks}, k) y = Identity(k1)", s=np.float32(0.1), z=np.int8(0), k=np.array([4])
    )
    report = lint(model)
    assert [finding.rule for finding in report.findings].count("GE002") == blocks
    assert rules(report) == {"GE002"}


def test_a_chain_of_a_thousand_casts_is_walked():
    chain = " ".join(f"t{i + 1} = Cast<to: int = 1>(t{i})" for i in range(1500))
    assert lint(graph(f"t0 = Softmax(x) {chain} y = Relu(t1500)")).findings == ()


SEEDS = (
    graph(QDQ, s=np.float32(0.1), z=np.int8(0), w=np.ones((32, 32), np.float32)),
    graph("s = Shape(x) n = Gather(s, one) k = Div(n, one) y, i = TopK<axis: int = 1>(x, k)", one=np.array([1])),
    graph("y = Split<num_outputs: int = 1, axis: int = 1>(x)"),
    graph("p = Softmax(x) y = LayerNormalization(p, g)", g=np.ones(32, np.float32)),
)


def mutated(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(SEEDS).SerializeToString())
    for _ in range(rng.randint(1, 3)):
        place, kind = rng.randrange(len(data)), rng.random()
        if kind < 0.6:
            data[place] ^= 1 << rng.randrange(8)
        elif kind < 0.8:
            del data[place : place + rng.randint(1, 4)]
        else:
            data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 3)))
    return bytes(data)


def test_mutated_graphs_give_findings_or_one_line(tmp_path):
    rng, path = random.Random(0), tmp_path / "m.onnx"
    for _ in range(400):
        path.write_bytes(mutated(rng))
        try:
            lint(read_graph(path).model, rng.choice((Platform(), platform("rtx"), platform(None, "8.6"))))
        except ArtifactError as error:
            assert "\n" not in str(error)
