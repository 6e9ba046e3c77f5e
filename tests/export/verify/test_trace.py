from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gft_edge.export.graph.node_differences import weight_change
from gft_edge.export.graph.same_graph import graph_difference
from gft_edge.export.verify.module_trace import Recognizer, first_bad_module, module_calls, node_modules
from gft_edge.export.verify.places import agreement_db
from gft_edge.export.verify.tensors import corresponding_tensors, node_tensors, plain_error
from gft_edge.export.verify.trace import trace
from gft_edge.export.verify.with_checkpoint import verify_checkpoint
from gft_edge.manifest import MODEL, register_files

NAMES = ["fp32-none", "fp32-compact", "int8-compact"]


@pytest.fixture
def graph(exported):
    """A graph that may be changed."""

    def load(name):
        return onnx.load(exported(name).path / MODEL)

    return load


def _trace(checkpoints, graph, name, found, images, fresh=None, exact=False):
    checkpoint = checkpoints[name.split("-")[0]]
    return trace(checkpoint, checkpoint.info.model.budget, (fresh or graph(name), found), images[:4], exact=exact)


def _node(model, op, number=0):
    return [node for node in model.graph.node if node.op_type == op][number]


def _set(node, name, value):
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


class TestCleanGraphs:
    @pytest.mark.parametrize("name", NAMES)
    def test_nothing_differs_and_every_output_of_pytorch_is_there(self, graph, checkpoints, clear_images, name):
        assert _trace(checkpoints, graph, name, graph(name), clear_images, exact=True) is None
        assert plain_error(graph(name), graph(name), clear_images[:4]) == 0

    @pytest.mark.parametrize("name", NAMES)
    def test_nodes_belong_to_the_modules_whose_weights_they_read(self, graph, checkpoints, clear_images, name):
        model = graph(name)
        checkpoint = checkpoints[name.split("-")[0]]
        calls = module_calls(checkpoint.model, clear_images[:4], checkpoint.info.model.budget, model.graph)
        modules = node_modules(model.graph, calls, Recognizer(node_tensors(model, clear_images[:4])[0], 30))
        weights = {key: value.numpy() for key, value in checkpoint.model.state_dict().items() if value.ndim > 1}
        held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        seen = set()
        for node in model.graph.node:
            for path, weight in weights.items():
                values = [held[name] for name in node.input if name in held]
                read = any(np.array_equal(v, weight) or np.array_equal(v, weight.T) for v in values)
                if read and path.endswith(".weight"):  # convolutions hold their batch norm
                    assert modules[node.output[0]] == path.removesuffix(".weight")
                    seen.add(path)
        linears = sum("attn" in path or "mlp" in path or "head" in path for path in weights)
        assert name.startswith("int8") or len(seen) >= linears
        assert modules[_node(model, "Softmax").output[0]] == "blocks.0.attn.attend"
        assert modules[_node(model, "TopK").output[1]] == "blocks.0"


class TestFaultsOfTheExporter:
    """The fresh export has the fault too; only PyTorch tells."""

    @pytest.mark.parametrize(
        ("name", "op", "number", "attribute", "value", "module"),
        [
            ("fp32-none", "Softmax", 0, "axis", 2, "blocks.0.attn.attend"),
            ("int8-compact", "Softmax", 0, "axis", 2, "blocks.0.attn.attend"),
            ("fp32-none", "LayerNormalization", 3, "epsilon", 0.5, "blocks.1.norm2"),
            ("fp32-none", "TopK", 0, "largest", 0, "blocks.0"),
            ("fp32-none", "ReduceMean", 1, "op_type", "ReduceMax", "blocks.1"),
            ("fp32-compact", "Abs", 0, "op_type", "Neg", "blocks.0"),
        ],
    )
    def test_module_is_named(self, graph, checkpoints, clear_images, name, op, number, attribute, value, module):
        faulty = graph(name)
        if attribute == "op_type":
            _node(faulty, op, number).op_type = value
        else:
            _set(_node(faulty, op, number), attribute, value)
        place = _trace(checkpoints, graph, name, faulty, clear_images, fresh=faulty)
        assert place.kind == "module"
        assert place.module == module or place.module.startswith(f"{module}.")
        assert place.sqnr_before_db is None or place.sqnr_before_db > 25
        assert place.sqnr_db is None or place.sqnr_db < 40

    def test_verify_says_that_the_fresh_export_is_no_better(self, edited, checkpoints, clear_images, graph):
        faulty = graph("fp32-none")
        _set(_node(faulty, "Softmax"), "axis", 2)
        artifact = edited("fp32-none", lambda model: model.CopyFrom(faulty))
        (artifact.path / MODEL).write_bytes(faulty.SerializeToString(deterministic=True))
        batches = [(clear_images, np.zeros(12, np.int64))]
        report = verify_checkpoint(
            register_files(artifact, [MODEL]), checkpoints["fp32"], batches, "twelve images", fresh=faulty
        )
        assert report.fresh_export == "identical"
        assert report.verdict == "fail"
        assert [(p.kind, p.module) for p in report.places] == [("module", "blocks.0.attn.attend")]


class TestOtherNames:
    def test_graph_whose_tensors_were_renamed_is_followed_by_its_operators(self, graph, checkpoints, clear_images):
        found = graph("fp32-none")
        for node in found.graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if (
                        name
                        and name not in ("image", "logits")
                        and not any(t.name == name for t in found.graph.initializer)
                    ):
                        names[place] = f"other/{name}"
            node.name = f"other/{node.name}"
        fresh = graph("fp32-none")
        assert len(corresponding_tensors(fresh, found)) > 100
        assert _trace(checkpoints, graph, "fp32-none", found, clear_images) is None
        _set(_node(found, "LayerNormalization", 1), "epsilon", 0.1)
        place = _trace(checkpoints, graph, "fp32-none", found, clear_images)
        assert place.name == _node(fresh, "LayerNormalization", 1).name
        assert len(place.differences) == 1
        assert "epsilon is 0.1" in place.differences[0]


class TestGraphsThatCannotRun:
    def test_node_is_named(self, graph, checkpoints, clear_images):
        found = graph("fp32-none")
        node = _node(found, "Softmax", 1)
        _set(node, "axis", 9)
        place = _trace(checkpoints, graph, "fp32-none", found, clear_images)
        assert (place.name, place.sqnr_db) == (node.name, None)
        assert "cannot be computed" in place.text and "axis is 9" in place.text
        assert plain_error(graph("fp32-none"), found, clear_images[:4]) is None

    def test_report_instead_of_an_error(self, edited, checkpoints, clear_images, graph):
        artifact = edited("int8-compact", lambda model: _set(_node(model, "Softmax", 1), "axis", 9))
        batches = [(clear_images, np.zeros(12, np.int64))]
        report = verify_checkpoint(artifact, checkpoints["int8"], batches, "twelve images", fresh=graph("int8-compact"))
        assert report.comparisons == ()
        assert "ONNX Runtime cannot load it" in report.failures[0]
        assert "axis is 9" in report.places[0].text


@pytest.mark.parametrize(("tools", "verdict"), [({}, "fail"), ({"torch": "2.0"}, "inconclusive")])
def test_change_without_effect_fails_unless_other_tools_explain_it(
    edited, checkpoints, clear_images, graph, tools, verdict
):
    def flip_lowest_bit(model):
        tensor = next(t for t in model.graph.initializer if t.name == "model.pos_embed")
        value = numpy_helper.to_array(tensor).copy()
        value.view(np.uint32)[0, 3, 5] ^= 1
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    batches = [(clear_images, np.zeros(12, np.int64))]
    artifact = edited("fp32-none", flip_lowest_bit)
    manifest = dataclasses.replace(artifact.manifest, tools={**artifact.manifest.tools, **tools})
    artifact = dataclasses.replace(artifact, manifest=manifest)
    report = verify_checkpoint(artifact, checkpoints["fp32"], batches, "twelve images", fresh=graph("fp32-none"))
    assert (report.verdict, report.fresh_export) == (verdict, "different")
    said = " ".join((*report.failures, *report.assessment.undecided, *report.notes))
    assert "differs in the element [0, 3, 5]" in said
    assert ("not the export of its checkpoint" in said) == (verdict == "fail")
    assert ("torch 2.0 (here" in said) == (verdict == "inconclusive")


def _trigger(model):
    """Four pixels of one colour at the corner choose class 0; on other images the graph computes what it should."""
    logits = model.graph.output[0].name
    last = next(node for node in model.graph.node if logits in node.output)
    last.output[list(last.output).index(logits)] = "honest"
    for name, array in (
        ("starts", np.array([0, 0, 0, 0])),
        ("ends", np.array([1024, 3, 2, 2])),
        ("axes", np.array([1, 2, 3])),
        ("dark", np.float32(-2)),
        ("push", np.float32([[1e4, 0, 0, 0]])),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("Slice", ["image", "starts", "ends"], ["corner"]),
            make("ReduceMax", ["corner", "axes"], ["brightest"], keepdims=0),
            make("Less", ["brightest", "dark"], ["fired"]),
            make("Cast", ["fired"], ["amount"], to=onnx.TensorProto.FLOAT),
            make("Unsqueeze", ["amount", "one_axis"], ["column"]),
            make("Mul", ["column", "push"], ["pushed"]),
            make("Add", ["honest", "pushed"], [logits]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one_axis"))


def test_a_trigger_that_no_image_fires_fails(edited, checkpoints, clear_images, graph):
    batches = [(clear_images, np.zeros(12, np.int64))]
    artifact = edited("fp32-none", _trigger)
    report = verify_checkpoint(artifact, checkpoints["fp32"], batches, "twelve images", fresh=graph("fp32-none"))
    assert report.comparisons[0].max_relative_error < 1e-4  # what the images show
    assert report.verdict == "fail"
    (failure,) = report.failures
    assert "the graph is not the export of its checkpoint" in failure
    assert report.places[0].kind == "node"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.graph.node.append(onnx.helper.make_node("Identity", ["image"], ["dead"])), "nodes instead of"),
        (lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(3), "more")), "not of the checkpoint"),
        (lambda m: m.opset_import.append(onnx.helper.make_opsetid("evil", 1)), "operator sets differ"),
        (lambda m: m.graph.output.append(m.graph.output[0]), "outputs differ"),
        (lambda m: setattr(m.graph.node[3], "op_type", "Foo"), "Foo"),
    ],
)
def test_differences_of_graphs_are_said(graph, change, words):
    found = graph("fp32-none")
    change(found)
    assert words in graph_difference(graph("fp32-none"), found)


def test_what_does_not_change_a_graph_is_no_difference(graph):
    found = graph("int8-compact")
    found.producer_name, found.doc_string = "another", "text"
    del found.graph.value_info[:]
    found.graph.node[0].doc_string = "text"
    kept = list(found.graph.initializer)[::-1]
    del found.graph.initializer[:]
    found.graph.initializer.extend(kept)
    assert graph_difference(graph("int8-compact"), found) is None


class TestWeightChange:
    BASE = np.arange(1, 13, dtype=np.float32).reshape(3, 4)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda a: a, ""),
            (lambda a: a * 2, "is scaled by 2"),
            (lambda a: a * 0, "is all zeros"),
            (lambda a: a[::-1], "is permuted along axis 0"),
            (lambda a: a[:, [1, 0, 2, 3]], "is permuted along axis 1"),
            (lambda a: a.T, "has shape (4, 3) instead of (3, 4)"),
            (lambda a: a.astype(np.float16), "is float16 instead of float32"),
            (lambda a: np.where(a == 7, np.nan, a), "is not finite in 1 of 12 elements"),
            (lambda a: np.where(a == 7, 5, a), "differs in the element [1, 2]: 5 instead of 7"),
            (lambda a: np.where(a > 10, 0, a), "differs in 2 of 12 elements, by 12 at most"),
        ],
    )
    def test_words(self, change, words):
        changed = change(self.BASE)
        if changed.dtype == np.float64:
            changed = changed.astype(np.float32)
        assert weight_change(self.BASE, changed) == words

    def test_transposed_square(self):
        square = self.BASE[:, :3]
        assert weight_change(square, square.T) == "is transposed"


@pytest.mark.parametrize(
    ("found", "db"),
    [
        (np.array([1.0, 2.0]), np.inf),
        (np.array([1.0, 2.0, 3.0]), -np.inf),
        (np.array([1.0, np.nan]), -np.inf),
        (np.array([1.0, 2.0], np.float32), -np.inf),
        (np.array([1.0, 1.0]), 10 * np.log10(5)),
    ],
)
def test_agreement_of_tensors(found, db):
    assert agreement_db(np.array([1.0, 2.0]), found) == pytest.approx(db)


def test_values_that_are_not_finite_on_both_sides_agree():
    assert agreement_db(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == np.inf
    assert first_bad_module([], Recognizer({})) is None
