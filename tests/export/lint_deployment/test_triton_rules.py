"""Every rule of Triton finds a bad configuration and names field and line; the good one has no finding."""

import shutil

import onnx
import pytest

from gft_edge.errors import ArtifactError
from gft_edge.export.lint_deployment.linter import TRITON_RULES, lint_deployment
from gft_edge.export.lint_deployment.triton.pbtxt_lines import field_lines, line_of

from .clean_bundles import clean_bundle
from .faults import ENSEMBLE, FAULTS, NORMALIZE, TR
from .served import classifier

INSTANCES = "instance_group {\n  count: 1"
ACCELERATOR = "optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: {} }} }} }}\n"
CASES = (
    (TR, 'backend: "onnxruntime"', "", "TR002", "backend", "is missing"),
    (TR, 'backend: "onnxruntime"', 'backend: "onnxrutime"', "TR002", "backend", "did you mean 'onnxruntime'"),
    (TR, "max_batch_size: 8", "max_batch_size: 0", "TR006", "max_batch_size", "is dynamic"),
    (TR, "preferred_batch_size: 8", "preferred_batch_size: 16", "TR007", "preferred_batch_size", "has 16"),
    (TR, INSTANCES, INSTANCES + " kind: KIND_CPU gpus: 0", "TR008", "instance_group[0].gpus", "names GPUs"),
    (TR, INSTANCES, ACCELERATOR.format('"tensorRT"') + INSTANCES, "TR009", "gpu_execution_accelerator", "did you mean"),
    (TR, 'name: "image"', 'name: "images"', "TR010", "input[0].name", "did you mean 'image'"),
    (TR, 'name: "image"', 'format: FORMAT_NHWC name: "image"', "TR014", "input[0].format", "takes NCHW"),
    (TR, 'label_filename: "labels.txt"', "", "TR018", "output[0].label_filename", "is missing from logits"),
    (ENSEMBLE, 'platform: "ensemble"', "", "TR030", "platform", "has steps"),
    (ENSEMBLE, 'key: "pixels"', 'key: "pixel"', "TR032", "input_map", "did you mean 'pixels'"),
    (ENSEMBLE, 'value: "pixels"', 'value: "picture"', "TR033", "input_map", "no step makes"),
    (ENSEMBLE, 'value: "pixels"', 'value: "picture"', "TR034", "input[0].name", "read by no step"),
    (ENSEMBLE, "TYPE_UINT8", "TYPE_FP32", "TR035", "input[0].data_type", "TYPE_UINT8"),
    (ENSEMBLE, "max_batch_size: 8", "max_batch_size: 9", "TR036", "max_batch_size", "takes 8"),
    (NORMALIZE, "TYPE_UINT8", "TYPE_INT8", "TR012", "input[0].data_type", "TYPE_UINT8"),
)


@pytest.fixture
def repository(tmp_path):
    return shutil.copytree(clean_bundle("triton"), tmp_path / "bundle")


@pytest.mark.parametrize(("file", "old", "new", "rule", "key", "words"), CASES)
def test_a_bad_configuration_is_found(repository, file, old, new, rule, key, words):
    path = repository / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    found = [f for f in lint_deployment(path).findings if f.rule == rule]
    assert (found[0].key, found[0].file) == (key, path)
    assert words in found[0].message
    if new and found[0].line:
        field = key.rpartition(".")[2].partition("[")[0]
        assert field in path.read_text().split("\n")[found[0].line - 1]


def test_an_input_that_is_missing_is_found(repository):
    graph = repository / TR.replace("config.pbtxt", "1/model.onnx")
    onnx.save(classifier(pixels=False, probabilities=False, inputs=2), graph)
    assert "TR011" in {finding.rule for finding in lint_deployment(repository / TR).findings}


def test_a_graph_whose_nodes_read_in_a_circle_is_refused(repository):
    graph = repository / TR.replace("config.pbtxt", "1/model.onnx")
    model = classifier(pixels=False, probabilities=False)
    first, image = model.graph.node[0], model.graph.input[0].name
    model.graph.node.extend(
        onnx.helper.make_node("Identity", [a], [b]) for a, b in (("there", "back"), ("back", "there"))
    )
    first.input[list(first.input).index(image)] = "back"
    model.graph.node[-1].output.append(model.graph.output[0].name)
    del model.graph.node[-3]
    onnx.save(model, graph)
    with pytest.raises(ArtifactError, match="model.onnx: the graph is not valid ONNX"):
        lint_deployment(repository / TR)


def test_a_file_in_a_folder_that_is_missing_is_found(repository):
    path = repository / TR
    path.write_text('default_model_filename: "sub/model.onnx"\n' + path.read_text())
    (found,) = [f for f in lint_deployment(path).findings if f.rule == "TR004"]
    assert "sub/model.onnx does not exist" in found.message


def test_a_model_without_a_name_is_called_like_its_folder(repository):
    step, ensemble = repository / NORMALIZE, repository / ENSEMBLE
    step.write_text(step.read_text().replace(f'name: "{step.parent.name}"', "", 1))
    ensemble.write_text(ensemble.read_text().replace("TYPE_UINT8", "TYPE_FP32", 1))
    (found,) = [f for f in lint_deployment(ensemble).findings if f.rule == "TR035"]
    assert f"pixels of {step.parent.name} is TYPE_UINT8" in found.message


def test_every_rule_is_tried():
    tried = {case[3] for case in CASES} | {fault.found for fault in FAULTS} | {"TR011"}
    assert {rule.id for rule in TRITON_RULES} <= tried


def test_lines_of_fields():
    text = 'a: 1 # b: 2\nb [\n  { c: "x: {" },\n  { c: "y"\n    d <e: 3> }\n]\nf: [1,\n 2]\n'
    lines = field_lines(text)
    assert lines == {"a": 1, "b": 2, "b[0]": 3, "b[0].c": 3, "b[1]": 4, "b[1].c": 4, "b[1].d": 5, "b[1].d[0]": 5} | {
        "b[1].d[0].e": 5,
        "f": 7,
    }
    assert line_of(lines, "b[1].missing") == 4
    assert line_of(lines, "nothing") == 0
