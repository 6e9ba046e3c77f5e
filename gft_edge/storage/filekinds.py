"""Recognises files by their first bytes: an ONNX graph, a file of weights, a web page."""

from __future__ import annotations

import enum
import zipfile
from pathlib import Path

from gft_edge.errors import ArtifactError

_HEAD = 512


class FileKind(str, enum.Enum):
    """Kind of a file; the value follows "is" in messages."""

    ONNX = "an ONNX graph"
    PYTORCH = "a PyTorch file"
    SAFETENSORS = "a safetensors file"
    PICKLE = "a pickle (PyTorch's format before 1.6, or another program's)"
    TORCHSCRIPT = "a TorchScript archive"
    ENGINE = "a TensorRT engine"
    TFLITE = "a TensorFlow Lite graph"
    GGUF = "a GGUF file"
    HDF5 = "an HDF5 file (Keras)"
    KERAS = "a Keras archive"
    NPY = "a NumPy array (.npy)"
    NPZ = "a NumPy archive (.npz)"
    JSON = "a JSON file"
    XML = "an XML file"
    TEXT = "a text file"
    PDF = "a PDF document"
    PNG = "a PNG image"
    JPEG = "a JPEG image"
    WEB_PAGE = "a web page (HTML), so the download did not give the file itself"
    LFS_POINTER = "a Git LFS pointer, which stands for the file; fetch that with: git lfs pull"
    TAR = "a tar archive; unpack it first"
    GZIP = "a gzip archive; unpack it first"
    BZIP2 = "a bzip2 archive; unpack it first"
    XZ = "an xz archive; unpack it first"
    SEVEN_ZIP = "a 7-Zip archive; unpack it first"
    RAR = "a RAR archive; unpack it first"
    ZIP = "a zip archive that PyTorch did not write; unpack it first"
    BROKEN_ZIP = "a zip archive that is damaged or cut off; download or copy it again"
    EMPTY = "an empty file"
    ZEROS = "a file of zeros"
    DEVICE = "a pipe or device, save its data to a file first"
    UNKNOWN = "a file of an unknown kind"

    def __str__(self) -> str:
        return self.value


_MAGIC = (
    (b"version https://git-lfs", FileKind.LFS_POINTER),
    (b"GGUF", FileKind.GGUF),
    (b"\x89HDF\r\n\x1a\n", FileKind.HDF5),
    (b"\x93NUMPY", FileKind.NPY),
    (b"\x1f\x8b", FileKind.GZIP),
    (b"BZh", FileKind.BZIP2),
    (b"\xfd7zXZ\x00", FileKind.XZ),
    (b"7z\xbc\xaf\x27\x1c", FileKind.SEVEN_ZIP),
    (b"Rar!", FileKind.RAR),
    (b"%PDF", FileKind.PDF),
    (b"\x89PNG", FileKind.PNG),
    (b"\xff\xd8\xff", FileKind.JPEG),
    (b"ftrt", FileKind.ENGINE),
    (b"ptrt", FileKind.ENGINE),
)


def kind_of(path: Path) -> FileKind:
    """Returns the kind of a file.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_dir() and path.exists() and not path.is_file():
        return FileKind.DEVICE  # opening it could block for ever
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return FileKind.EMPTY
    if not head.strip(b"\x00"):
        return FileKind.ZEROS
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"TFL3":
        return FileKind.TFLITE
    if head[257:262] == b"ustar":
        return FileKind.TAR
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")) or (
        text.startswith(b"<?xml") and b"<html" in text
    ):
        return FileKind.WEB_PAGE
    if text.startswith(b"<?xml"):
        return FileKind.XML
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if _is_safetensors(path, head):
        return FileKind.SAFETENSORS
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind.PICKLE
    if is_onnx(path, head):  # by its name too
        return FileKind.TEXT if _is_text(head) else FileKind.ONNX
    if path.suffix.lower() in (".engine", ".plan", ".trt"):
        return FileKind.ENGINE
    if text.startswith((b"{", b"[")):
        return FileKind.JSON
    return FileKind.TEXT if _is_text(head) else FileKind.UNKNOWN


_NO_READER = "gft-edge import-published reads checkpoints of the published GFT code, no verb reads other weights"
_TAKERS = {
    FileKind.ONNX: "gft-edge adopt takes the weights that it came from; lint, quantize, verify, bench and build take the graph",
    FileKind.PYTORCH: _NO_READER,
    FileKind.SAFETENSORS: _NO_READER,
}


def describe_file(path: Path) -> str:
    """Describes a file that is given instead of a folder, and the remedy, in words that follow "is"."""
    for name, what in (("manifest.json", "an artefact"), ("config.json", "a checkpoint")):
        if (path.parent / name).is_file():
            return f"a file of {what}; give its folder {path.parent}"
    try:
        kind = kind_of(path)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror or error})"
    return f"{kind}; {_TAKERS[kind]}" if kind in _TAKERS else str(kind)


def require_graph(path: Path) -> None:
    """Refuses a file that is clearly no binary ONNX graph; accepts unknown files, which the parser checks.

    Raises:
        ArtifactError: no such file, or one of another kind.
    """
    try:
        kind = kind_of(path)
    except FileNotFoundError:
        raise ArtifactError(f"graph {path}: no such file; give an ONNX file or the folder of an artefact") from None
    except OSError as error:
        raise ArtifactError(f"graph {path}: cannot be read ({error.strerror or error})") from None
    if kind not in (FileKind.ONNX, FileKind.UNKNOWN):
        raise ArtifactError(f"graph {path}: cannot be read as ONNX: it is {kind}")


def is_onnx(path: Path, head: bytes | None = None) -> bool:
    """Returns whether a file is an ONNX graph, by its name or by the first fields of its protobuf.

    Raises:
        OSError: it cannot be read.
    """
    if path.suffix.lower() == ".onnx":
        return True
    if head is None:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    # ir_version (field 1, a small number), then a name, the graph or the operator sets
    return len(head) > 3 and head[0] == 0x08 and 1 <= head[1] <= 20 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x3A, 0x42)


def _kind_of_zip(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return FileKind.BROKEN_ZIP
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return FileKind.TORCHSCRIPT
    if "data.pkl" in last:
        return FileKind.PYTORCH
    if names and all(name.endswith(".npy") for name in names):
        return FileKind.NPZ
    if any(name.endswith((".keras", "model.weights.h5")) for name in names):
        return FileKind.KERAS
    return FileKind.ZIP


def _is_safetensors(path: Path, head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= path.stat().st_size - 8


def _is_text(head: bytes) -> bool:
    try:
        return head.decode("utf-8", "strict").isprintable() or not set(head) & (set(range(32)) - {9, 10, 12, 13, 27})
    except UnicodeDecodeError:
        return False
