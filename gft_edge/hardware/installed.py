"""Reads which TensorRT and Python a system has installed, from files below a root folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gft_edge.hardware.environment import versions
from gft_edge.hardware.sysfs import read_text

DPKG = "var/lib/dpkg/status"
LIBRARY = re.compile(r"libnvinfer\d+")
_NUMBERS = re.compile(r"(?:\d+:)?(\d+(?:\.\d+)*)")


@dataclass(frozen=True)
class TensorRTParts:
    """Versions of the three parts of TensorRT that must be one version; None where a part is missing or unknown.

    Attributes:
        library: libnvinfer, which runs and builds engines.
        bindings: Python module ``tensorrt``.
        trtexec: its package.
    """

    library: str | None
    bindings: str | None
    trtexec: str | None

    @property
    def differing(self) -> bool:
        """True if two parts differ in one of the first three numbers."""
        found = {".".join(part.split(".")[:3]) for part in (self.library, self.bindings, self.trtexec) if part}
        return len(found) > 1


def debian_packages(names: Iterable[str], root: Path = Path("/")) -> dict[str, str]:
    """Returns the installed Debian packages whose whole name matches one of the patterns, with their upstream version."""
    wanted = re.compile("|".join(f"(?:{name})" for name in names))
    found = {}
    for paragraph in (read_text(root / DPKG) or "").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.MULTILINE))
        version = _NUMBERS.match(fields.get("Version", ""))
        if wanted.fullmatch(fields.get("Package", "")) and version and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = version[1]
    return found


def tensorrt_parts(root: Path = Path("/")) -> TensorRTParts:
    """Returns the TensorRT of a system; the bindings are those of this Python where the root is this machine's."""
    packages = debian_packages((LIBRARY.pattern, "libnvinfer-bin", "python3-libnvinfer"), root)
    files = [file.name.partition(".so.")[2] for file in root.glob("usr/lib/*-linux-gnu/libnvinfer.so.*.*.*")]
    debian = [version for name, version in packages.items() if LIBRARY.fullmatch(name)]
    bindings = packages.get("python3-libnvinfer")
    if root == Path("/"):
        found = versions()["tensorrt"]
        bindings = bindings if found in (None, "unknown") else found
    return TensorRTParts(max(files or debian, key=_key, default=None), bindings, packages.get("libnvinfer-bin"))


def system_python(root: Path = Path("/")) -> str | None:
    """Returns the version of the system's Python as ``"3.10"``, which the bindings of JetPack are made for."""
    version = debian_packages(("python3",), root).get("python3")
    return ".".join(version.split(".")[:2]) if version else None


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
