"""Launch files for Isaac ROS: an image topic, its image encoder, its TensorRT node with an engine of the bundle.

Arguments are those of ``isaac_ros_dnn_image_encoder/launch/dnn_image_encoder.launch.py``, parameters those that
``isaac_ros_tensor_rt/src/tensor_rt_node.cpp`` declares (NVIDIA-ISAAC-ROS/isaac_ros_dnn_inference, release 3.2); read, never run.
"""

from __future__ import annotations

from pathlib import Path
from pprint import pformat
from typing import Any

from gft_edge.bundle import ARTIFACT
from gft_edge.errors import ConfigError
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.manifest import MODEL, Artifact, load_artifact

FOLDER = "isaac_ros"
INPUT_TENSOR = "input_tensor"
"""Name of the encoder's tensor in the messages; that of the graph's input is another thing."""


def check(artifact: Artifact, options: BundleOptions) -> None:
    """Refuses an artefact that the encoder and the node cannot feed.

    Raises:
        ConfigError: pixels as uint8, a centre crop, or batches without a single image.
    """
    manifest, where = artifact.manifest, f"artefact {artifact.path}"
    if manifest.inputs[0].dtype == "uint8":
        raise ConfigError(
            f"{where}: Isaac ROS's encoder gives float32, this graph takes uint8; export with --input float"
        )
    if manifest.preprocess.resize != "stretch":
        raise ConfigError(
            f"{where}: resizes by {manifest.preprocess.resize!r}; Isaac ROS's encoder stretches, or cuts another part. "
            "Train with resize = 'stretch', or publish images that are cut to the network's shape already"
        )
    if manifest.batch[0] > 1:
        raise ConfigError(
            f"{where}: takes {manifest.batch[0]} images or more, a topic gives one; export with --batch 1"
        )


def write_files(folder: Path, artifact: Artifact, options: BundleOptions) -> dict[str, Any]:
    """Writes a launch file for each budget.

    Args:
        folder: of the bundle.
        artifact: that is bundled.
        options: none is used.

    Returns:
        facts of the record: launch file of each budget.

    Raises:
        ConfigError: as :func:`check`.
    """
    check(artifact, options)
    (folder / FOLDER).mkdir()
    files = {}
    for budget in (artifact.manifest.budget.id, *artifact.manifest.family):
        files[budget] = f"{FOLDER}/gft_{budget}.launch.py"
        text = launch_text(load_artifact(f"{artifact.path}@{budget}"))
        (folder / files[budget]).write_text(text, encoding="utf-8")
    return {"isaac_ros": files}


def launch_text(artifact: Artifact) -> str:
    """Returns the launch file of an artefact or of a member of a family."""
    manifest, spec = artifact.manifest, artifact.manifest.preprocess
    member = manifest.family.get(artifact.member)
    # The encoder divides by 255 and normalises; a graph that takes 0 to 255 gets the division undone.
    takes_pixels = manifest.input_kind == "float255"
    mean, std = ((0.0,) * 3, (1 / 255,) * 3) if takes_pixels else (spec.mean, spec.std)
    encoder = {
        "network_image_width": str(spec.width),
        "network_image_height": str(spec.height),
        "image_mean": str(list(mean)),
        "image_stddev": str(list(std)),
        "enable_padding": "True",  # with keep_aspect_ratio False: stretched, and nothing is padded
        "keep_aspect_ratio": "False",
        "encoding_desired": "bgr8" if spec.color_order == "bgr" and not takes_pixels else "rgb8",
        "final_tensor_name": INPUT_TENSOR,
        "tensor_output_topic": "/tensor_pub",
    }
    outputs = [output.name for output in manifest.outputs]
    node = {
        "input_tensor_names": [INPUT_TENSOR],
        "input_binding_names": [tensor.name for tensor in manifest.inputs],
        "output_tensor_names": outputs,
        "output_binding_names": outputs,
        "max_batch_size": 1,
        "force_engine_update": False,
        "verbose": False,
    }
    return _LAUNCH.format(
        budget=manifest.budget.id,
        artifact=ARTIFACT,
        model=repr(member.model if member else MODEL),
        graph=repr(manifest.files[MODEL].sha256),
        preprocess=spec.id,
        interpolation=spec.interpolation,
        encoder=pformat(encoder, sort_dicts=False, width=110),
        node=pformat(node, sort_dicts=False, width=110),
    )


_LAUNCH = '''"""Isaac ROS: classifies the images of a topic with budget {budget}.

    ros2 launch isaac_ros/gft_{budget}.launch.py input_image_width:=1920 input_image_height:=1080

Not verified on a board: this file was checked to be Python, and its names against the artefact and against the sources of
isaac_ros_dnn_inference 3.2. Before you trust it, compare `ros2 topic echo /tensor_sub` with `gft-edge predict`. The encoder resizes
bilinearly without antialiasing; this model was trained with {interpolation}, antialiased (preprocessing {preprocess}).
"""

import hashlib
import json
import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import ComposableNodeContainer
from launch_ros.descriptions import ComposableNode

ARTIFACT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "{artifact}")
MODEL = {model}
GRAPH = {graph}
CONTAINER = "gft_container"
ENCODER = {encoder}
TENSORRT = {node}


def engine():
    """Returns the engine of this graph; loading an engine executes it, so its hash is checked first."""
    with open(os.path.join(ARTIFACT, "manifest.json"), encoding="utf-8") as file:
        files = json.load(file)["files"]
    found = []
    for name in files:
        if name.startswith("engines/trt") and name.endswith(".engine"):
            with open(os.path.join(ARTIFACT, name[: -len("engine")] + "json"), encoding="utf-8") as file:
                if json.load(file)["model_sha256"] == GRAPH:
                    found.append(name)
    if len(found) != 1:
        raise RuntimeError(f"{{len(found)}} engines of {{MODEL}}, expected one: gft-edge build {{ARTIFACT}} --target this-gpu")
    path = os.path.join(ARTIFACT, found[0])
    with open(path, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != files[found[0]]["sha256"]:
            raise RuntimeError(f"{{path}} was changed since it was built (its hash differs)")
    return path


def generate_launch_description():
    sizes = ["input_image_width", "input_image_height"]
    encoder = os.path.join(
        get_package_share_directory("isaac_ros_dnn_image_encoder"), "launch", "dnn_image_encoder.launch.py"
    )
    arguments = {{name: LaunchConfiguration(name) for name in sizes}}
    arguments.update(ENCODER)
    arguments.update(
        attach_to_shared_component_container="True",
        component_container_name=CONTAINER,
        dnn_image_encoder_namespace="gft_encoder",
        image_input_topic=LaunchConfiguration("image_input_topic"),
        camera_info_input_topic=LaunchConfiguration("camera_info_input_topic"),
    )
    node = ComposableNode(
        name="gft",
        package="isaac_ros_tensor_rt",
        plugin="nvidia::isaac_ros::dnn_inference::TensorRTNode",
        parameters=[dict(TENSORRT, model_file_path=os.path.join(ARTIFACT, MODEL), engine_file_path=engine())],
    )
    return LaunchDescription(
        [DeclareLaunchArgument(name, description="of the topic's images, pixels") for name in sizes]
        + [
            DeclareLaunchArgument("image_input_topic", default_value="/image"),
            DeclareLaunchArgument("camera_info_input_topic", default_value="/camera_info"),
            ComposableNodeContainer(
                name=CONTAINER,
                namespace="",
                package="rclcpp_components",
                executable="component_container_mt",
                composable_node_descriptions=[node],
                output="screen",
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource([encoder]), launch_arguments=arguments.items()
            ),
        ]
    )
'''
