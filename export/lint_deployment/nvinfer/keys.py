"""The keys that Gst-nvinfer reads, with the values that it takes.

Source: gstnvinfer_property_parser.h and .cpp of DeepStream 6.4 to 9.2, and the table of the Gst-nvinfer page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from gft_edge.errors import ConfigError
from gft_edge.export.deploy.deepstream.nvinfer_config import NvinferConfig


@dataclass(frozen=True)
class Kind:
    """The values that a key takes.

    Args:
        words: for messages.
        accepts: whether the key of a configuration has such a value; may raise :class:`ConfigError` instead.
    """

    words: str
    accepts: Callable[[NvinferConfig, str], bool]


def _whole(low: int, high: int | None = None) -> Kind:
    words = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    return Kind(
        words, lambda config, key: low <= config.integer(key, 0) and (high is None or config.integer(key, 0) <= high)
    )


def _dims(config: NvinferConfig, key: str) -> bool:
    return len(config.numbers(key)) == 3 and all(value >= 1 and value == int(value) for value in config.numbers(key))


def _ids(config: NvinferConfig, key: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(;-?\d+)*;?\s*", config.text(key), re.ASCII))


FLAG = Kind("0 or 1", lambda config, key: config.flag(key) in (True, False))
NUMBER = Kind("a number above 0", lambda config, key: config.number(key, 1) > 0)
THRESHOLD = Kind("a number from 0", lambda config, key: config.number(key, 0) >= 0)
OFFSETS = Kind("three numbers, one per channel, separated by ;", lambda config, key: len(config.numbers(key)) == 3)
DIMS = Kind("channels;height;width", _dims)
IDS = Kind("whole numbers separated by ;", _ids)
TEXT = Kind("text", lambda config, key: bool(config.text(key).strip()))

FILES = ("onnx-file", "labelfile-path", "mean-file", "int8-calib-file", "custom-lib-path")
"""Keys whose files must be there; an engine is made where it is not."""

_TEXTS = (
    "output-blob-names",
    "parse-bbox-func-name",
    "parse-bbox-instance-mask-func-name",
    "engine-create-func-name",
    "parse-classifier-func-name",
    "custom-network-config",
    "classifier-type",
    "output-io-formats",
    "layer-device-precision",
    "ip-tensor-file",
    "op-tensor-file",
    "model-engine-file",
)
_FLAGS = (
    "maintain-aspect-ratio",
    "symmetric-padding",
    "classifier-async-mode",
    "output-tensor-meta",
    "enable-dla",
    "input-tensor-from-meta",
    "output-instance-mask",
    "force-implicit-batch-dim",
    "enable-dbscan",
    "disable-output-host-copy",
    "auto-inc-mem",
    "dump-input-tensor",
    "dump-output-tensor",
    "overwrite-input-tensor",
    "overwrite-output-tensor",
    "crop-objects-to-roi-boundary",
)
_COUNTS = (
    "input-object-min-width",
    "input-object-min-height",
    "input-object-max-width",
    "input-object-max-height",
    "interval",
    "gpu-id",
    "gie-unique-id",
    "secondary-reinfer-interval",
    "use-dla-core",
    "workspace-size",
    "num-detected-classes",
)

KEYS = {
    **dict.fromkeys((*FILES, *_TEXTS), TEXT),
    **dict.fromkeys(_FLAGS, FLAG),
    **dict.fromkeys(_COUNTS, _whole(0)),
    **dict.fromkeys(("operate-on-class-ids", "filter-out-class-ids"), IDS),
    "operate-on-gie-id": _whole(-1),
    "batch-size": _whole(1, 1024),
    "tensor-meta-pool-size": _whole(1),
    "network-mode": _whole(0, 3),
    "process-mode": _whole(1, 2),
    "network-type": Kind(
        "0 detector, 1 classifier, 2 segmentation, 3 instance segmentation or 100 other",
        lambda config, key: config.integer(key, 0) in (0, 1, 2, 3, 100),
    ),
    "network-input-order": _whole(0, 2),
    "model-color-format": _whole(0, 2),
    "scaling-filter": _whole(0, 6),
    "scaling-compute-hw": _whole(0, 2),
    "cluster-mode": _whole(0, 4),
    "segmentation-output-order": _whole(0, 1),
    "net-scale-factor": NUMBER,
    "max-gpu-mem-per": NUMBER,
    "classifier-threshold": THRESHOLD,
    "segmentation-threshold": THRESHOLD,
    "offsets": OFFSETS,
    "infer-dims": DIMS,
}
"""Kind of value by key of the group [property]."""

LEGACY = {
    "is-classifier": "network-type=1",
    "input-dims": "infer-dims=channels;height;width",
    "uff-input-dims": "infer-dims=channels;height;width",
    "uff-input-order": "network-input-order",
    "uff-input-blob-name": "onnx-file",
    "uff-file": "onnx-file",
    "model-file": "onnx-file",
    "proto-file": "onnx-file",
    "tlt-encoded-model": "onnx-file",
    "tlt-model-key": "onnx-file",
    "parse-func": "network-type",
    "parse-bbox-func": "parse-bbox-func-name",
}
"""Keys of older versions, with what replaces them."""

GROUPS = ("property", "class-attrs-all", "user-configs")


def problem_of_value(config: NvinferConfig, key: str) -> str | None:
    """Returns what a key takes if its value is another, else None."""
    kind = KEYS[key]
    try:
        return None if kind.accepts(config, key) else kind.words
    except ConfigError:
        return kind.words
