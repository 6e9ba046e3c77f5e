"""The twin of nvinfer against a slow form of each of its rules, written after its sources loop by loop."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.export.deploy.deepstream.bundle import labels_text
from gft_edge.export.deploy.deepstream.nvinfer_config import NvinferConfig, format_config, parse_config
from gft_edge.export.deploy.deepstream.nvinfer_twin import (
    Attribute,
    attributes,
    open_twin,
    parse_labels,
    read_label_file,
    resized,
    scaled,
    tensor,
)

SIDE = 8
label = st.text(st.characters(exclude_characters=";\n\r", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)


def config_of(**values) -> NvinferConfig:
    text = format_config([("property", [(key.replace("_", "-"), value) for key, value in values.items()])])
    return NvinferConfig(Path("config.txt"), parse_config(text, Path("config.txt")))


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def slow_resize(image, rows, columns, mode):
    result = np.zeros((rows, columns, 3))
    height, width = image.shape[:2]
    for y in range(rows):
        for x in range(columns):
            for c in range(3):
                if mode == "nearest":
                    result[y, x, c] = image[y * height // rows, x * width // columns, c]
                    continue
                v, u = max((y + 0.5) * height / rows - 0.5, 0), max((x + 0.5) * width / columns - 0.5, 0)
                top, left = int(v), int(u)
                for j, wy in ((top, 1 - v + top), (top + 1, v - top)):
                    for i, wx in ((left, 1 - u + left), (left + 1, u - left)):
                        result[y, x, c] += wy * wx * image[min(j, height - 1), min(i, width - 1), c]
    return np.clip(np.floor(result + 0.5), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("inputs", [0, 2])
def test_a_graph_without_one_input_is_refused(tmp_path, inputs):
    images = [helper.make_tensor_value_info(f"i{n}", TensorProto.FLOAT, [1, 3, SIDE, SIDE]) for n in range(inputs)]
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones((1, 2), np.float32)))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    onnx.save(helper.make_model(helper.make_graph([node], "graph", images, [output])), tmp_path / "model.onnx")
    (tmp_path / "config.txt").write_text("[property]\nnetwork-type=1\nonnx-file=model.onnx\n")
    with pytest.raises(ArtifactError, match="nvinfer fills one input"):
        open_twin(tmp_path / "config.txt")


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("rows", "columns"), [(20, 34), (8, 8), (5, 7)])
def test_resize_against_loops(mode, rows, columns):
    image = picture(rows, columns)
    np.testing.assert_array_equal(resized(image, SIDE, SIDE + 2, mode), slow_resize(image, SIDE, SIDE + 2, mode))


def test_area_is_the_mean_of_whole_cells_and_keeps_the_sum_of_parts():
    image = picture(24, 32)
    cells = image.reshape(8, 3, 8, 4, 3).mean(axis=(1, 3))
    assert np.abs(resized(image, 8, 8, "area") - cells).max() <= 0.5
    grey = np.full((19, 21, 3), 77, np.uint8)
    np.testing.assert_array_equal(resized(grey, 8, 6, "area"), np.full((8, 6, 3), 77))


@settings(max_examples=40)
@given(st.integers(16, 45), st.integers(16, 45), st.booleans(), st.booleans())
def test_place_of_a_frame_in_the_input(rows, columns, keep, symmetric):
    config = config_of(maintain_aspect_ratio=int(keep), symmetric_padding=int(symmetric), scaling_filter=0)
    found = scaled(np.full((rows, columns, 3), 9, np.uint8), (12, 20), config)[..., 0]
    height, width = rows // 2 * 2, columns // 2 * 2
    if keep:
        fits = 20 * height / width <= 12
        high, wide = (int(20 * height / width), 20) if fits else (12, int(12 * width / height))
    else:
        high, wide = 12, 20
    top, left = ((12 - high) // 2, (20 - wide) // 2) if keep and symmetric else (0, 0)
    expected = np.zeros((12, 20))
    expected[top : top + high, left : left + wide] = 9
    np.testing.assert_array_equal(found, expected)


def test_the_cut_begins_and_ends_at_even_pixels():
    frame = picture(40, 50)
    found = scaled(frame, (16, 16), config_of(scaling_filter=0), (3.7, 5.2, 17.9, 18.0))
    np.testing.assert_array_equal(found, frame[6:24, 4:20][np.arange(16) * 18 // 16][:, np.arange(16)])


@pytest.mark.parametrize("box", [(0, 0, 15, 30), (0, 0, 30, 15), (30, 0, 30, 30), (0, 30, 30, 30)])
def test_a_cut_that_cannot_be_scaled_is_refused(box):
    with pytest.raises(DataError) as caught:
        scaled(picture(40, 50), (16, 16), config_of(), box)
    assert "16" in str(caught.value)


@pytest.mark.parametrize("colour", [0, 1])
def test_normalisation_against_loops(colour):
    pixels = picture(4, 5)
    config = config_of(net_scale_factor=0.017, offsets="123.5;116;103", model_color_format=colour)
    expected = np.zeros((3, 4, 5), np.float32)
    for k in range(3):
        source = 2 - k if colour else k
        for y in range(4):
            for x in range(5):
                mean = np.float32((123.5, 116, 103)[k])
                expected[k, y, x] = np.float32(0.017) * (np.float32(pixels[y, x, source]) - mean)
    np.testing.assert_array_equal(tensor(pixels, config), expected)


def slow_attributes(layers, threshold, labels):
    found = []
    for index, values in enumerate(layers):
        buffer = np.frombuffer(values.tobytes(), np.float32)
        largest, best = np.float32(0), None
        for c in range(values.shape[0]):
            if buffer[c] > np.float32(threshold) and buffer[c] > largest:
                largest, best = buffer[c], c
        if best is not None:
            text = labels[index][best] if len(labels) > index and best < len(labels[index]) else None
            found.append(Attribute(index, best, float(largest), text))
    return found


probability = st.one_of(st.floats(-2, 2, width=32), st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan"), float("inf")]))


@settings(max_examples=40)
@given(
    st.lists(st.lists(probability, min_size=1, max_size=5), max_size=3),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.lists(st.lists(label, max_size=5), max_size=3),
)
def test_parser_against_loops(layers, threshold, labels):
    arrays = [np.asarray(values, np.float32) for values in layers]
    assert attributes(arrays, threshold, labels) == slow_attributes(arrays, threshold, labels)


def test_positions_are_read_as_floats_and_become_an_attribute_without_label():
    found = attributes([np.float32([0.2, 0.8]), np.int32([5, 3, 9])], 0.0, [("a", "b")])
    assert [(a.layer, a.value, a.label) for a in found] == [(0, 1, "b"), (1, 2, None)]


@settings(max_examples=40)
@given(st.lists(label, min_size=1, max_size=12))
def test_labels_that_are_written_are_read(labels):
    assert parse_labels(labels_text(tuple(labels))) == (tuple(labels),)


@settings(max_examples=40)
@given(st.lists(label, min_size=2, max_size=12))
def test_one_label_a_line_names_class_0_alone(labels):
    found = parse_labels("\n".join(labels))
    scores = [np.eye(len(labels), dtype=np.float32)[i] for i in range(len(labels))]
    answers = [attributes([each], 0.5, found)[0].label for each in scores]
    assert answers == [labels[0], *[None] * (len(labels) - 1)]


def test_empty_lines_count_for_nothing_and_carriage_returns_stay(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\n\na;b;\r\n\nc\n")
    assert read_label_file(path) == (("a", "b", "\r"), ("c",))
    with pytest.raises(ConfigError, match="labels"):
        read_label_file(tmp_path / "none.txt")


def tiny_graph(path: Path, outputs: int = 1, batch: int | str = "batch", dtype: int = TensorProto.FLOAT) -> np.ndarray:
    """Writes a linear classifier of 16 x 16 pixels with a softmax; returns its weights (768, 4)."""
    weights = np.random.default_rng(5).standard_normal((768, 4)).astype(np.float32) / 255
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    made = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, 4])]
    if outputs > 1:
        nodes.append(helper.make_node("Identity", ["scores"], ["importance_0"]))
        made.append(helper.make_tensor_value_info("importance_0", TensorProto.FLOAT, [batch, 4]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", dtype, [batch, 3, 16, 16])],
        made,
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return weights


def write_config(folder: Path, **values) -> Path:
    base = {"network-type": 1, "onnx-file": "model.onnx", "labelfile-path": "labels.txt", "infer-dims": "3;16;16"}
    pairs = {**base, **{key.replace("_", "-"): value for key, value in values.items()}}
    path = folder / "config.txt"
    path.write_text(format_config([("property", [(k, v) for k, v in pairs.items() if v is not None])]))
    (folder / "labels.txt").write_text("a;b;c;d\n")
    return path


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_frames_to_attributes(tmp_path, batch):
    weights = tiny_graph(tmp_path / "model.onnx", batch=batch)
    twin = open_twin(write_config(tmp_path, scaling_filter=1, batch_size=2, classifier_threshold=0.1))
    frames = [picture(32 + 2 * i, 40, i) for i in range(5)]
    found = twin(frames)
    for frame, each in zip(frames, found):
        small = slow_resize(frame, 16, 16, "bilinear")
        scores = np.moveaxis(small, -1, 0).reshape(-1).astype(np.float64) @ weights
        powers = np.exp(scores - scores.max())
        best = int(scores.argmax())
        assert [(a.layer, a.value, a.label) for a in each] == [(0, best, "abcd"[best])]
        assert each[0].probability == pytest.approx(powers[best] / powers.sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"network_type": 0}, "network-type"),
        ({"network_type": None}, "network-type"),
        ({"mean_file": "mean.ppm"}, "mean-file"),
        ({"network_input_order": 1}, "network-input-order"),
        ({"model_color_format": 2}, "model-color-format"),
        ({"scaling_filter": 5}, "scaling-filter"),
        ({"classifier_threshold": -1}, "classifier-threshold"),
        ({"offsets": "1;2"}, "offsets"),
        ({"onnx_file": None}, "onnx-file"),
        ({"infer_dims": "3;32;32"}, "infer-dims"),
        ({"labelfile_path": "none.txt"}, "none.txt"),
    ],
)
def test_a_configuration_that_cannot_be_computed_is_refused(tmp_path, values, words):
    tiny_graph(tmp_path / "model.onnx")
    with pytest.raises(ConfigError) as caught:
        open_twin(write_config(tmp_path, **values))
    assert words in str(caught.value)


@pytest.mark.parametrize("damage", ["uint8", "text", "missing"])
def test_a_graph_that_nvinfer_does_not_fill_is_refused(tmp_path, damage):
    if damage == "uint8":
        tiny_graph(tmp_path / "model.onnx", dtype=TensorProto.UINT8)
    elif damage == "text":
        (tmp_path / "model.onnx").write_text("no graph")
    with pytest.raises(ArtifactError) as caught:
        open_twin(write_config(tmp_path))
    assert "model.onnx" in str(caught.value)
