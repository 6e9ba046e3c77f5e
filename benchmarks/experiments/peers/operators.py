"""ONNX Runtime's own profile of a session, summed by operator."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

_SUFFIX = "_kernel_time"


def profile(
    model: bytes, disabled: list[str], images: npt.NDArray[np.float32], threads: int = 1, runs: int = 10
) -> list[dict[str, Any]]:
    """Returns the time of each operator of a graph, the largest first.

    Args:
        model: serialized ONNX.
        disabled: optimizers that are switched off, as in the measured session.
        images: input, (B, 3, H, W).
        threads: intra-op.
        runs: requests whose median is taken, after two of warm-up.

    Returns:
        operator, count, milliseconds of one request, share of the sum.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled or None
        )
        for _ in range(runs + 2):
            session.run(None, {session.get_inputs()[0].name: images})
        events = json.loads(Path(session.end_profiling()).read_text())
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            samples[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for (operator, _), durations in samples.items():
        times[operator] += float(np.median(durations[2:]))  # type: ignore[assignment]
        counts[operator] += 1
    total = sum(times.values())
    return [
        {"operator": operator, "count": counts[operator], "ms": ms, "share": ms / total}
        for operator, ms in times.most_common()
    ]
