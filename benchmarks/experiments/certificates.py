"""Certificates of kept patches on the built-in task: bound from val images, tested on test images, at two token budgets.

python -m gft_edge.benchmarks.experiments.certificates runs/certificates benchmarks/CERTIFICATES.md

At each budget the built-in checkpoint is exported in full precision and quantized in two ways: with ranges by max, and with
--selection exact. ONNX Runtime runs the graphs, with the scores of their selections as further outputs, on the same pixels. Run
again with the same folder, it continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.benchmarks.experiments.certificates_page import page
from gft_edge.benchmarks.experiments.markdown import show
from gft_edge.budget import TokenBudget
from gft_edge.calibration.options import CalibrationOptions
from gft_edge.calibration.quantize import QuantizeOptions, quantize_checkpoint
from gft_edge.checkpoint import BUILTIN, Checkpoint, load_checkpoint, save_checkpoint
from gft_edge.cli.console import say, track
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.data.sets import Subset
from gft_edge.data.splits import Split
from gft_edge.errors import CheckFailed, exit_code
from gft_edge.export.onnx.artifact import export_artifact, save_npz
from gft_edge.files import require_writable_folder, write_json
from gft_edge.hardware.environment import machine
from gft_edge.manifest import LOGITS, Artifact, load_artifact
from gft_edge.quant.exact_selection import with_exact_selection
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.graph_io import to_graph_input
from gft_edge.runtime.backends.sessions import onnxruntime_session
from gft_edge.runtime.compared_model import add_selections, selection_tensors
from gft_edge.stats import certificates
from gft_edge.stats.agreement import Arrays
from gft_edge.stats.metrics import accuracy, sqnr_db

BATCH = 50
SINGLES, WARM = 320, 20
"""Runs of one image, and those of them that are left out."""
REFERENCE, PLAIN, EXACT = "fp32", "int8-max", "exact-selection"
SMOOTH, FIRST_QKV = "smoothquant-mse", "exact-selection-but-first-qkv"
VARIANTS = (PLAIN, EXACT)
Runner = Callable[[npt.NDArray[np.float32]], Arrays]


@dataclass(frozen=True)
class Plan:
    """Images and policies of one token budget.

    Attributes:
        budget: its id.
        bound_images, test_images: val images that bound the noise, and test images.
        variants: names of policies.
    """

    budget: str
    bound_images: int
    test_images: int
    variants: tuple[str, ...] = VARIANTS


PLANS = (
    Plan("144-72-72", 2000, 10_000),
    Plan("47-47-23", 2000, 10_000),
    Plan("144-72-72", 500, 1000, (PLAIN, SMOOTH, FIRST_QKV)),
)
"""The built-in budget, the one that a search by latency recommends, and further policies on fewer images."""


def _at(checkpoint: Checkpoint, budget: TokenBudget, folder: Path) -> Checkpoint:
    """Returns the checkpoint with another budget of its own, so that quantization is checked at it."""
    if not folder.is_dir():
        info = checkpoint.info
        model = dataclasses.replace(info.model, budget=budget)
        save_checkpoint(folder, dataclasses.replace(info, model=model), checkpoint.model)
    return load_checkpoint(folder)


def _policy(variant: str, checkpoint: Checkpoint) -> QuantPolicy:
    if variant == SMOOTH:
        return dataclasses.replace(DEFAULT_POLICY, smoothquant=0.5)
    if variant == PLAIN:
        return DEFAULT_POLICY
    policy = with_exact_selection(DEFAULT_POLICY, checkpoint.info.model)
    if variant == FIRST_QKV:
        rule = QuantRule("blocks.0.attn.qkv", "int8", "a quarter of the work of the block")
        return dataclasses.replace(policy, rules=(rule, *policy.rules))
    return policy


def artifacts(start: Checkpoint, folder: Path, variants: Sequence[str]) -> dict[str, Artifact]:
    """Quantizes and exports what is missing, or opens it: by name, full precision first."""
    side = start.info.model.image_size
    golden = np.zeros((1, 3, side, side), np.float32)
    found = {}
    for name in (REFERENCE, *variants):
        checkpoint, out = start, folder / f"{name}-artifact"
        if name != REFERENCE:
            if not (folder / name).is_dir():
                say(f"certificates: quantizing {name}")
                calibration = CalibrationOptions(images=128, method="mse" if name == SMOOTH else "max")
                options = QuantizeOptions(calibration, _policy(name, start))
                quantize_checkpoint(start, options, folder / name)
            checkpoint = load_checkpoint(folder / name)
        if not out.is_dir():
            export_artifact(checkpoint, out, golden)
        found[name] = load_artifact(out)
    return found


def runner(artifact: Artifact) -> Runner:
    """Returns a function that gives ``logits``, ``scores_i`` and ``kept_i`` of a graph by one run.

    Raises:
        CheckFailed: the selections of the graph are not those of its budget.
    """
    model, manifest = load_artifact_graph(artifact), artifact.manifest
    names, problem = selection_tensors(model, manifest)
    if problem:
        raise CheckFailed(f"certificates: {problem}")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime_session(model.SerializeToString(), manifest.is_quantized, 1)

    def run(pixels: npt.NDArray[np.float32]) -> Arrays:
        values = session.compute(to_graph_input(pixels, manifest))
        outputs: Arrays = {LOGITS: values[LOGITS]}
        add_selections(outputs, [values[name] for name in names], manifest)
        return outputs

    return run


def outputs_of(calls: Mapping[str, Runner], checkpoint: Checkpoint, split: Split, count: int, folder: Path) -> Arrays:
    """Runs what is missing of a split in batches; returns all outputs by ``name/output``, and ``labels`` and ``seconds``."""
    info = checkpoint.info
    images = open_images(info.data, split, count, info.model.image_size)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{split}-{number:03}.npz" for number in range(batch_count(len(images), BATCH))]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    for number in track(missing, f"certificates, {split}", len(missing)):
        indices = tuple(range(number * BATCH, min((number + 1) * BATCH, len(images))))
        ((pixels, labels),) = evaluation_batches(Subset(images, indices), info.preprocess, BATCH)
        arrays: Arrays = {"labels": labels}
        seconds = []
        for name in sorted(calls, reverse=bool(number % 2)):
            before = time.process_time()
            arrays |= {f"{name}/{key}": values for key, values in calls[name](pixels).items()}
            seconds.append((name, (time.process_time() - before) / len(labels)))
        arrays["seconds"] = np.array([[dict(seconds)[name] for name in calls]])
        save_npz(files[number], arrays)
    parts = [dict(np.load(file)) for file in files]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def single_seconds(calls: Mapping[str, Runner], checkpoint: Checkpoint, file: Path) -> npt.NDArray[np.float64]:
    """Returns processor seconds of one image, in alternating order on the same images: (SINGLES, graphs)."""
    if not file.is_file():
        info = checkpoint.info
        images = open_images(info.data, "val", BATCH, info.model.image_size)
        ((pixels, _),) = evaluation_batches(images, info.preprocess, BATCH)
        rows = []
        for number in range(SINGLES):
            image, seconds = pixels[number % BATCH][None], {}
            for name in sorted(calls, reverse=bool(number % 2)):
                before = time.process_time()
                calls[name](image)
                seconds[name] = time.process_time() - before
            rows.append([seconds[name] for name in calls])
        save_npz(file, {"seconds": np.array(rows[WARM:])})
    return np.asarray(np.load(file)["seconds"])


def side(outputs: Arrays, name: str) -> Arrays:
    """Returns the outputs of one graph."""
    return {key.removeprefix(f"{name}/"): values for key, values in outputs.items() if key.startswith(f"{name}/")}


def evaluate(
    reference: tuple[Arrays, Arrays], found: tuple[Arrays, Arrays], labels: npt.NDArray[Any]
) -> dict[str, Any]:
    """Measures the bound on the first outputs of each pair and tests it on the second; returns plain JSON values."""
    bound = certificates.measure_bound(reference[0], found[0])
    tested = certificates.check(reference[1], found[1], bound)
    moved = certificates.flipped(reference[1], found[1])
    a, b = reference[1][LOGITS].astype(np.float64), found[1][LOGITS].astype(np.float64)
    other = a.argmax(1) != b.argmax(1)
    error = np.abs(a - b).max(axis=1)
    stages = []
    for stage in bound.stages:
        same = ~certificates.flipped(reference[1], found[1], stage.stage)
        s, t = reference[1][f"scores_{stage.stage}"][same], found[1][f"scores_{stage.stage}"][same]
        _, leads = certificates.leads(t, stage.kept)
        noise = certificates.noise(s, t, stage.kept)
        here = (np.sort(reference[1][f"kept_{stage.stage}"]) != np.sort(found[1][f"kept_{stage.stage}"])).any(axis=1)[
            same
        ]
        stages.append(
            {
                "stage": stage.stage,
                "patches": stage.patches,
                "kept": stage.kept,
                "bound": stage.noise,
                "reach_bound": stage.reach,
                "bound_images": stage.images,
                "margin": np.quantile(leads.min(axis=1), (0.05, 0.5)).tolist(),
                "noise": np.quantile(noise, (0.5, 0.95, 1.0)).tolist(),
                "reach": np.quantile(certificates.reach(s, t, stage.kept), (0.95, 1.0)).tolist(),
                "above_bound": int((noise > stage.noise).sum()),
                "flipped": int(here.sum()),
                "images": int(same.sum()),
            }
        )
    return {
        "coverage": bound.coverage,
        "confidence": bound.confidence,
        "stages": stages,
        **tested.to_json(),
        "top1": accuracy(b, labels),
        "top1_reference": accuracy(a, labels),
        "logit_sqnr_db": sqnr_db(a, b),
        "logit_error": [float(np.median(error[mask])) if mask.any() else None for mask in (~moved, moved)],
        "other_class": [int(other[mask].sum()) for mask in (~moved, moved)],
    }


def int8_share(checkpoint: Checkpoint, policy: QuantPolicy) -> float:
    """Returns the share of the multiply-accumulates of the linear layers in blocks that run in INT8; one image is run."""
    import torch
    from torch import nn

    names = set(quantized_names(checkpoint.model, policy))
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Linear, _: Any, out: Any) -> None:
            counts[name] = out[0, ..., 0].numel() * module.in_features * module.out_features

        return hook

    layers = [
        (n, m) for n, m in checkpoint.model.named_modules() if isinstance(m, nn.Linear) and n.startswith("blocks.")
    ]
    handles = [module.register_forward_hook(count(name)) for name, module in layers]
    side = checkpoint.info.model.image_size
    with torch.no_grad():
        checkpoint.model(torch.zeros(1, 3, side, side))
    for handle in handles:
        handle.remove()
    return sum(value for name, value in counts.items() if name in names) / sum(counts.values())


def run(out: Path, plans: Sequence[Plan] = PLANS) -> dict[str, Any]:
    """Runs what is missing; returns the figures of every budget as plain JSON values."""
    builtin = load_checkpoint(BUILTIN)
    rows: list[dict[str, Any]] = []
    for plan in plans:
        folder = out / plan.budget
        budget = TokenBudget.parse(plan.budget.replace("-", ","), builtin.info.model.num_patches)
        checkpoint = _at(builtin, budget, folder / "checkpoint")
        found = artifacts(checkpoint, folder, plan.variants)
        calls = {name: runner(artifact) for name, artifact in found.items()}
        parts = folder / ("parts" if plan.variants == VARIANTS else "parts-further")
        val = outputs_of(calls, checkpoint, "val", plan.bound_images, parts)
        test = outputs_of(calls, checkpoint, "test", plan.test_images, parts)
        paired = {BATCH: np.concatenate([val["seconds"], test["seconds"]])}
        paired[1] = single_seconds(calls, checkpoint, parts / "single.npz")
        for number, name in enumerate(plan.variants, start=1):
            pair = [(side(outputs, REFERENCE), side(outputs, name)) for outputs in (val, test)]
            rows.append(
                {
                    "budget": plan.budget,
                    "variant": name,
                    "int8_share": int8_share(checkpoint, _policy(name, checkpoint)),
                    "speedup": {n: float(np.median(s[:, 0] / s[:, number])) for n, s in paired.items()},
                    "against_plain": {n: float(np.median(s[:, number] / s[:, 1])) for n, s in paired.items()},
                    **evaluate((pair[0][0], pair[1][0]), (pair[0][1], pair[1][1]), test["labels"]),
                }
            )
    return {"rows": rows, "machine": machine()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes certificates.json and the page; exit code 1 if a certified image flips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="RUN", help="output folder")
    parser.add_argument("page", type=Path, nargs="?", metavar="PAGE", help="Markdown page")
    parser.add_argument("--images", type=int, metavar="N", help="test images at most")
    args = parser.parse_args(arguments)
    require_writable_folder(args.out)
    plans: Sequence[Plan] = PLANS
    if args.images is not None:
        plans = tuple(Plan(p.budget, min(p.bound_images, args.images), min(p.test_images, args.images)) for p in PLANS)
    data = run(args.out, plans)
    write_json(args.out / "certificates.json", data)
    show(page(data, BATCH), args.page)
    return 1 if any(row["broken"] for row in data["rows"]) else 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
