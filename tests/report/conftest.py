"""Result files as the verbs write them, and a browser that opens pages: Chromium, spoken to over a pipe."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.files import canonical_json
from gft_edge.report.pages.bench import write_bench_page
from gft_edge.report.pages.controls import write_controls
from gft_edge.report.pages.front import write_front
from gft_edge.report.pages.run import write_page
from gft_edge.report.pages.sensitivity import write_sensitivity_page
from gft_edge.storage.seals import sealed

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT = 60.0
LONG = "a class whose name goes on and on without any end in sight"
LABELS = ["bolt", "$\\frac{$ nut", "<script>alert(1)</script>", "\u87ba\u4e1d", "\u0645\u0633\u0645\u0627\u0631", LONG]


def executable() -> str | None:
    """Path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One headless browser with one page.

    Attributes:
        problems: texts of console errors, uncaught exceptions and failed loads since the last :meth:`open`.
    """

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process, self._write, self._read = process, write, read
        self._buffer = b""
        self._numbers = itertools.count(1)
        self._session = ""
        self.problems: list[str] = []
        self._events: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Loads a page of that width in CSS pixels and waits until it is loaded."""
        self.problems, self._events = [], []
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + TIMEOUT
        while "Page.loadEventFired" not in self._events:
            self._receive(end)

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Writes a PNG of the whole page."""
        height = min(int(self.evaluate("document.documentElement.scrollHeight")), 16000)
        width = int(self.evaluate("innerWidth"))
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(found["data"]))

    def _call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + TIMEOUT
        while True:
            answer = self._receive(end)
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._read, 1 << 16) if ready else b""
            if not part:
                raise AssertionError("Chromium does not answer")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Network.requestWillBeSent" and params["request"]["url"].startswith(("http:", "https:", "ws")):
            self.problems.append(f"asks the network for {params['request']['url']}")


@contextlib.contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """Starts Chromium without a display and ends it with the block.

    Args:
        profile: empty folder for what it writes.
    """
    program = executable()
    assert program is not None
    theirs_read, write = os.pipe()
    read, theirs_write = os.pipe()
    flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions"
    command = (
        f'exec "$0" {flags} --remote-debugging-pipe --user-data-dir="$1" about:blank 3<&{theirs_read} 4>&{theirs_write}'
    )
    process = subprocess.Popen(
        ["/bin/bash", "-c", command, program, str(profile)],
        pass_fds=(theirs_read, theirs_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_read)
    os.close(theirs_write)
    try:
        yield Browser(process, write, read)
    finally:
        os.close(write)
        os.close(read)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """One browser for all tests; they are skipped where none is installed."""
    if executable() is None:
        pytest.skip("no Chromium in PATH (Debian: apt-get install chromium), so pages cannot be looked at")
    with started(tmp_path_factory.mktemp("chromium")) as found:
        yield found


def evaluation(
    labels: list[str], name: str = "runs/art", right: int = 33, each: int = 10, **more: Any
) -> dict[str, Any]:
    """What ``evaluate --out`` writes for an artefact; wrong answers go to the next class, most of the last class's."""
    size = len(labels)
    wrong = each * size - right
    missed = [0] * size
    for number in range(wrong):
        missed[-1 - (number // each) % size] += 1
    confusion = [[0] * size for _ in labels]
    for row in range(size):
        confusion[row][row] = each - missed[row]
        confusion[row][(row + 1) % size] += missed[row]
    images = each * size
    rows = [
        {"image": f"parts/test/{labels[-1]}/{n}.png", "truth": labels[-1], "predicted": labels[0], "probability": 0.5}
        for n in range(min(wrong, 24))
    ]
    top1 = right / images
    result = {
        "budget": "12-6",
        "precision": "fp32",
        "right": right,
        "top1": top1,
        "interval": [max(0.0, top1 - 0.1), min(1.0, top1 + 0.1)],
        "top5": None if size < 6 else 1.0,
        "confusion": confusion,
        "per_class": [{"label": c, "right": confusion[n][n], "count": each} for n, c in enumerate(labels)],
        "wrong": [{**row, "picture": f"wrong/{n:03d}.png"} for n, row in enumerate(rows)],
        "wrong_total": wrong,
    }
    head = {"model": name, "backend": "onnxruntime", "data": "parts", "split": "test", "images": images}
    return {**head, "unreadable_images": 0, "labels": labels, "results": [result], **more}


def bench(*names: str, **row: Any) -> dict[str, Any]:
    """What ``bench --out`` writes: the first artefact is the baseline, each next one is faster by a millisecond."""
    results = []
    for place, name in enumerate(names):
        p50 = 8.0 - place
        results.append(
            {
                "name": name,
                "backend": "onnxruntime",
                "precision": "fp32",
                "budget": "12-6",
                "batch": 1,
                "threads": 1,
                "p50_ms": p50,
                "p90_ms": p50 + 0.2,
                "p95_ms": p50 + 0.3,
                "p99_ms": p50 + 0.4,
                "variation": 0.01,
                "verdict": "stable",
                "rounds_ms": [[p50 - 0.1, p50], [p50, p50 + 0.1], [p50, p50]],
                "baseline": names[0],
                "speedup": 8.0 / p50,
                "speedup_interval": [8.0 / p50 - 0.02, 8.0 / p50 + 0.02],
                "throughput": {"images_per_s": 1000 / p50, "in_flight": 2},
                "process": {"load_ms": 40, "cold_start_ms": 190, "peak_rss_bytes": 9e7},
                "stages": {s: {"p50_ms": 1.0} for s in ("preprocessing", "inference", "postprocessing", "end_to_end")},
                "energy": {"refused": "no power source"},
                "protocol": {"rounds": 3, "runs_per_round": 2, "warmup_seconds": 0.5},
                **row,
            }
        )
    return {"schema": 2, "source": "bench", "machine": {"cpu": {"model": "Test CPU"}}, "results": results}


def predictions(labels: list[str], name: str = "runs/art") -> dict[str, Any]:
    """What ``predict --maps --out`` writes."""
    rows = [
        {"image": f"photos/{n}.png", "label": label, "probability": 0.75, "map": f"runs/maps/{n}.png"}
        for n, label in enumerate(labels)
    ]
    return {"artifact": name, "predictions": rows, "unreadable": []}


def sensitivity(layers: int = 30) -> dict[str, Any]:
    """What ``sensitivity --min-sqnr`` writes."""
    effect = {"sqnr_db": 31.5, "lost_points": 0.16, "top1": 0.9, "jaccard": [0.991, 0.984, 0.934]}
    names = [f"blocks.{n // 4}.{('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')[n % 4]}" for n in range(layers)]
    seen = {"sqnr_db": 30.25, "lost_points": 0.2, "paired": {"interval": [-0.004, 0.002]}}
    tries = [
        {"int8": names[:20], "sqnr_db": 30.5, "lost_points": 0.1, "saved_ms": 0.8, "holds": True, "observed": seen}
    ]
    rows = [
        {"name": n, "shape": "145 x 128 x 384", "high_ms": 0.2, "int8_ms": 0.1, "only": effect, "all_but": effect}
        for n in names
    ]
    return {
        "schema": 1,
        "checkpoint": "0123456789abcdef",
        "budget": "12-6",
        "ranges": {"method": "max", "images": 32},
        "evaluation": {"data": "parts", "split": "val", "images": 64},
        "top1": 0.91,
        "everything": effect,
        "layers": rows,
        "times": {"source": "ONNX Runtime, 1 thread(s)", "high": "FP32", "kind": "measured"},
        "search": {"limit": {"text": "logit SQNR of at least 30 dB"}, "best": 0, "tries": tries},
    }


def controls(model: str = "runs/ckpt", budgets: tuple[str, ...] = ("12-6", "4-4")) -> dict[str, Any]:
    """What ``controls --out`` writes."""

    def accuracy(right: list[int], **more: Any) -> dict[str, Any]:
        top1 = sum(right) / len(right) / 40
        return {"right": right, "top1": top1, "interval": [max(top1 - 0.1, 0), min(top1 + 0.1, 1)], **more}

    rules = {"most important": [36], "random": [30, 31, 29], "least important": [12], "static": [28], "oracle": [37]}
    rows = [accuracy(right, rule=rule, recall=0.5) for rule, right in rules.items()]
    rows.append(accuracy([20], rule="lower resolution", recall=None))
    tests = [
        {"against": rule, "difference": 0.15, "interval": [0.05, 0.25], "p": [0.012, 0.031, 0.004]}
        for rule in ("random", "static", "least important")
    ]
    return {
        "model": model,
        "backend": "torch",
        "precision": "fp32",
        "data": "parts",
        "split": "test",
        "images": 40,
        "unreadable_images": 0,
        "seeds": [0, 1, 2],
        "static": {"data": "parts", "split": "train", "images": 64},
        "has_marks": True,
        "full": {"budget": "16-16", "macs": 900_000, "right": 38, "top1": 0.95, "interval": [0.83, 0.99]},
        "budgets": [
            {
                "budget": budget,
                "macs": 500_000 - 100_000 * number,
                "rules": rows,
                "tests": tests,
                "gain": {"value": 0.86, "interval": [0.4, 1.2]},
                "lower_resolution": {"image_size": 24, "macs": 520_000},
                "verdict": f"On these 40 images the selection at {budget} is worth 15.0 points (5.0 to 25.0).",
            }
            for number, budget in enumerate(budgets)
        ],
    }


def front() -> dict[str, Any]:
    """What ``search --out`` writes."""

    def point(budget: str, gmac: float, top1: float, **flags: bool) -> dict[str, Any]:
        cost = {"ms": None, "gmac": gmac, "mj": None}
        figures = {
            "top1": top1,
            "interval": [top1 - 0.05, min(top1 + 0.05, 1)],
            "right": round(40 * top1),
            "images": 40,
        }
        marks = {"is_within": True, "is_full_set": True, "is_front": False, "is_reference": False, **flags}
        return {"checkpoint": 0, "precision": "fp32", "budget": budget, **cost, **figures, **marks}

    return {
        "checkpoints": [{"name": "runs/ckpt", "sha256": "ab" * 32, "image_size": 32, "budget": "12-6"}],
        "data": "parts",
        "split": "val",
        "images": 40,
        "subset": 20,
        "cost": {"axis": "gmac", "kind": "macs", "source": "multiply-accumulates, no latency"},
        "limits": {"gmac": 2.0},
        "min_accuracy": None,
        "candidates": [{"checkpoint": 0, "precision": "fp32", "budgets": 6, "within": 5, "is_complete": True}],
        "points": [
            point("7-7", 0.5, 0.8, is_front=True),
            point("15-7", 1.0, 0.75),
            point("16-16", 1.5, 0.9, is_front=True, is_reference=True),
        ],
        "recommended": {"point": 0, "why": "7-7 is enough", "commands": ["gft-edge export ckpt"], "free_tokens": None},
    }


def verification(name: str = "art", verdict: str = "pass") -> dict[str, Any]:
    """What ``verify --json`` prints."""
    comparison = {
        "reference": "torch fp32",
        "candidate": "onnxruntime fp32",
        "images": 32,
        "logit_sqnr_db": 130.5,
        "max_relative_error": 3e-7,
        "top1_agreement": 1.0,
        "stages": [{"jaccard": 1.0}],
    }
    undecided = ["top-1 may change by more than the limit"] if verdict == "inconclusive" else []
    return {
        "artifact": name,
        "source": "32 test images of parts",
        "verdict": verdict,
        "passed": verdict != "fail",
        "images_needed": 299 if undecided else None,
        "comparisons": [comparison],
        "failures": ["logits differ by 0.3"] if verdict == "fail" else [],
        "undecided": undecided,
        "places": [],
    }


def picture(path: Path, size: tuple[int, int]) -> None:
    """Writes a grey PNG of a width and height."""
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def checkpoint(labels: list[str], start: str = "", steps: int = 30) -> dict[str, Any]:
    """What config.json of a checkpoint says, of the smallest model."""
    model = preset(
        "gft_typeface",
        image_size=32,
        num_classes=len(labels),
        embed_dim=32,
        depth=3,
        num_heads=2,
        stages=(1, 2),
        budget=TokenBudget((12, 6), 16),
    )
    recipe = {"model": {}, "data": {"name": "parts"}, "train": {"init": start}}
    return {
        "schema": 1,
        "model": model.to_json(),
        "labels": labels,
        "preprocess": {},
        "metrics": {"steps": steps},
        "provenance": {"recipe": recipe},
        "quantization": None,
    }


@pytest.fixture(scope="session")
def samples() -> dict[str, Callable[..., Any]]:
    """Makers of result files, by the verb that writes such."""
    return {
        "evaluate": evaluation,
        "bench": bench,
        "predict": predictions,
        "sensitivity": sensitivity,
        "controls": controls,
        "search": front,
        "verify": verification,
        "checkpoint": checkpoint,
        "picture": picture,
    }


def text_of(content: Any) -> str:
    """A result as its verb writes it: bench files are sealed."""
    if isinstance(content, dict) and "schema" in content and "results" in content:
        with contextlib.suppress(TypeError, ValueError):
            return canonical_json(sealed(content))
    return json.dumps(content)


@pytest.fixture
def laid(tmp_path) -> Callable[..., Path]:
    """Writes result files by their path into a run's folder called ``mine``; an integer is a picture of that size."""

    def lay(files: dict[str, Any]) -> Path:
        run = tmp_path / "mine"
        run.mkdir(exist_ok=True)
        for name, content in files.items():
            path = run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                Image.fromarray(np.full((content, content, 3), 90, np.uint8)).save(path)
            else:
                path.write_text(content if isinstance(content, str) else text_of(content), encoding="utf-8")
        return run

    return lay


@pytest.fixture(scope="session")
def pages(samples, tmp_path_factory) -> dict[str, Path]:
    """A page of each kind, of files that hold everything, with names that are hard to lay out. Not to be changed."""
    run = tmp_path_factory.mktemp("pages") / "mine"
    made = {
        "one.json": samples["evaluate"](LABELS, "runs/art-a", right=50),
        "two.json": samples["evaluate"](LABELS, "runs/art-b", right=40),
        "bench.json": samples["bench"]("art-a", "art-b", "an artefact of a rather long name"),
        "guesses.json": samples["predict"](LABELS[:2], "runs/art-b"),
        "sens/sensitivity.json": samples["sensitivity"](12),
        "selection/controls.json": samples["controls"](),
        "verify.json": samples["verify"]("art-b", "inconclusive"),
        "model/config.json": samples["checkpoint"](LABELS, "builtin"),
        "run.json": {
            "small": True,
            "seconds": 12.5,
            "steps": [{"title": "train", "command": "gft-edge train --config " + "long/" * 60, "seconds": 1.0}],
            "machine": {"cpu": {"model": "Test CPU", "cores": 2}, "system": "Linux", "nvidia_driver": False},
            "versions": {"numpy": "2", "torch": None},
        },
        "broken.json": "{",
    }
    made["three.json"] = samples["evaluate"]([f"class {n:02d}" for n in range(50)], "runs/art-c", right=400)
    made["bench.json"]["results"][1] |= {"verdict": "unstable", "variation": 0.05}
    for name, content in made.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        whole = sealed(content) if name == "bench.json" else content
        (run / name).write_text(whole if isinstance(whole, str) else canonical_json(whole))
    rows = "".join(f'{{"step": {n}, "loss": {2 / n}, "train_top1": 0.5, "val_top1_full": 0.6}}\n' for n in range(1, 40))
    (run / "model/log.jsonl").write_text(rows)
    for name, size in (("maps/0.png", (992, 274)), ("maps/1.png", (992, 274)), ("wrong/000.png", (96, 96))):
        (run / name).parent.mkdir(exist_ok=True)
        samples["picture"](run / name, size)
    other = {**samples["bench"]("art-a", "art-b"), "machine": {"board": "Orin"}}
    for row in other["results"]:
        row["energy"] = {"mj_per_image": 42.5, "net_mj_per_image": 21.0, "refused": None}
    (run.parent / "orin.json").write_text(canonical_json(sealed(other)))
    write_controls(run.parent / "controls", samples["controls"]())
    write_front(run.parent / "front.json", samples["search"]())
    return {
        "report": write_page(run).page,
        "bench": write_bench_page([run / "bench.json"], run)[0],
        "compare": write_bench_page([run / "bench.json", run.parent / "orin.json"], run.parent / "compared")[0],
        "sensitivity": write_sensitivity_page(run / "sens"),
        "front": run.parent / "front.html",
        "controls": run.parent / "controls" / "controls.html",
    }
