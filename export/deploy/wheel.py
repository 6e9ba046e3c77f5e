"""Makes the wheel of the installed package, so that a bundle holds the version that made it.

From an ordinary installation it takes the files that the installer listed; from an editable one those that the project's
``pyproject.toml`` names. Both give the files of ``pip wheel``, without a compiler, a network or setuptools. The same files give
the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gft_edge.config.reader import loads_toml
from gft_edge.errors import ConfigError

DISTRIBUTION = "gft-edge"
PACKAGE = "gft_edge"
_KEPT = ("METADATA", "WHEEL", "entry_points.txt", "top_level.txt")
"""Files of ``.dist-info`` that a wheel has too, beside the licences; the others are notes of the installer."""
_DATE = (1980, 1, 1, 0, 0, 0)
_REMEDY = "give a wheel of gft-edge with --wheel"


def write_wheel(folder: Path, given: Path | None = None) -> Path:
    """Writes the wheel of the installed package, or copies a given one, and returns its path.

    Args:
        folder: to write into.
        given: a wheel to copy instead.

    Raises:
        ConfigError: the package is not installed or incomplete, or ``given`` is no wheel of it.
    """
    if given is not None:
        _require_wheel(given)
        return Path(shutil.copyfile(given, folder / given.name))
    # A source tree in the working folder may have a .egg-info of an older state beside the installation's own record.
    found = importlib.metadata.distributions(name=DISTRIBUTION)
    installed = next((one for one in found if one.read_text("WHEEL") is not None), None)
    if installed is None:
        raise ConfigError(f"wheel: {DISTRIBUTION} is not installed here, so it cannot be packed; {_REMEDY}")
    project = _project(installed)
    files = dict(_listed(installed) if project is None else _of_project(project))
    if f"{PACKAGE}/__init__.py" not in files:
        raise ConfigError(f"wheel: the installation of {DISTRIBUTION} lists no file of {PACKAGE}; {_REMEDY}")
    info = f"{PACKAGE}-{installed.version}.dist-info"
    files |= {f"{info}/{name}": path for name, path in _metadata(installed).items()}
    target = folder / f"{PACKAGE}-{installed.version}-py3-none-any.whl"
    try:
        _pack(target, files, f"{info}/RECORD")
    except FileNotFoundError as error:
        raise ConfigError(
            f"wheel: {error.filename} of the installation is missing; install {DISTRIBUTION} again"
        ) from None
    return target


def _require_wheel(path: Path) -> None:
    where = f"wheel {path}"
    if not path.is_file():
        raise ConfigError(f"{where}: no such file")
    if not (path.name.startswith(f"{PACKAGE}-") and path.name.endswith("-none-any.whl")):
        raise ConfigError(f"{where}: expected a wheel of {DISTRIBUTION} for every machine, {PACKAGE}-...-none-any.whl")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from None
    if f"{PACKAGE}/__init__.py" not in names:
        raise ConfigError(f"{where}: holds no {PACKAGE}/__init__.py, so it is no wheel of {DISTRIBUTION}")


def _project(installed: importlib.metadata.Distribution) -> Path | None:
    """Returns the folder of the project of an editable installation, else None."""
    try:
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
    except ValueError:
        origin = {}
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlsplit(origin["url"]).path))


def _listed(installed: importlib.metadata.Distribution) -> Iterator[tuple[str, Path]]:
    for file in installed.files or ():
        if file.parts[0] == PACKAGE and file.suffix != ".pyc":
            yield file.as_posix(), Path(str(installed.locate_file(file)))


def _of_project(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields what setuptools packs: the modules of each listed package, and the files of its patterns."""
    file = root / "pyproject.toml"
    try:
        settings = loads_toml(file.read_text(encoding="utf-8"))["tool"]["setuptools"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"wheel: {file} cannot be read ({error!r}); {_REMEDY}") from None
    for package in settings["packages"]:
        folder = root / _folder(package, settings["package-dir"])
        patterns = ("*.py", *settings.get("package-data", {}).get(package, ()))
        for path in (path for pattern in patterns for path in folder.glob(pattern)):
            if path.is_file():
                yield f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}", path


def _folder(package: str, mapped: dict[str, str]) -> str:
    """Returns the folder of a package: that of its nearest mapped parent, and the rest of its name below."""
    parent, below = package, ""
    while parent and parent not in mapped:
        parent, _, last = parent.rpartition(".")
        below = f"/{last}{below}"
    return mapped.get(parent, ".") + below


def _metadata(installed: importlib.metadata.Distribution) -> dict[str, Path]:
    found = {}
    for file in installed.files or ():
        if file.parts[0].endswith(".dist-info"):
            name = "/".join(file.parts[1:])
            if name in _KEPT or name.startswith("licenses/"):
                found[name] = Path(str(installed.locate_file(file)))
    return found


def _pack(target: Path, files: dict[str, Path], record: str) -> None:
    lines = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, key=lambda name: (".dist-info/" in name, name)):
            data = files[name].read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(data)}\n")
            _add(archive, name, data)
        _add(archive, record, "".join([*lines, f"{record},,\n"]).encode())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o100644 << 16
    archive.writestr(entry, data)
