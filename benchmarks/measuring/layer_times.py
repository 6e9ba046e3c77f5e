"""Times of a checkpoint's layers for its sensitivity: measured in ONNX Runtime, or bounded for a device."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gft_edge.benchmarks.measuring.linears import bound_times, layer_shapes, measured_times
from gft_edge.benchmarks.measuring.protocol import conditions
from gft_edge.calibration.sensitivity.study import LayerTimes, TimedLayer, TimeLayers
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import device
from gft_edge.progress import Track, silent


def layer_timer(target: str | None = None, threads: int = 1, track: Track = silent) -> TimeLayers:
    """Returns a function that times the layers of a model.

    Args:
        target: device whose roofline bounds the times; None measures them in ONNX Runtime on this machine.
        threads: of ONNX Runtime; 0 takes one per core.
        track: progress callback.

    Raises:
        ConfigError: an unknown device, or a negative number of threads.
    """
    bound = None if target is None else device(target)
    if threads < 0:
        raise ConfigError(f"threads must be 0 (one per core) or more, found {threads}")

    def time_layers(model: nn.Module, names: Sequence[str], image_size: int) -> LayerTimes:
        shapes = layer_shapes(model, names, image_size)
        times = measured_times(shapes, threads, track=track) if bound is None else bound_times(shapes, bound)
        layers = {
            name: TimedLayer(str(shape), shape.macs, times[name].high_ms, times[name].int8_ms)
            for name, shape in shapes.items()
        }
        if bound is not None:
            return LayerTimes(layers, f"roofline of {bound.title}", "FP16", "bound")
        return LayerTimes(layers, f"ONNX Runtime, {threads or 'all'} thread(s)", "FP32", "measured", conditions())

    return time_layers
