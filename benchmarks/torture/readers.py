"""Defines every reader of the toolkit that accepts external files, with intact files as seeds."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gft_edge.benchmarks.torture.materials import LABELS, Materials, command

RECORDED = Path(__file__).parents[2] / "tests/recorded"
"""Logs of trtexec and tegrastats in the repository."""

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """One kind of input.

    Args:
        name: name in tables and file names.
        form: format, a key of :data:`gft_edge.benchmarks.torture.mutate.MUTATORS`.
        suffix: suffix of the files.
        seeds: intact contents.
        read: uses a file as the toolkit does.
        share: share of the inputs, relative to the other readers.
    """

    name: str
    form: str
    suffix: str
    seeds: tuple[bytes, ...]
    read: Read
    share: float = 1.0


def readers(made: Materials, scratch: Path) -> list[Reader]:
    """Returns all readers.

    Args:
        made: intact files; they stay unchanged.
        scratch: folder for copies, in which inputs replace files.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    return [
        *_artifact_readers(made, scratch),
        *_model_readers(made, scratch),
        *_run_readers(made, scratch),
        *_log_readers(made),
    ]


def _copy(source: Path, target: Path) -> Path:
    if not target.exists():
        shutil.copytree(source, target)
    return target


def _placed(file: Path, use: Callable[[], object]) -> Read:
    """Returns a function that replaces a file by the input and then calls ``use``."""

    def read(path: Path) -> object:
        shutil.copyfile(path, file)
        return use()

    return read


def _artifact_readers(made: Materials, scratch: Path) -> list[Reader]:
    from gft_edge.export.verify.artifact_alone import verify_golden
    from gft_edge.manifest import GOLDEN, MANIFEST, load_artifact, register_files

    whole = made.int8_artifact / MANIFEST
    changed, golden = _copy(made.int8_artifact, scratch / "manifest"), _copy(made.artifact, scratch / "golden")
    intact = (golden / MANIFEST).read_bytes()
    family = _copy(made.family, scratch / "family")

    def use_golden() -> object:
        (golden / MANIFEST).write_bytes(intact)
        return verify_golden(register_files(load_artifact(golden), [GOLDEN]))

    def use_manifest(folder: Path) -> Callable[[], object]:
        return lambda: (command("predict", folder, made.image), command("verify", folder), load_artifact(folder))

    pixels = scratch / "pixels"
    pixels.mkdir(exist_ok=True)
    shutil.copyfile(made.image, pixels / "a.png")
    npy = io.BytesIO()
    np.save(npy, np.zeros((3, 32, 32), np.float32))
    found = [
        Reader("graph", "onnx", ".onnx", _graphs(made), lambda path: command("lint", path), 2.5),
        Reader(
            "manifest",
            "sealed",
            ".json",
            (whole.read_bytes(),),
            _placed(changed / MANIFEST, use_manifest(changed)),
            0.6,
        ),
        Reader(
            "family",
            "sealed",
            ".json",
            ((made.family / MANIFEST).read_bytes(),),
            _placed(family / MANIFEST, use_manifest(family)),
            0.4,
        ),
        Reader(
            "golden", "npz", ".npz", ((made.artifact / GOLDEN).read_bytes(),), _placed(golden / GOLDEN, use_golden), 0.4
        ),
        Reader(
            "pixels",
            "bytes",
            ".npy",
            (npy.getvalue(),),
            _placed(pixels / "a.npy", lambda: command("verify", made.int8_artifact, "--pixels", pixels)),
            0.7,
        ),
    ]
    if key := made.key():
        found.append(_engine_record(golden, intact, key))
    return found


def _engine_record(artifact: Path, manifest: bytes, key: str) -> Reader:
    from gft_edge.manifest import MANIFEST, load_artifact, register_files
    from gft_edge.runtime.backends.engine_files import EngineHost, check_engine

    file = artifact / "engines" / f"{key}.json"

    def use() -> object:
        (artifact / MANIFEST).write_bytes(manifest)
        loaded = register_files(load_artifact(artifact), [f"engines/{key}.json"])
        return check_engine(loaded, key, EngineHost("tensorrt_rtx", key[3:].partition("_")[0], "8.6"))

    return Reader("engine", "json", ".json", (file.read_bytes(),), _placed(file, use), 0.5)


def _graphs(made: Materials) -> tuple[bytes, ...]:
    return tuple((folder / "model.onnx").read_bytes() for folder in (made.int8_artifact, made.artifact, made.family))


def _model_readers(made: Materials, scratch: Path) -> list[Reader]:
    from gft_edge.calibration.cache import read_cache
    from gft_edge.calibration.images import CalibrationSet
    from gft_edge.calibration.observing.collect import Collector
    from gft_edge.calibration.ranges import read_ranges
    from gft_edge.checkpoint import load_checkpoint, read_weights
    from gft_edge.config.recipe import load_recipe
    from gft_edge.data.images import read_image
    from gft_edge.files import read_json
    from gft_edge.quant.policy import read_policy

    config, weights = _copy(made.quantized, scratch / "config"), _copy(made.checkpoint, scratch / "weights")
    cache = made.artifact / "calibration/tensorrt-8.6.1-entropy2.cache"
    caches = scratch / "caches"
    caches.mkdir(exist_ok=True)
    for name in (cache.name, f"{cache.name}.json"):
        shutil.copyfile(cache.with_name(name), caches / name)
    record = caches / f"{cache.name}.json"
    names = ["blocks.0.mlp.fc1"]
    Collector(names, "max", 99.99).save(scratch / "state.safetensors", {"model": "m"})
    recipe = made.recipe.read_bytes()
    as_json = canonical(load_recipe(made.recipe).to_json())
    policy = canonical(read_policy(made.policy).to_json())

    def use_policy(path: Path) -> object:
        read = read_policy(path)
        return [read.precision_of(name) for name in ("blocks.0.mlp.fc1", "blocks.0.attn.attend", "head")]

    def use_settings(path: Path) -> object:
        lines = path.read_bytes().decode("utf-8", "surrogateescape").splitlines()
        return load_recipe(made.recipe, lines)

    out = scratch / "imported"

    def use_pth(path: Path) -> object:
        shutil.rmtree(out, ignore_errors=True)
        return command("import-published", path, "--out", out)

    def card(path: Path) -> object:
        return CalibrationSet.from_json(read_json(path, "card"), str(path)).describe()

    return [
        Reader(
            "config",
            "sealed",
            ".json",
            tuple((folder / "config.json").read_bytes() for folder in (made.quantized, made.checkpoint)),
            _placed(config / "config.json", lambda: load_checkpoint(config)),
            1.5,
        ),
        Reader(
            "safetensors",
            "safetensors",
            ".safetensors",
            ((made.checkpoint / "model.safetensors").read_bytes(),),
            _placed(weights / "model.safetensors", lambda: read_weights(weights)),
            1,
        ),
        Reader("pth", "zip", ".pth", _pickled(), use_pth, 0.7),
        Reader("recipe", "text", ".toml", (recipe,), load_recipe),
        Reader("recipe-json", "json", ".json", (as_json,), load_recipe),
        Reader("set", "text", ".txt", (b"train.lr=0.1\ndata.name=x\nmodel.stages=[1, 2]\n",), use_settings, 0.7),
        Reader("policy", "text", ".toml", (made.policy.read_bytes(),), use_policy),
        Reader("policy-json", "json", ".json", (policy,), use_policy),
        Reader(
            "ranges",
            "json",
            ".json",
            ((made.ranges / "ranges.json").read_bytes(),),
            lambda path: read_ranges(path).to_json(),
        ),
        Reader("card", "json", ".json", ((made.ranges / "card.json").read_bytes(),), card),
        Reader(
            "cache",
            "text",
            ".cache",
            (cache.read_bytes(),),
            _placed(caches / cache.name, lambda: read_cache(caches / cache.name)),
        ),
        Reader(
            "cache-record",
            "json",
            ".json",
            (record.read_bytes(),),
            _placed(record, lambda: read_cache(caches / cache.name)),
        ),
        Reader(
            "calibration-state",
            "safetensors",
            ".safetensors",
            ((scratch / "state.safetensors").read_bytes(),),
            lambda path: Collector(names, "max", 99.99).restore(path, {"model": "m"}),
            0.7,
        ),
        *(
            Reader(f"image-{name}", "bytes", f".{name}", seeds, read_image, 3 / 16)
            for name, seeds in _pictures().items()
        ),
    ]


def canonical(value: object) -> bytes:
    """Returns JSON as the toolkit writes it."""
    from gft_edge.files import canonical_json

    return canonical_json(value).encode()


def _pickled() -> tuple[bytes, ...]:
    weights = {"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2), "head.bias": torch.zeros(4), "n": torch.tensor(1)}
    found = []
    for state in (weights, {"model": weights, "epoch": 3}):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(state, file, _use_new_zipfile_serialization=zipped)
            found.append(file.getvalue())
    return tuple(content for content in found if content.startswith(b"PK"))


def _pictures() -> dict[str, tuple[bytes, ...]]:
    """Returns small images in the formats that this Pillow can write."""
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (24, 32), dtype=np.uint16))
    modes = [
        color,
        color.convert("L"),
        color.convert("P"),
        color.convert("RGBA"),
        color.convert("1"),
        color.convert("CMYK"),
        deep,
    ]
    names = {
        "png": "PNG",
        "jpg": "JPEG",
        "gif": "GIF",
        "bmp": "BMP",
        "webp": "WEBP",
        "tif": "TIFF",
        "ppm": "PPM",
        "ico": "ICO",
        "tga": "TGA",
        "pcx": "PCX",
        "dds": "DDS",
        "avif": "AVIF",
        "jp2": "JPEG2000",
        "sgi": "SGI",
        "im": "IM",
        "icns": "ICNS",
    }
    found: dict[str, tuple[bytes, ...]] = {}
    for suffix, kind in names.items():
        written = []
        for mode in modes:
            file = io.BytesIO()
            try:
                mode.save(file, kind)
            except (OSError, KeyError, ValueError):  # the format lacks this pixel type, or Pillow lacks the format
                continue
            written.append(file.getvalue())
        if written:
            found[suffix] = tuple(written)
    return found


def _run_readers(made: Materials, scratch: Path) -> list[Reader]:
    from gft_edge.benchmarks.measuring.bench_files import machine_label, merge, read_bench

    names = ("evaluate-torch.json", "predictions.json", "run.json", "checkpoint/log.jsonl", "bench.json")
    found = []
    for name in names:
        content = (made.run / name).read_bytes()
        title = f"report-{Path(name).stem.partition('-')[0]}"
        run = scratch / title
        _copy(made.int8_artifact, run / made.int8_artifact.name)
        _copy(made.checkpoint, run / "checkpoint")
        form = "text" if name.endswith(".jsonl") else "json"
        read = _placed(run / name, lambda run=run: command("report", run))  # type: ignore[misc]
        found.append(Reader(title, form, Path(name).suffix, (content,), read, 0.05))
    bench = made.bench.read_bytes()
    pages = scratch / "pages"
    return [
        *found,
        Reader("bench", "json", ".json", (bench,), lambda path: [machine_label(read_bench(path)), merge([path])]),
        Reader("bench-page", "json", ".json", (bench,), lambda path: command("report", path, "--out", pages), 0.05),
    ]


def _log_readers(made: Materials) -> list[Reader]:
    logs, boards = RECORDED / "trtexec", RECORDED / "tegrastats"
    log = logs / "orin-10.3.log"

    def seeds(folder: Path, pattern: str) -> tuple[bytes, ...]:
        return tuple(file.read_bytes() for file in sorted(folder.glob(pattern)) if file.stat().st_size < 12_000)

    def ingest(flag: str) -> Read:
        return lambda path: command("bench", "--trtexec-log", log, "--power", "none", flag, path)

    return [
        Reader(
            "trtexec",
            "text",
            ".log",
            seeds(logs, "*.log"),
            lambda path: command("bench", "--trtexec-log", path, "--power", "none"),
            1.5,
        ),
        Reader(
            "tegrastats",
            "text",
            ".txt",
            seeds(boards, "*"),
            lambda path: command("bench", "--trtexec-log", log, "--power", path),
            1.5,
        ),
        Reader("layers", "json", ".json", seeds(logs, "layers*.json"), ingest("--layers")),
        Reader("profile", "json", ".json", seeds(logs, "profile.json"), ingest("--profile")),
        Reader("times", "json", ".json", (_times(logs),), ingest("--times")),
    ]


def _times(logs: Path) -> bytes:
    import json

    return json.dumps(json.loads((logs / "times.json").read_bytes())[:12]).encode()


__all__ = ["LABELS", "Reader", "readers"]
