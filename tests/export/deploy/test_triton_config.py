from __future__ import annotations

import sys

import pytest

from gft_edge.errors import ArtifactError, MissingExtraError
from gft_edge.export.deploy.triton.config import MAX_BYTES, messages, read_model_config, write_model_config

TEXT = """
name: "gft" backend: "onnxruntime" max_batch_size: 8
input [{ name: "image" data_type: TYPE_FP32 dims: [3, 32, 32] }]
output [{ name: "logits" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" }]
dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100 }
instance_group [{ kind: KIND_GPU count: 1 }]
optimization { execution_accelerators { gpu_execution_accelerator: [{ name: "tensorrt" }] } }
model_warmup [{
  name: "one" batch_size: 1
  inputs { key: "image" value: { data_type: TYPE_FP32 dims: [3, 32, 32] zero_data: true } }
}]
"""


def test_every_field_is_read(tmp_path):
    path = tmp_path / "config.pbtxt"
    path.write_text(TEXT)
    config = read_model_config(path)
    assert (config.name, config.backend, config.platform, config.max_batch_size) == ("gft", "onnxruntime", "", 8)
    assert [(t.name, t.data_type, t.dims) for t in config.inputs] == [("image", "TYPE_FP32", (3, 32, 32))]
    assert config.outputs[0].label_filename == "labels.txt"
    assert config.dynamic_batching and config.preferred_batch_sizes == (4, 8) and config.max_queue_delay_us == 100
    assert config.instance_kinds == ("KIND_GPU",) and config.accelerators == ("tensorrt",)
    assert config.warm_ups[0].inputs == {"image": ("TYPE_FP32", (3, 32, 32))}
    assert config.steps == () and config.folder == tmp_path


def test_what_is_written_is_read_and_is_the_same_bytes_each_time(tmp_path):
    path = tmp_path / "config.pbtxt"
    path.write_text(TEXT)
    message = read_model_config(path).message
    write_model_config(tmp_path / "a", message)
    write_model_config(tmp_path / "b", message)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_model_config(tmp_path / "a").message == message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"max_batch_size: many", "1:17"),
        (b"max_batch: 4", "max_batch"),
        (b"input [{ data_type: FLOAT }]", "FLOAT"),
        (b"\xff\xfe", "UTF-8"),
        (b"#" * (MAX_BYTES + 1), "larger"),
        (b"input [{", "1:"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, data, words):
    path = tmp_path / "config.pbtxt"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=words) as caught:
        read_model_config(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="No such file"):
        read_model_config(tmp_path / "config.pbtxt")


def test_a_missing_tritonclient_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(MissingExtraError, match=r"gft-edge\[triton\]") as caught:
        messages()
    assert caught.value.exit_code == 3
