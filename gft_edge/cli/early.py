"""Checks of paths and options that a verb makes before it imports PyTorch: a mistake is answered at once, not after seconds."""

from __future__ import annotations

from pathlib import Path

from gft_edge.checkpoint import CheckpointInfo, read_info, require_full_precision, resolve_checkpoint
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import read_json, require_writable
from gft_edge.storage.filekinds import FileKind, kind_of


def checkpoint_info(name: str | Path, full_precision: bool = False) -> CheckpointInfo:
    """Reads what a checkpoint folder, or ``'builtin'``, says about itself; its weights are not read.

    Args:
        name: as the user gives it.
        full_precision: refuse a quantized one.

    Raises:
        ArtifactError: no such checkpoint, or a damaged config.json.
        ConfigError: it is quantized.
    """
    path = resolve_checkpoint(name)
    info = read_info(path)
    if full_precision:
        require_full_precision(info, path)
    return info


def require_data(data: str | None, trained_on: str = "") -> None:
    """Refuses a data set that is a missing folder.

    Args:
        data: as the user gives it, or None.
        trained_on: used in its place, where it is None.

    Raises:
        DataError: no such folder.
    """
    from gft_edge.data.datasets import is_folder
    from gft_edge.data.folders import require_folder

    name = data or trained_on
    if name and is_folder(name):
        require_folder(Path(name))


def require_file(path: Path | None, what: str) -> None:
    """Refuses a path where nothing is; what reads it judges the rest.

    Raises:
        ArtifactError: no such file.
    """
    if path is not None and not path.exists():
        raise ArtifactError(f"{what} {path}: no such file; check the path")


def require_result_file(path: Path | None, key: str) -> None:
    """Refuses an output file that cannot be written, or that would replace something else than an earlier result.

    Args:
        path: as the user gives it, or None.
        key: entry that every result of the verb has.

    Raises:
        ConfigError: with the path that is in the way.
    """
    if path is None:
        return
    require_writable(path)
    if path.is_file() and path.stat().st_size and not _is_result(path, key):
        raise ConfigError(
            f"output {path}: is {kind_of(path)} and no earlier result, which alone is replaced; give another name"
        )


def _is_result(path: Path, key: str) -> bool:
    if path.suffix.lower() == ".csv":
        return kind_of(path) is FileKind.TEXT
    try:
        return key in read_json(path, "output")
    except ArtifactError:
        return False
