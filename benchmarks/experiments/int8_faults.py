"""What goes wrong with INT8 on a ViT, measured on the built-in model: writes the tables of docs/int8.md between their markers.

python -m gft_edge.benchmarks.experiments.int8_faults runs/int8-faults docs/int8.md

Every case is one line of a table. Figures that the folder already has are not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.benchmarks.experiments.explanations import in_chunks
from gft_edge.benchmarks.experiments.markdown import table
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, ratio_interval
from gft_edge.checkpoint import BUILTIN, load_checkpoint
from gft_edge.cli.main import main as gft_edge
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.errors import ConfigError, exit_code
from gft_edge.export.lint.linter import lint
from gft_edge.export.onnx.reference import reference_outputs
from gft_edge.export.verify.options import VerifyOptions
from gft_edge.export.verify.pixels import compare_pixels
from gft_edge.export.verify.verification import verify
from gft_edge.files import read_json, require_writable_folder, write_json, writing
from gft_edge.hardware.environment import machine
from gft_edge.manifest import MODEL, Artifact, load_artifact, register_files
from gft_edge.report.figures.overlays import write_png
from gft_edge.runtime.backends.sessions import DISABLED_FOR_INT8
from gft_edge.runtime.compared_model import ComparedModel
from gft_edge.stats.agreement import Arrays, Computation, compare

IMAGES = 400
CALIBRATION = 64
"""Images of every calibration but the one that varies their number."""
PLAIN = ("--no-smoothquant",)
RANGES = {
    "SmoothQuant, MSE (default)": (),
    "MSE": PLAIN,
    "max": (*PLAIN, "--method", "max"),
    "percentile 99.99": (*PLAIN, "--method", "percentile"),
    "percentile 99.9": (*PLAIN, "--method", "percentile", "--percentile", "99.9"),
    "percentile 99": (*PLAIN, "--method", "percentile", "--percentile", "99"),
    "entropy": (*PLAIN, "--method", "entropy"),
}
PIXELS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "mean and deviation 0.5": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "only divided by 255": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "0 to 255": {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
    "BGR": {"color_order": "bgr"},
}
"""Changes of the preprocessing of what the model gets."""
RESIDUAL, LINEARS = None, ["MatMul", "Gemm", "Conv"]
"""Operators that ONNX Runtime's quantize_static quantizes: its default, and a list of those with weights (and score products)."""


class Study:
    """The built-in model, test images, and the outputs of the model in FP32 for them.

    Args:
        folder: of checkpoints, artefacts and figures.
        count: test images.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.info = load_checkpoint(BUILTIN).info
        self.images = open_images("scenes", "test", count, self.info.model.image_size)
        self.pixels, self.labels = self.preprocessed()
        self.expected = self.outputs(BUILTIN)

    def preprocessed(self, **changes: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Returns the test images by a changed preprocessing, and their classes."""
        batches = list(evaluation_batches(self.images, dataclasses.replace(self.info.preprocess, **changes)))
        return np.concatenate([pixels for pixels, _ in batches]), np.concatenate([labels for _, labels in batches])

    def do(self, *command: str) -> None:
        """Runs a command of gft-edge."""
        if code := gft_edge(command):
            raise SystemExit(code)

    def outputs(self, checkpoint: str, pixels: npt.NDArray[np.float32] | None = None) -> Arrays:
        """Returns what PyTorch computes."""
        loaded = load_checkpoint(checkpoint)
        run = in_chunks(lambda images: reference_outputs(loaded.model.eval(), images, self.info.model.budget))
        return run(self.pixels if pixels is None else pixels)

    def row(self, name: str, found: Arrays) -> list[str]:
        """Returns the cells of one case: top-1, its change, same class, SQNR, kept sets."""
        sides = (Computation("torch", "fp32", "FP32"), Computation("torch", "int8", name))
        c = compare(sides, self.expected, found, self.labels, self.info.model.num_patches)
        assert c.top1 is not None
        assert c.top1_candidate is not None
        low, high = c.top1.interval
        change = f"{100 * c.top1.difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        sqnr = "exact" if c.logit_sqnr_db is None else f"{c.logit_sqnr_db:.1f}"
        kept = ", ".join(f"{stage.jaccard:.3f}" for stage in c.stages)
        return [name, f"{c.top1_candidate:.2%}", change, f"{c.top1_agreement:.1%}", sqnr, kept]

    def quantized(self, name: str, *flags: str) -> str:
        """Returns the checkpoint of that name, quantized with these flags."""
        path = self.folder / name.replace(" ", "-")
        if not path.exists():
            images = () if "--images" in flags else ("--images", str(CALIBRATION))
            self.do("quantize", BUILTIN, *flags, *images, "--selection", "as-is", "--out", str(path))
        return str(path)

    def artifact(self, name: str, checkpoint: str) -> Artifact:
        """Returns the artefact of that name."""
        path = self.folder / name
        if not path.exists():
            self.do("export", checkpoint, "--out", str(path))
        return load_artifact(path)

    def changed(self, name: str, source: Artifact, graph: onnx.ModelProto) -> Artifact:
        """Returns a copy of an artefact with another graph."""
        path = self.folder / name
        if not path.exists():
            shutil.copytree(source.path, path)
            onnx.save(graph, path / MODEL)
            register_files(load_artifact(path), [MODEL])
        return load_artifact(path)


HEADER = ["case", "top-1", "change, points", "same class", "SQNR dB", "kept sets by stage"]


def ranges(study: Study) -> str:
    """Returns the table of ways to find ranges."""
    rows = [study.row(name, study.outputs(study.quantized(name, *flags))) for name, flags in RANGES.items()]
    return table(HEADER, rows)


def calibration_data(study: Study) -> str:
    """Returns the table of calibration images."""
    noise, dark = study.folder / "images-noise", study.folder / "images-dark"
    rng = np.random.default_rng(0)
    side, labels = study.info.model.image_size, study.info.labels
    for number in range(2 * CALIBRATION):  # half of a folder calibrates
        for folder, image in (
            (noise, rng.integers(0, 256, (side, side, 3), dtype=np.uint8)),
            (dark, rng.integers(0, 32, (side, side, 3), dtype=np.uint8)),
        ):
            file = folder / "train" / labels[number % len(labels)] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_png(file, image)
    cases: dict[str, tuple[str, ...]] = {
        "256 images of the task (default)": ("--images", "256"),
        "16 images": ("--images", "16"),
        "1 image": ("--images", "1"),
        "noise": ("--data", str(noise)),
        "dark noise": ("--data", str(dark)),
    }
    return table(HEADER, [study.row(n, study.outputs(study.quantized(n, *flags))) for n, flags in cases.items()])


def pixels(study: Study) -> str:
    """Returns the table of preprocessing mistakes, with what ``verify --pixels`` says."""
    checkpoint = study.quantized(next(iter(RANGES)))
    rows = []
    for name, changes in PIXELS.items():
        given, _ = study.preprocessed(**changes)
        report = compare_pixels([study.images[i][0] for i in range(8)], list(given[:8]), study.info.preprocess)
        said = "passed" if report.place is None else report.place.text
        rows.append([*study.row(name, study.outputs(checkpoint, given)), said])
    return table([*HEADER, "`verify --pixels`"], rows)


def graphs(study: Study) -> str:
    """Returns the table of graphs that another tool quantized, with what ``lint`` finds."""
    plain = study.artifact("fp32", BUILTIN)
    ours = study.artifact("int8", study.quantized(next(iter(RANGES))))
    cases = {
        "`gft-edge quantize`": ours,
        "every operator (quantize_static's default)": quantized_by_onnxruntime(
            study, plain, "every-operator", RESIDUAL
        ),
        "MatMul, Gemm, Conv": quantized_by_onnxruntime(study, plain, "linears", LINEARS),
    }
    rows = []
    for name, artifact in cases.items():
        found = lint(onnx.load(artifact.file(MODEL))).findings
        rules = sorted({finding.rule for finding in found})
        counts = ", ".join(f"{rule} {sum(f.rule == rule for f in found)}" for rule in rules) or "nothing"
        rows.append([*study.row(name, in_chunks(ComparedModel(artifact))(study.pixels)), counts])
    return table([*HEADER, "`lint`: rule, findings"], rows)


def quantized_by_onnxruntime(study: Study, plain: Artifact, name: str, operators: list[str] | None) -> Artifact:
    """Returns the FP32 graph as ONNX Runtime's own tool quantizes it, symmetric as TensorRT needs it."""
    if (study.folder / name).exists():
        return load_artifact(study.folder / name)
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    train = open_images("scenes", "train", CALIBRATION, study.info.model.image_size)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            batches = evaluation_batches(train, study.info.preprocess, 8)
            self.batches: Iterator[dict[str, Any]] = ({"image": batch} for batch, _ in batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    out = study.folder / f"{name}.onnx"
    quantize_static(
        str(plain.file(MODEL)),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return study.changed(name, plain, onnx.load(out))


def speed(study: Study) -> str:
    """Returns the table of INT8 in ONNX Runtime with and without the fusion that takes its INT8 products away."""
    import onnxruntime

    image = study.pixels[:1]
    files = {
        "FP32": (study.artifact("fp32", BUILTIN), []),
        "INT8, opened by gft-edge": (
            study.artifact("int8", study.quantized(next(iter(RANGES)))),
            list(DISABLED_FOR_INT8),
        ),
        "INT8, ONNX Runtime's defaults": (study.artifact("int8", study.quantized(next(iter(RANGES)))), []),
    }
    calls: dict[str, Callable[[], object]] = {}
    for name, (artifact, disabled) in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(artifact.file(MODEL)), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        calls[name] = functools.partial(session.run, None, {"image": image})
    found = measure(calls, BenchProtocol(rounds=40))
    first = found["FP32"]
    rows = []
    for name, latency in found.items():
        ratio, low, high = ratio_interval(first, latency)
        rows.append([name, f"{latency.p50_ms:.2f}", f"{ratio:.2f} ({low:.2f} to {high:.2f})"])
    return table(["session", "ms", "times as fast as FP32"], rows)


def axis(study: Study) -> str:
    """Returns the table of a DequantizeLinear whose per-channel axis is wrong, and what ``verify`` says."""
    import onnxruntime

    checkpoint = study.quantized(next(iter(RANGES)))
    right = study.artifact("int8", checkpoint)
    graph = onnx.load(right.file(MODEL))
    reader = next(n for n in graph.graph.node if "blocks.0.attn.proj.weight_stored" in "".join(n.input))
    next(a for a in reader.attribute if a.name == "axis").i = 0
    wrong = study.changed("wrong-axis", right, graph)
    rows = []
    levels = onnxruntime.GraphOptimizationLevel
    for name, level in (("optimised (default)", levels.ORT_ENABLE_ALL), ("as written", levels.ORT_DISABLE_ALL)):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads = level, 1
        session = onnxruntime.InferenceSession(
            str(wrong.file(MODEL)), options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
        )
        parts = [session.run(None, {"image": study.pixels[i : i + 8]})[0] for i in range(0, len(study.pixels), 8)]
        rows.append(study.row(name, {"logits": np.concatenate(parts)})[:-1])
    report = verify(wrong, load_checkpoint(checkpoint), VerifyOptions(data="scenes", images=16, map_images=0)).report
    said = report.places[0].text if report.places else report.verdict
    return f"{table(HEADER[:-1], rows)}\n\n`gft-edge verify` says: {said}."


PARTS: dict[str, Callable[[Study], str]] = {
    "graphs": graphs,
    "ranges": ranges,
    "data": calibration_data,
    "pixels": pixels,
    "speed": speed,
    "axis": axis,
}


def conditions(study: Study) -> str:
    """Returns the line that says what was measured where."""
    right = float((study.expected["logits"].argmax(1) == study.labels).mean())
    return (
        f"Built-in model, budget {study.info.model.budget.id}, {len(study.labels)} test images of scenes, FP32 {right:.2%}; "
        f"ranges of {CALIBRATION} training images where nothing else is said. Changes with their 95 % paired interval. "
        f"{machine()['cpu']['model']}."
    )


def inserted(text: str, parts: dict[str, str]) -> str:
    """Returns a page with each part between ``<!-- NAME -->`` and ``<!-- end -->``.

    Raises:
        ConfigError: the page has no such markers.
    """
    for name, part in parts.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda found: f"{found[1]}{part}\n{found[2]}", text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise ConfigError(f"the page has {count} places between <!-- {name} --> and <!-- end -->, it needs one")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing and writes the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of checkpoints, artefacts and tables")
    parser.add_argument("page", type=Path, metavar="PAGE", help="Markdown page with markers")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"test images ({IMAGES})")
    parser.add_argument("--again", nargs="+", choices=PARTS, default=(), metavar="PART", help="measure these again")
    args = parser.parse_args(arguments)
    require_writable_folder(args.run)
    file = args.run / "tables.json"
    found: dict[str, str] = read_json(file, "tables") if file.exists() else {}
    study = Study(args.run, args.images)
    found["conditions"] = conditions(study)
    for name, make in PARTS.items():
        if name not in found or name in args.again:
            found[name] = make(study)
            write_json(file, found)
            print(f"{name}\n{found[name]}", flush=True)
    text = inserted(args.page.read_text(encoding="utf-8"), found)
    with writing(args.page):
        args.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
