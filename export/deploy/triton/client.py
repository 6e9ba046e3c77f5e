"""Sends images to Triton and prints their most probable classes. It lies in a bundle, beside the artefact.

    python client.py IMAGE ... [--url localhost:8001] [--model gft_147-98-49_pixels] [--top 3]

Needs tritonclient[grpc], NumPy and Pillow; with gft_edge installed, files are decoded and resized by it, otherwise by Pillow, whose
filters give the same pixels.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def network_pixels(path: str, preprocess: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Returns an image as the network sees it, (height, width, 3) uint8 RGB.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    try:
        from gft_edge.data.images import read_image
        from gft_edge.errors import DataError
        from gft_edge.preprocess import PreprocessSpec
    except ImportError:
        return pillow_pixels(path, preprocess)
    spec = PreprocessSpec.from_json({key: value for key, value in preprocess.items() if key != "id"})
    try:
        return spec.geometry(read_image(path))
    except DataError as error:
        raise ValueError(str(error)) from None


def pillow_pixels(path: str, preprocess: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Returns what ``network_pixels`` returns for opaque 8-bit files, by Pillow alone."""
    from PIL import Image, ImageOps

    height, width, crop = preprocess["height"], preprocess["width"], preprocess["crop_ratio"]
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    rows, cols = height, width
    if preprocess["resize"] == "crop":
        factor = max(height / crop / image.height, width / crop / image.width)
        rows, cols = max(round(image.height * factor), height), max(round(image.width * factor), width)
    image = image.resize((cols, rows), filters[preprocess["interpolation"]])
    top, left = (rows - height) // 2, (cols - width) // 2
    return np.asarray(image)[top : top + height, left : left + width]


def request_input(pixels: npt.NDArray[np.uint8], metadata: dict[str, Any]) -> npt.NDArray[Any]:
    """Returns the input of one request: a batch of one, or the model's static batch filled with the one image.

    Raises:
        ValueError: the model takes normalised images.
    """
    (image,) = metadata["inputs"]
    if image["name"] != "pixels" and image["datatype"] != "UINT8":
        raise ValueError(
            f"model {metadata['name']} takes normalised images; name the ensemble {metadata['name']}_pixels"
        )
    one = pixels if image["datatype"] == "UINT8" else np.moveaxis(pixels, -1, 0).astype(np.float32)
    return np.repeat(one[None], max(int(image["shape"][0]), 1), axis=0)


def probabilities(scores: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    """Returns the probabilities of the classes, from logits or as they are."""
    if name == "probabilities":
        return scores.astype(np.float64)
    shifted = np.exp(scores.astype(np.float64) - scores.max())
    result: npt.NDArray[np.float64] = shifted / shifted.sum()
    return result


def main(arguments: list[str] | None = None, folder: Path | None = None) -> int:
    """Classifies the images named on the command line.

    Args:
        arguments: of the command line.
        folder: of the bundle, by default that of this file.

    Returns:
        exit code: 2 for an image that cannot be read, or a model that takes normalised images.
    """
    parser = argparse.ArgumentParser(description="Sends images to Triton and prints their most probable classes.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--url", default="localhost:8001", help="gRPC address of the server (localhost:8001)")
    parser.add_argument("--model", default="", help="model that takes pixels; by default that of the first budget")
    parser.add_argument("--top", type=int, default=3, help="classes to print (3)")
    options = parser.parse_args(arguments)
    bundle = folder or Path(__file__).resolve().parent
    manifest = json.loads((bundle / "artifact" / "manifest.json").read_text(encoding="utf-8"))
    model = options.model or json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["facts"]["default"]
    grpc = importlib.import_module("tritonclient.grpc")
    client = grpc.InferenceServerClient(options.url)
    metadata = client.get_model_metadata(model, as_json=True)
    output = manifest["outputs"][0]["name"]
    for path in options.images:
        try:
            batch = request_input(network_pixels(path, manifest["preprocess"]), metadata)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        image = grpc.InferInput(metadata["inputs"][0]["name"], list(batch.shape), metadata["inputs"][0]["datatype"])
        image.set_data_from_numpy(batch)
        answer = client.infer(model, [image], outputs=[grpc.InferRequestedOutput(output)])
        found = probabilities(answer.as_numpy(output)[0], output)
        best = np.argsort(-found, kind="stable")[: options.top]
        print(path, ", ".join(f"{manifest['labels'][index]} {found[index]:.4f}" for index in best), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
