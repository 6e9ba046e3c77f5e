"""Zips: the same files give the same bytes, and whatever could leave the folder, hide a file or fill the disk is refused."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.storage import unpack as module
from gft_edge.storage.pack import pack
from gft_edge.storage.unpack import names_in, unpack


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "source"
    (root / "deep/er").mkdir(parents=True)
    (root / "b.txt").write_text("b")
    (root / "deep/er/a.bin").write_bytes(bytes(range(256)) * 9)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o700)
    return root


def test_files_return_with_the_right_to_run_and_no_other(folder, tmp_path):
    pack(folder, tmp_path / "x.zip")
    assert names_in(tmp_path / "x.zip") == ["b.txt", "deep/er/a.bin", "run.sh"]
    unpack(tmp_path / "x.zip", tmp_path / "out")
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert os.access(tmp_path / "out/run.sh", os.X_OK)
    assert not os.access(tmp_path / "out/b.txt", os.X_OK)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.testzip() is None


def test_bytes_do_not_depend_on_time_order_or_rights_of_others(folder, tmp_path):
    pack(folder, tmp_path / "1.zip")
    (folder / "b.txt").rename(folder / "z")
    (folder / "z").rename(folder / "b.txt")
    os.utime(folder / "b.txt", (1e9, 1e9))
    (folder / "b.txt").chmod(0o640)
    pack(folder, tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_a_file_of_two_gigabytes_is_packed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # in place of 2 GiB; deep/er/a.bin has more
    pack(folder, tmp_path / "x.zip")
    unpack(tmp_path / "x.zip", tmp_path / "out")
    assert (tmp_path / "out/deep/er/a.bin").read_bytes() == (folder / "deep/er/a.bin").read_bytes()


def entry(name: str, data: bytes = b"x", mode: int = 0, method: int = zipfile.ZIP_STORED):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = method
    return info, data


REFUSED = {
    "absolute": ([entry("/etc/passwd")], "'/etc/passwd' has an absolute name"),
    "drive": ([entry("C:/x")], "'C:/x' has an absolute name"),
    "parent": ([entry("a/../../x")], "'a/../../x' leads out of the folder"),
    "only parent": ([entry("..")], "leads out"),
    "backslash": ([entry("a\\x")], "has a name that systems read differently"),
    "empty part": ([entry("a//x")], "has a name that systems read differently"),
    "dot": ([entry("./x")], "has a name that systems read differently"),
    "control character": ([entry("a\nx")], "has control characters in its name"),
    "link": ([entry("x", b"/etc/passwd", stat.S_IFLNK | 0o777)], "'x' is a link, device or pipe"),
    "pipe": ([entry("x", b"", stat.S_IFIFO | 0o600)], "'x' is a link, device or pipe"),
    "folder that is a link": ([entry("x/", b"", stat.S_IFLNK | 0o777)], "'x/' is a link, device or pipe"),
    "twice": ([entry("x"), entry("x", b"y")], "'x' makes 'x' a second time"),
    "case": ([entry("Run.sh"), entry("run.sh")], "'run.sh' differs from 'Run.sh' by case or accents only"),
    "case of a folder": ([entry("A/x"), entry("a/y")], "'a/y' differs from 'A' by case"),
    "accents": ([entry("\u00e9"), entry("e\u0301")], "by case or accents only"),
    "file and folder": ([entry("x"), entry("x/y")], "'x/y' makes 'x' a second time"),
    "folder and file": ([entry("x/y"), entry("x")], "'x' makes 'x' a second time"),
    "method": ([entry("x", b"x" * 99, 0, zipfile.ZIP_LZMA)], "is compressed by method 14, only deflate"),
    "folder with content": ([entry("x/", b"hidden")], "is a folder with content"),
    "bomb": ([entry("x", bytes(1 << 20), 0, zipfile.ZIP_DEFLATED)], r"times the zip, the limit is 100"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", REFUSED)
def test_dangerous_entries_are_refused_and_nothing_is_written(tmp_path, case, monkeypatch):
    monkeypatch.setattr(module, "FREE_BYTES", 1 << 10)
    entries, reason = REFUSED[case]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(*entry("first.txt"))
        for info, data in entries:
            archive.writestr(info, data)
    with pytest.raises(ArtifactError, match=reason):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip"}


def patched(path: Path, **fields: int) -> None:
    """Writes fields of the only entry, in its local header and in the directory; or in one of them."""
    data = bytearray(path.read_bytes())
    directory = data.rfind(b"PK\1\2")
    for name, value in fields.items():
        where, _, field = name.rpartition("__")
        local, central, form = {
            "flags": (6, 8, "<H"),
            "crc": (14, 16, "<I"),
            "size": (22, 24, "<I"),
            "packed": (18, 20, "<I"),
            "offset": (None, 42, "<I"),
        }[field]
        if where != "directory" and local is not None:
            struct.pack_into(form, data, local, value)
        struct.pack_into(form, data, directory + central, value)
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"flags": 1}, "'x' is encrypted"),
        ({"size": 10}, "gives more than the 10 bytes that it declares|is damaged"),
        ({"size": 5000}, "gives 1000 bytes and declares 5000"),
        ({"crc": 7}, "is damaged or cut off .*CRC"),
        ({"packed": 9_999_999}, "'x' ends after the zip"),
    ],
)
def test_entries_that_lie_are_refused(tmp_path, method, fields, reason):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(*entry("x", bytes(range(250)) * 4, method=method))
    patched(path, **fields)
    with pytest.raises(ArtifactError, match=reason):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_bytes_than_declared_with_the_checksum_of_the_first_ones(tmp_path):
    """The reader of the standard library would stop at the declared size and find its checksum right."""
    path, content = tmp_path / "x.zip", os.urandom(100)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(*entry("x", content + b"more"))
    patched(path, size=100, crc=zlib.crc32(content))
    with zipfile.ZipFile(path) as archive:
        assert archive.read("x") == content
    with pytest.raises(ArtifactError, match="gives more than the 100 bytes|Bad CRC"):
        unpack(path, tmp_path / "out")


def test_overlapping_entries_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(*entry("x", b"1" * 500))
        archive.writestr(*entry("y", b"1" * 500))
    patched(path, directory__offset=0)
    with pytest.raises(ArtifactError, match="overlaps another entry"):
        unpack(path, tmp_path / "out")


def test_limits_of_size_number_and_directory(tmp_path, folder, monkeypatch):
    path = tmp_path / "x.zip"
    pack(folder, path)
    for name, reason in (
        ("MAX_ENTRIES", "has 3 entries, the limit is 2"),
        ("MAX_BYTES", "take 2315 bytes, the limit is 2"),
        ("MAX_DIRECTORY", "its directory takes .* bytes, the limit is 2"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 2)
            with pytest.raises(ArtifactError, match=reason):
                unpack(path, tmp_path / "out")
    unpack(path, tmp_path / "out")


def test_no_zip_a_cut_one_and_an_occupied_place(tmp_path, folder):
    path = tmp_path / "x.zip"
    with pytest.raises(ArtifactError, match="no such file"):
        unpack(path, tmp_path / "out")
    pack(folder, path)
    whole = path.read_bytes()
    for part in (b"", b"no zip", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(part)
        with pytest.raises(ArtifactError, match="is no zip, damaged or cut off"):
            unpack(path, tmp_path / "out")
        assert names_in(path) == []
    path.write_bytes(whole[:50] + whole[60:])
    with pytest.raises(ArtifactError, match="overlaps another entry|damaged or cut off"):
        unpack(path, tmp_path / "out")
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match="not empty"):
        unpack(path, folder)
