"""The wheel of the installed package: what pip would build, from an editable and from an ordinary installation."""

import importlib.metadata
import zipfile
from pathlib import Path

import pytest

from gft_edge.errors import ConfigError
from gft_edge.export.deploy.wheel import write_wheel


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_wheel(tmp_path_factory.mktemp("wheel"))


def contents(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_it_holds_what_pip_packs(made, wheel):
    assert contents(made) == contents(wheel)
    assert made.name == wheel.name
    infos = [
        {Path(name).name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" in name}
        for path in (made, wheel)
    ]
    assert infos[0] == infos[1]


def test_the_same_files_give_the_same_bytes_from_an_ordinary_installation_too(made, tmp_path, monkeypatch):
    site, out = tmp_path / "site", tmp_path / "out"
    out.mkdir()
    zipfile.ZipFile(made).extractall(site)
    info = next(site.glob("*.dist-info"))
    (info / "INSTALLER").write_text("pip\n")
    (site / "gft_edge/__pycache__").mkdir()
    (site / "gft_edge/__pycache__/files.cpython-311.pyc").write_bytes(b"x")
    with (info / "RECORD").open("a") as record:  # as pip adds them
        record.write(
            f"{info.name}/INSTALLER,,\ngft_edge/__pycache__/files.cpython-311.pyc,,\n../../../bin/gft-edge,,\n"
        )
    stale = tmp_path / "gft_edge.egg-info"  # of a source tree in the working folder
    stale.mkdir()
    found = [importlib.metadata.PathDistribution(path) for path in (stale, info)]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: found)
    assert write_wheel(out).read_bytes() == made.read_bytes()
    (site / "gft_edge/files.py").unlink()
    with pytest.raises(ConfigError, match=r"files\.py of the installation is missing; install gft-edge again"):
        write_wheel(out)


def test_without_an_installation_a_wheel_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [])
    with pytest.raises(ConfigError, match="not installed here.*--wheel"):
        write_wheel(tmp_path)


def test_a_given_wheel_is_copied_or_refused(made, tmp_path):
    (tmp_path / "out").mkdir()
    assert write_wheel(tmp_path / "out", made).read_bytes() == made.read_bytes()
    other, broken = tmp_path / "gft_edge-9-py3-none-any.whl", tmp_path / "gft_edge-8-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/__init__.py", "")
    broken.write_bytes(made.read_bytes()[:1000])
    (tmp_path / "numpy-2.whl").touch()
    for given, words in (
        (tmp_path / "none.whl", "no such file"),
        (tmp_path / "numpy-2.whl", "expected a wheel of gft-edge"),
        (other, "holds no gft_edge/__init__.py"),
        (broken, "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            write_wheel(tmp_path / "out", given)
