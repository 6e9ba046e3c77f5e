"""Speed of preprocessing relative to Pillow's resize and a normalisation in numpy, from memory to (3, 224, 224).

Both give the same bits. For one thread set OMP_NUM_THREADS=1.

python -m gft_edge.benchmarks.experiments.preprocessing_speed runs/bench/preprocessing.json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, conditions, ratio_interval
from gft_edge.errors import MissingExtraError, exit_code
from gft_edge.files import require_writable, write_json
from gft_edge.preprocess import PreprocessSpec
from gft_edge.resample import UInt8Image

SIZES = ((224, 224), (480, 640), (1080, 1920))
SPECS = {
    "stretch": PreprocessSpec(224, 224),
    "crop": PreprocessSpec(224, 224, resize="crop", crop_ratio=0.875),
}
PROTOCOL = BenchProtocol(warmup_seconds=0.2, rounds=20, runs_per_round=3)


def with_pillow(spec: PreprocessSpec, image: UInt8Image) -> npt.NDArray[np.float32]:
    """Returns ``spec(image)`` by the usual steps: resize the whole image, crop the centre, normalise.

    The normalisation is our own, the faster one, so that the ratio is of the resampling. Columns and rows are two calls,
    since Pillow 13 may swap them in one call (python-pillow/Pillow#9549).

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "report") from None
    kernel = Image.Resampling[spec.interpolation.upper()]
    height, width = spec.resized(image)
    narrow = Image.fromarray(image).resize((width, image.shape[0]), kernel)
    left, top = (width - spec.width) // 2, (height - spec.height) // 2
    cut = narrow.resize((width, height), kernel).crop((left, top, left + spec.width, top + spec.height))
    return spec.normalize(np.asarray(cut))


def run(protocol: BenchProtocol = PROTOCOL) -> dict[str, Any]:
    """Returns milliseconds of both, and the speed-up over Pillow with its 95 % interval, per specification and size."""
    results = []
    for name, spec in SPECS.items():
        for rows, columns in SIZES:
            image = np.random.default_rng(protocol.seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
            calls: dict[str, Callable[[], object]] = {
                "gft_edge": functools.partial(spec, image),
                "pillow": functools.partial(with_pillow, spec, image),
            }
            found = measure(calls, protocol)
            results.append(
                {
                    "resize": name,
                    "rows": rows,
                    "columns": columns,
                    **{f"{key}_p50_ms": latency.p50_ms for key, latency in found.items()},
                    "verdicts": [latency.verdict for latency in found.values()],
                    "times_faster": ratio_interval(found["pillow"], found["gft_edge"]),
                }
            )
    return {"machine": conditions(), "omp_num_threads": os.environ.get("OMP_NUM_THREADS"), "results": results}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the JSON file and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="figures as JSON")
    out = parser.parse_args(arguments).out
    require_writable(out)
    data = run()
    print(json.dumps(data["results"], indent=2))
    write_json(out, data)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
