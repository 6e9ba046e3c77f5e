"""External data of a graph is found without the onnx package, wherever onnx itself finds it."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from gft_edge.errors import ArtifactError
from gft_edge.storage.external_data import external_files


def external(name, location):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def save(tmp_path, model):
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def value(name, shape=(2,)):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def test_finds_every_place_a_tensor_can_lie_in(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=external("c", "in-a-branch.bin"))], "b", [], [value("c")]
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], value=external("k", "constant.bin")),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
    ]
    plain = helper.make_tensor("p", TensorProto.FLOAT, [2], np.ones(2, np.float32).tobytes(), raw=True)
    sparse = onnx.SparseTensorProto(values=external("s", "sparse.bin"), indices=external("i", "indices.bin"), dims=[4])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [value("y")],
        [plain, external("w", "weights/ü.bin")],
        sparse_initializer=[sparse],
    )
    inner = helper.make_node("Constant", [], ["o"], value=external("f", "function.bin"))
    function = helper.make_function("own", "F", [], ["o"], [inner], [helper.make_opsetid("", 20)])
    model = helper.make_model(graph, functions=[function])
    wanted = {"in-a-branch.bin", "constant.bin", "sparse.bin", "indices.bin", "weights/ü.bin", "function.bin"}
    assert external_files(save(tmp_path, model)) == wanted


def test_a_graph_with_all_its_weights_inside_has_none(tmp_path):
    tensor = helper.make_tensor("p", TensorProto.FLOAT, [2], [1.0, 2.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "p"], ["y"])], "g", [value("x")], [value("y")], [tensor])
    assert external_files(save(tmp_path, helper.make_model(graph))) == frozenset()


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_or_hold_nothing(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "m.onnx"
    path.write_bytes(data)
    with contextlib.suppress(ArtifactError):
        assert all(isinstance(name, str) for name in external_files(path))


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_file_cut_off_is_refused(tmp_path, cut):
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString()[:-cut])
    with pytest.raises(ArtifactError, match="no ONNX model"):
        external_files(path)
