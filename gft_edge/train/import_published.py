"""Imports weights of the published GFT code as a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gft_edge.checkpoint import CheckpointInfo, load_weights, num_parameters, save_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError
from gft_edge.files import new_folder, require_free, sha256
from gft_edge.labels import read_labels
from gft_edge.model.build import build_model
from gft_edge.model.foreign.weights_file import read_weights_file
from gft_edge.model.published import ANCHOR, published_config, published_state
from gft_edge.preprocess import PreprocessSpec

CARD = """# Imported from {name}

Variant `published`: reproduces the outputs of the published GFT code. **The logits do not depend on the token budget:** they
come from the class token after the last block before the stages, and the stages see patch tokens only. The stages give
importance maps and kept patches; a graph exported without maps does not contain them.
"""


@dataclass(frozen=True)
class ImportedModel:
    """Facts about an imported model.

    Attributes:
        config: its configuration.
        parameters: number of trainable values.
    """

    config: GFTConfig
    parameters: int


def import_published(
    file: Path, out: Path, labels: Path | None = None, report: Callable[[str], None] = lambda line: None
) -> ImportedModel:
    """Turns a state dict of the published code into a checkpoint folder with a card.

    Args:
        file: of PyTorch or safetensors.
        out: new or empty folder.
        labels: file of class names; ``class_0``, ``class_1`` ... by default.
        report: receives a line about each tensor that was left out.

    Raises:
        ArtifactError: the file is not such a state dict.
        ConfigError: ``out`` is not empty, or the labels do not fit.
    """
    require_free(out)
    found = read_weights_file(file, (ANCHOR,))
    try:
        weights = published_state(found.weights)
        config = published_config(weights)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from None
    for note in found.notes:
        report(note)
    names = tuple(f"class_{number}" for number in range(config.num_classes))
    if labels is not None:
        names = read_labels(labels, config.num_classes)
    model = build_model(config)
    load_weights(model, {name: tensor.float() for name, tensor in weights.items()}, str(file))
    spec = PreprocessSpec(config.image_size, config.image_size)
    provenance = {"imported_from": file.name, "sha256": sha256(file)}
    with new_folder(out) as folder:
        save_checkpoint(folder, CheckpointInfo(config, names, spec, provenance=provenance), model)
        (folder / "card.md").write_text(CARD.format(name=file.name), encoding="utf-8")
    return ImportedModel(config, num_parameters(model))
