from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import py_compile
import shutil

import numpy as np
import pytest

from gft_edge.errors import ConfigError
from gft_edge.export.deploy.isaac import launch_text, write_files
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.manifest import TensorInfo, load_artifact
from gft_edge.preprocess import PreprocessSpec

OPTIONS = BundleOptions("jetson", isaac_ros=True)
ENCODER = {
    "input_image_width", "input_image_height", "network_image_width", "network_image_height", "image_mean", "image_stddev",
    "enable_padding", "keep_aspect_ratio", "crop_mode", "input_encoding", "encoding_desired", "final_tensor_name",
    "image_input_topic", "camera_info_input_topic", "tensor_output_topic", "attach_to_shared_component_container",
    "component_container_name", "dnn_image_encoder_namespace", "input_qos", "output_qos", "num_blocks",
}  # fmt: skip
"""Arguments of dnn_image_encoder.launch.py, isaac_ros_dnn_inference 3.2."""
NODE = {
    "model_file_path", "engine_file_path", "input_tensor_names", "input_binding_names", "input_tensor_formats",
    "output_tensor_names", "output_binding_names", "output_tensor_formats", "force_engine_update", "verbose",
    "max_workspace_size", "dla_core", "max_batch_size", "enable_fp16", "relaxed_dimension_check", "num_blocks",
}  # fmt: skip
"""Parameters that tensor_rt_node.cpp declares, isaac_ros_dnn_inference 3.2."""


def constants(text: str) -> dict:
    """Returns the module's constants that are literals."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def keywords(text: str, function: str) -> set[str]:
    """Returns the names of keyword arguments in calls of a function or method."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    named = [c for c in calls if ast.unparse(c.func) == function]
    return {keyword.arg for call in named for keyword in call.keywords}


def test_launch_file_compiles_and_says_what_the_artefact_says(tiny_artifact, tmp_path):
    artifact = load_artifact(tiny_artifact)
    assert write_files(tmp_path, artifact, OPTIONS) == {"isaac_ros": {"12-6": "isaac_ros/gft_12-6.launch.py"}}
    path = tmp_path / "isaac_ros/gft_12-6.launch.py"
    py_compile.compile(str(path), str(tmp_path / "x.pyc"), doraise=True)
    text = path.read_text()
    found = constants(text)
    manifest, spec = artifact.manifest, artifact.manifest.preprocess
    node, encoder = found["TENSORRT"], found["ENCODER"]
    assert node["input_binding_names"] == [t.name for t in manifest.inputs]
    assert node["output_binding_names"] == node["output_tensor_names"] == [t.name for t in manifest.outputs]
    assert node["input_tensor_names"] == [encoder["final_tensor_name"]]
    assert node["force_engine_update"] is False  # the node would build an engine of its own, in FP16
    assert ast.literal_eval(encoder["image_mean"]) == list(spec.mean)
    assert ast.literal_eval(encoder["image_stddev"]) == list(spec.std)
    assert (encoder["network_image_width"], encoder["network_image_height"]) == ("32", "32")
    assert found["GRAPH"] == manifest.files["model.onnx"].sha256
    assert set(node) | keywords(text, "dict") <= NODE
    sizes = {"input_image_width", "input_image_height"}
    assert set(encoder) | keywords(text, "arguments.update") | sizes <= ENCODER
    assert "Not verified on a board" in ast.get_docstring(ast.parse(text))


def test_maps_are_outputs_of_the_node(stand_in, tiny_artifact):
    maps = (TensorInfo("importance_0", "float32", ("batch", 16), ""), TensorInfo("kept_0", "int32", ("batch", 12), ""))
    artifact = stand_in(outputs=(*load_artifact(tiny_artifact).manifest.outputs, *maps))
    names = constants(launch_text(artifact))["TENSORRT"]["output_binding_names"]
    assert names == ["logits", "importance_0", "kept_0"]


def test_graph_that_takes_0_to_255_gets_the_division_undone(stand_in):
    encoder = constants(launch_text(stand_in(image=("pixels", "float32", 3, 32, 32))))["ENCODER"]
    mean, std = (np.array(ast.literal_eval(encoder[name]), np.float32) for name in ("image_mean", "image_stddev"))
    levels = np.arange(256, dtype=np.float32)
    np.testing.assert_allclose((levels / 255 - mean[0]) / std[0], levels, rtol=3e-7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": ("image", "uint8", 32, 32, 3)}, "--input float"),
        ({"preprocess": PreprocessSpec(32, 32, "crop", 0.875)}, "resize = 'stretch'"),
        ({"batch": (4, 4, 4)}, "--batch 1"),
    ],
)
def test_what_the_encoder_cannot_give_is_refused(stand_in, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        write_files(tmp_path, stand_in(**changes), OPTIONS)
    assert not (tmp_path / "isaac_ros").exists()


def test_order_of_colours_is_the_encoders(stand_in):
    artifact = stand_in(preprocess=PreprocessSpec(32, 32, color_order="bgr"))
    assert constants(launch_text(artifact))["ENCODER"]["encoding_desired"] == "bgr8"


def engine_function(path):
    """The launch file's function that finds the engine, run without ROS."""
    tree = ast.parse(path.read_text())
    body = [n for n in tree.body if isinstance(n, ast.Import)]
    body += [n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id in ("MODEL", "GRAPH", "ARTIFACT")]
    body += [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "engine"]
    names = {"__file__": str(path)}
    exec(compile(ast.Module(body, []), str(path), "exec"), names)
    return names["engine"]


def test_engine_is_the_one_of_the_graph_and_its_hash_is_checked(tiny_artifact, tmp_path):
    artifact = load_artifact(tiny_artifact)
    shutil.copytree(tiny_artifact, tmp_path / "artifact")
    write_files(tmp_path, artifact, OPTIONS)
    engine = engine_function(tmp_path / "isaac_ros/gft_12-6.launch.py")
    with pytest.raises(RuntimeError, match=r"0 engines of model\.onnx, expected one: gft-edge build"):
        engine()
    folder, manifest = tmp_path / "artifact/engines", tmp_path / "artifact/manifest.json"
    folder.mkdir()
    data = json.loads(manifest.read_text())
    for key, graph in (("trt-a", artifact.manifest.files["model.onnx"].sha256), ("trt-b", "0" * 64)):
        (folder / f"{key}.engine").write_bytes(key.encode())
        (folder / f"{key}.json").write_text(json.dumps({"model_sha256": graph}))
        data["files"][f"engines/{key}.engine"] = {"sha256": hashlib.sha256(key.encode()).hexdigest()}
    manifest.write_text(json.dumps(data))
    assert engine() == str(folder / "trt-a.engine")
    (folder / "trt-a.engine").write_bytes(b"other")
    with pytest.raises(RuntimeError, match="its hash differs"):
        engine()


def test_stand_in_keeps_the_rest_of_the_manifest(stand_in, tiny_artifact):
    changed = stand_in(batch=(1, 1, 1)).manifest
    kept = load_artifact(tiny_artifact).manifest
    assert (
        dataclasses.replace(changed, batch=kept.batch, inputs=kept.inputs, outputs=kept.outputs, files=kept.files)
        == kept
    )
