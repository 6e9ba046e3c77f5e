from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gft_edge.errors import ArtifactError, ConfigError, OutputError
from gft_edge.files import (
    canonical_json,
    decode_text,
    new_folder,
    parse_json,
    read_json,
    replacing,
    require_free,
    require_writable,
    sha256,
    write_json,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _fail_inside(context):
    with context as path:
        if path.is_dir():
            (path / "half").write_text("half")
        else:
            path.write_text("half")
        raise RuntimeError("stopped")


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_canonical_json_is_exact_and_does_not_depend_on_key_order(data):
    text = canonical_json(data)
    assert json.loads(text) == data
    assert canonical_json(dict(reversed(data.items()))) == text
    assert canonical_json(json.loads(text)) == text
    assert text.endswith("\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_canonical_json_refuses_what_json_cannot_say(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": [value]})


def test_sha256_of_a_file_longer_than_one_chunk(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_replacing_makes_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_replaced_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("")
    assert os.stat(tmp_path / "file").st_mode == os.stat(tmp_path / "plain").st_mode


@pytest.mark.parametrize("old", [None, "old"])
def test_replacing_keeps_what_was_there_when_the_block_fails(tmp_path, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(RuntimeError, match="stopped"):
        _fail_inside(replacing(path))
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_reader_of_the_old_file_never_sees_the_new_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        with replacing(path) as temporary:
            temporary.write_text("new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_failed_write_json_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path, "test") == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [False, True])
def test_new_folder_appears_whole(tmp_path, exists):
    folder = tmp_path / "parent" / "out"
    if exists:
        folder.mkdir(parents=True)
    with new_folder(folder) as temporary:
        (temporary / "f").write_text("x")
        assert not folder.exists() or not any(folder.iterdir())
    assert [p.name for p in folder.iterdir()] == ["f"]
    assert list(folder.parent.iterdir()) == [folder]


def test_new_folder_leaves_nothing_when_the_block_fails(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        _fail_inside(new_folder(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", [require_free, lambda path: new_folder(path).__enter__()])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_output_that_holds_something_is_refused_and_untouched(tmp_path, use, kind):
    path = tmp_path / "out"
    content = path if kind == "file" else path / "f"
    content.parent.mkdir(exist_ok=True)
    content.write_text("mine")
    words = {"file": "is a file; give the name of a new folder", "folder": "not empty; give another --out"}
    with pytest.raises(ConfigError, match=words[kind]):
        use(path)
    assert content.read_text() == "mine"


def test_missing_and_empty_folders_are_free(tmp_path):
    require_free(tmp_path / "none")
    require_free(tmp_path)


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "here/inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/inside")
    require_free(Path("."), stays=True)
    with pytest.raises(ConfigError, match="has no name of its own; give the name of a new folder"):
        require_free(Path("."))
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "here/inside")
    with pytest.raises(ConfigError, match="is a mount point, which cannot be replaced; give a new folder in it"):
        require_free(tmp_path / "here/inside")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"recipe .*x\.json: no such file"),
        (b"{", r"recipe .*x\.json: cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe{}", "cannot be read as JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'"text"', "expected a JSON object, found str"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "cannot be read as JSON", id="nested-too-deep"),
    ],
)
def test_unreadable_json_is_an_artifact_error(tmp_path, content, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_json(path, "recipe")


def test_folder_in_place_of_json_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        read_json(tmp_path, "recipe")


def test_names_that_are_no_utf8_are_written_and_read_back(tmp_path):
    data = {"name": "\udcff.png", "label": "\ud800", "text": "Größe 😀"}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json", "file") == data
    assert "Größe 😀" in (tmp_path / "a.json").read_text(encoding="utf-8")


@given(st.text(min_size=1).filter(lambda text: not text.startswith("\ufeff")))
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe\x00\x00", "utf-32-le"),
        (b"\x00\x00\xfe\xff", "utf-32-be"),
    ],
)
def test_text_is_read_by_its_byte_order_mark(mark, encoding, text):
    if encoding == "utf-16-le" and text.startswith("\x00"):
        return  # these bytes are the mark of UTF-32
    assert decode_text(mark + text.encode(encoding)) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_latin_text_needs_no_mark(encoding):
    for text in ("x = 1\n", "[train]\nsteps = 5 # größer\n" * 200):
        assert decode_text(text.encode(encoding)) == text


def test_bytes_that_are_no_text_are_refused_or_replaced():
    with pytest.raises(UnicodeDecodeError):
        decode_text(b"\xff\x41\x80")
    assert decode_text(b"a\xffb", errors="replace") == "a\ufffdb"
    assert decode_text(b"\xff\xfea\x00b", errors="replace") == "a\ufffd"


def test_json_of_windows_is_read(tmp_path):
    for data in (b'\xef\xbb\xbf{"a": 1}', '{"a": 1}'.encode("utf-16")):
        (tmp_path / "x.json").write_bytes(data)
        assert read_json(tmp_path / "x.json", "recipe") == {"a": 1}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_a_name_that_stands_twice_is_refused_at_any_depth():
    assert parse_json('{"a": {"b": 1}, "b": {"b": 2}}') == {"a": {"b": 1}, "b": {"b": 2}}
    with pytest.raises(ValueError, match="'b' stands twice in one object"):
        parse_json('{"a": [{"b": 1, "c": 2, "b": 1}]}')


def test_a_writer_that_fails_is_an_output_error_that_names_the_file(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(OutputError, match=rf"cannot write {path}: No space left on device"), replacing(path):
        raise OSError(errno.ENOSPC, "whatever the locale says")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_library_that_hides_the_systems_answer_is_looked_through(tmp_path):
    def save():
        try:
            raise OSError(errno.EFBIG, "x")
        except OSError as error:
            raise RuntimeError("unexpected pos 704 vs 598") from error

    with pytest.raises(OutputError, match="File too large"), new_folder(tmp_path / "out"):
        save()
    assert list(tmp_path.iterdir()) == []


def test_errors_of_reading_inside_a_folder_are_not_called_errors_of_writing(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "gone", "/data/a.png"), OSError(errno.EIO, "disk"), KeyError("x")):
        with pytest.raises(type(error)) as raised, new_folder(tmp_path / "out"):
            raise error
        assert raised.value is error


def test_output_filled_by_another_process_meanwhile_is_refused_and_kept(tmp_path):
    out = tmp_path / "out"

    def be_faster():
        out.mkdir()
        (out / "theirs").write_text("x")

    with pytest.raises(ConfigError, match="not empty"), new_folder(out):
        be_faster()
    assert [p.name for p in out.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("use", [require_writable, require_free, lambda path: replacing(path).__enter__()])
def test_a_place_where_nobody_can_write_is_refused_before_the_work(use):
    with pytest.raises(ConfigError, match=r"/proc cannot be written to"):
        use(Path("/proc/gft_edge_out"))


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs /dev")
@pytest.mark.parametrize("use", [require_writable, lambda path: replacing(path).__enter__()])
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path, use):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null"), Path("/dev/stdout")):
        with pytest.raises(ConfigError, match=f"output {path}: is a device or a pipe"):
            use(path)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_names_that_are_no_utf8_are_written_as_escapes(tmp_path):
    write_json(tmp_path / "x.json", {"name": "\udcff.png", "other": "é"})
    assert read_json(tmp_path / "x.json", "test") == {"name": "\udcff.png", "other": "é"}


def test_a_full_disk_is_one_kind_of_error_for_every_writer(tmp_path):
    """What the libraries raise on a file system of 1 MB that is really full."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        values = torch.zeros(1_000_000)

        def by_torch(path):
            with path.open("wb") as file:
                torch.save(values, file)

        writers = (
            by_torch,
            lambda path: save_file({"values": values}, str(path)),
            lambda path: path.write_bytes(bytes(4_000_000)),
            lambda path: np.save(path.open("wb"), values.numpy()),
        )
        for write in writers:
            for context in (replacing, new_folder):
                with pytest.raises(OutputError, match=r"small/out: .*No space left"), context(small / "out") as path:
                    write(path / "file" if path.is_dir() else path)
                assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
