"""What a file is by its first bytes, in words for messages: an ONNX graph, a file of weights, a web page."""

from __future__ import annotations

import zipfile
from pathlib import Path

from gft_edge.errors import ArtifactError

_HEAD = 512
_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer, which stands for the file; fetch that with: git lfs pull"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"ftrt", "a TensorRT engine"),
    (b"ptrt", "a TensorRT engine"),
)


def kind_of(path: Path) -> str:
    """What a file is, in words that follow "is": ``"an ONNX graph"``, ``"an empty file"``, ``"a file of an unknown kind"``.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_dir() and path.exists() and not path.is_file():
        return "a pipe or device, save what comes from it to a file first"  # opening it could wait for ever
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "an empty file"
    if not head.strip(b"\x00"):
        return "a file of zeros"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite graph"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")) or (
        text.startswith(b"<?xml") and b"<html" in text
    ):
        return "a web page (HTML), so the download did not give the file itself"
    if text.startswith(b"<?xml"):
        return "an XML file"
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if _is_safetensors(path, head):
        return "a safetensors file"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle (PyTorch's format before 1.6, or another program's)"
    if is_onnx(path, head):
        return "an ONNX graph"
    if path.suffix.lower() in (".engine", ".plan", ".trt"):
        return "a TensorRT engine"
    if text.startswith((b"{", b"[")):
        return "a JSON file"
    return "a text file" if _is_text(head) else "a file of an unknown kind"


_NO_READER = "gft-edge import-published reads checkpoints of the published GFT code, no verb reads other weights"
_TAKERS = {
    "an ONNX graph": "gft-edge lint reads graphs of other programs, no other verb does",
    "a PyTorch file": _NO_READER,
    "a safetensors file": _NO_READER,
}


def describe_file(path: Path) -> str:
    """What a file is that stands where a folder should, and what to do with it, in words that follow "is"."""
    for name, what in (("manifest.json", "an artefact"), ("config.json", "a checkpoint")):
        if (path.parent / name).is_file():
            return f"a file of {what}; give its folder {path.parent}"
    try:
        kind = kind_of(path)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror or error})"
    return f"{kind}; {_TAKERS[kind]}" if kind in _TAKERS else kind


def require_graph(path: Path) -> None:
    """Refuses a file that is clearly no binary ONNX graph; what is not known is left to the parser.

    Raises:
        ArtifactError: no such file, or of another kind.
    """
    try:
        kind = kind_of(path)
    except FileNotFoundError:
        raise ArtifactError(f"graph {path}: no such file") from None
    except OSError as error:
        raise ArtifactError(f"graph {path}: cannot be read ({error.strerror or error})") from None
    if kind not in ("an ONNX graph", "a file of an unknown kind"):
        raise ArtifactError(f"graph {path}: cannot be read as ONNX: it is {kind}")


def is_onnx(path: Path, head: bytes | None = None) -> bool:
    """Whether a file is an ONNX graph, by its name or by how its protobuf begins.

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


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return "a zip archive that is damaged or cut off; download or copy it again"
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return "a TorchScript archive"
    if "data.pkl" in last:
        return "a PyTorch file"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    if any(name.endswith((".keras", "model.weights.h5")) for name in names):
        return "a Keras archive"
    return "a zip archive that PyTorch did not write; unpack it first"


def _is_safetensors(path: Path, head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= path.stat().st_size - 8


def _is_text(head: bytes) -> bool:
    try:
        return head.decode("utf-8", "strict").isprintable() or not set(head) & (set(range(32)) - {9, 10, 12, 13, 27})
    except UnicodeDecodeError:
        return False
