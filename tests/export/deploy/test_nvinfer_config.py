"""The reader of nvinfer's configuration files follows GLib's rules and names the line of a fault."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gft_edge.errors import ConfigError
from gft_edge.export.deploy.deepstream.nvinfer_config import PROPERTY, format_config, parse_config, read_config

PLACE = Path("config.txt")
key = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=8)
value = st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)), max_size=12).map(
    lambda text: text.lstrip(" \t\v\f")
)


def test_values_lines_and_groups(tmp_path):
    path = tmp_path / "config.txt"
    path.write_bytes(
        b"# head\r\n[property]\r\n  gpu-id = 0\r\n\r\noffsets=1;2.5;3;\r\n#a=b\r\n[class-attrs-all]\r\ntopk=2 # two\r\n"
    )
    config = read_config(path)
    assert config.values == {
        "property": {"gpu-id": ("0", 3), "offsets": ("1;2.5;3;", 5)},
        "class-attrs-all": {"topk": ("2 # two", 8)},
    }
    assert config.integer("gpu-id", 7) == 0
    assert config.integer("interval", 7) == 7
    assert config.numbers("offsets") == (1.0, 2.5, 3.0)
    assert config.numbers("mean") == ()
    assert config.line("offsets") == 5
    assert config.line("nothing") == 0
    assert config.file("onnx-file") is None
    assert config.changed(onnx_file="m.onnx").file("onnx-file") == tmp_path / "m.onnx"
    assert "gpu-id" not in config.changed(gpu_id=None).values[PROPERTY]


@settings(max_examples=40)
@given(st.dictionaries(key, st.dictionaries(key, value, max_size=5), min_size=1, max_size=3))
def test_what_is_written_is_read(groups):
    text = format_config([(name, list(pairs.items())) for name, pairs in groups.items()], ["head", ""])
    found = parse_config(text, PLACE)
    assert {name: {k: v for k, (v, _) in pairs.items()} for name, pairs in found.items()} == groups


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[property]\ngpu-id\n", 2, "gpu-id"),
        ("gpu-id=0\n", 1, "before the first group"),
        ("[property]\na=1\n\na=2\n", 4, "line 2"),
        ("[property\n", 1, "[property"),
        ("[property]\n=1\n", 2, "=1"),
        ("[property] x\n", 1, "x"),
    ],
)
def test_a_line_that_nvinfer_cannot_read_is_named(text, line, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, PLACE)
    assert f"line {line}:" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("method", "text"),
    [("integer", "1.5"), ("integer", ""), ("number", "1,5"), ("number", "nan"), ("numbers", "1;;2"), ("flag", "yes")],
)
def test_a_value_of_another_kind_is_refused_with_its_line(tmp_path, method, text):
    path = tmp_path / "config.txt"
    path.write_text(f"[property]\n\nkey={text}\n")
    config = read_config(path)
    arguments = {"integer": ("key", 0), "number": ("key", 0.0), "numbers": ("key",), "flag": ("key",)}[method]
    with pytest.raises(ConfigError) as caught:
        getattr(config, method)(*arguments)
    assert "line 3" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "config.yml", "binary.txt"])
def test_a_file_that_is_no_key_file_is_refused(tmp_path, name):
    (tmp_path / "config.yml").write_text("property:\n  gpu-id: 0\n")
    (tmp_path / "binary.txt").write_bytes(b"[property]\nkey=\xff\xfe\xfa\n")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / name)
    assert name in str(caught.value)
