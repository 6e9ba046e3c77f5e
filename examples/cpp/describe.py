"""Writes engines/KEY.txt for the C++ example: the preprocessing, labels and tensors of an artefact, and one of its engines.

python describe.py ARTIFACT|BUNDLE KEY

KEY names engines/KEY.engine, which the file is written beside.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gft_edge.bundle import is_bundle, load_bundle
from gft_edge.errors import ConfigError, exit_code
from gft_edge.files import read_json, replacing
from gft_edge.manifest import Artifact, load_artifact
from gft_edge.runtime.backends.engine_files import engine_files


def description(artifact: Artifact, key: str) -> str:
    """Returns the content of the file; numbers are written so that they are read back to the last bit.

    Raises:
        ArtifactError: the engine or its record is not in the manifest, missing or changed.
        ConfigError: an input that the example does not make.
    """
    engine, record = engine_files(key)
    artifact.file(engine)
    about = read_json(artifact.file(record), "engine record")
    manifest = artifact.manifest
    spec, (graph_input,), output = manifest.preprocess, manifest.inputs, manifest.outputs[0]
    kind = {"float32": "float", "uint8": "uint8"}.get(graph_input.dtype)
    if kind is None:
        raise ConfigError(f"artefact {artifact.path}: the example makes no input of {graph_input.dtype}")
    normalises = manifest.input_kind != "float"  # then pixels enter the graph as they are, in RGB
    factors = ([1.0] * 3, [0.0] * 3) if normalises else [values.tolist() for values in spec.scale_and_shift()]
    scale, shift = (" ".join(map(str, values)) for values in factors)
    lines = {
        "engine": Path(engine).name,
        "engine_sha256": manifest.files[engine].sha256,
        "tensorrt": f"{about.get('module')} {about.get('version')}",
        "input": kind,
        "input_name": graph_input.name,
        "output_name": output.name,
        "output_kind": output.name,
        "height": spec.height,
        "width": spec.width,
        "resize": spec.resize,
        "crop_ratio": repr(spec.crop_ratio),
        "interpolation": spec.interpolation,
        "color_order": "rgb" if normalises else spec.color_order,
        "scale": scale,
        "shift": shift,
    }
    labels = [" ".join(label.split()) for label in manifest.labels]
    return "\n".join(["gft_edge classifier 1", *(f"{k} {v}" for k, v in lines.items()), "labels", *labels]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file and prints its path."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 2:
        raise ConfigError("usage: python describe.py ARTIFACT|BUNDLE KEY")
    path = Path(arguments[0])
    artifact = load_bundle(path).artifact() if is_bundle(path) else load_artifact(path)
    text = description(artifact, arguments[1])
    out = artifact.path / "engines" / f"{arguments[1]}.txt"
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
