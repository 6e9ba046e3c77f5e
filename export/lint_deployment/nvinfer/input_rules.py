"""What nvinfer puts into the graph: normalisation, colour order, size, layout, resize."""

from __future__ import annotations

from collections.abc import Sequence

from gft_edge.export.lint_deployment.nvinfer.subject import NvinferSubject
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.preprocess import PreprocessSpec

_FORMULA = (
    "nvinfer computes net-scale-factor * (x - offset of the channel), with one factor for all channels (Gst-nvinfer)"
)
_EXACT = 1e-3
"""Relative error of a factor that is none: eight digits are written."""
_GREY_LEVELS = 0.51
"""Error of an offset that is none: whole numbers are often written."""
_COLORS = {"rgb": 0, "bgr": 1}


def _factor(subject: NvinferSubject) -> float:
    return subject.sound.number("net-scale-factor", 1)


def _offsets(subject: NvinferSubject) -> tuple[float, ...]:
    return subject.sound.numbers("offsets") or (0.0, 0.0, 0.0)


def _spec(subject: NvinferSubject) -> PreprocessSpec | None:
    """Returns the normalisation that nvinfer has to do; None where the graph does it, or nobody knows it."""
    if subject.manifest is None or subject.graph is None or subject.graph.takes_pixels or _from_meta(subject):
        return None
    return subject.manifest.preprocess


def _from_meta(subject: NvinferSubject) -> bool:
    return subject.sound.flag("input-tensor-from-meta")


def _errors(factor: float, spec: PreprocessSpec) -> list[float]:
    """Returns the relative error of the factor in each channel."""
    return [factor * 255 * std - 1 for std in spec.std]


def _percent(errors: Sequence[float]) -> str:
    return " / ".join(f"{100 * error:+.1f} %" for error in errors)


def _squeezes(factor: float, spec: PreprocessSpec) -> bool:
    """Returns whether the factor stands for several deviations: it is between those of the channels."""
    wanted = sorted(1 / (255 * std) for std in spec.std)
    return wanted[0] * (1 - _EXACT) <= factor <= wanted[-1] * (1 + _EXACT)


@rule(
    "DS030",
    "factor of another normalisation",
    f"{_FORMULA}; the graph expects the factors 1 / (255 std) of the manifest, or 1 where it normalises itself.",
)
def factor(subject: NvinferSubject) -> Problems:
    """Yields a factor that is not what the graph expects."""
    if subject.graph is None or _from_meta(subject):
        return
    value, line = _factor(subject), subject.line("net-scale-factor")
    found = f"is {value:g}" if subject.has("net-scale-factor") else "is missing, which is 1"
    if subject.graph.takes_pixels:
        if abs(value - 1) > _EXACT:
            message = f"{found}; the graph takes 0 to 255 and normalises inside, so images would be normalised twice"
            yield Problem("net-scale-factor", message, "net-scale-factor=1", line)
    elif (spec := _spec(subject)) and not _squeezes(value, spec):
        best = 1 / (255 * sum(spec.std) / 3)
        message = f"{found}; off by {_percent(_errors(value, spec))} in the three channels"
        yield Problem(
            "net-scale-factor", message, f"net-scale-factor={best:.8g}, or export with --input float255", line
        )


@rule(
    "DS031",
    "one factor for three deviations",
    f"{_FORMULA}; three deviations cannot be written (a common compromise for ImageNet: 0.01735, +1.3 / -0.9 / -0.4 %).",
    "warning",
)
def squeezed(subject: NvinferSubject) -> Problems:
    """Yields a factor that stands for several deviations."""
    spec, value = _spec(subject), _factor(subject)
    if spec is None or not _squeezes(value, spec):
        return
    errors = _errors(value, spec)
    if max(map(abs, errors)) > _EXACT:
        message = f"is {value:g} for all channels; their contrast is off by {_percent(errors)}"
        yield Problem(
            "net-scale-factor",
            message,
            "export with --input float255 and net-scale-factor=1",
            subject.line("net-scale-factor"),
        )


@rule(
    "DS032",
    "offsets of another normalisation",
    f"{_FORMULA}; the offsets are 255 * mean in the network's order of channels.",
)
def offsets(subject: NvinferSubject) -> Problems:
    """Yields offsets that are not the means that the graph expects."""
    if subject.graph is None or _from_meta(subject):
        return
    spec, values, line = _spec(subject), _offsets(subject), subject.line("offsets")
    found = (
        f"are {';'.join(f'{value:g}' for value in values)}" if subject.has("offsets") else "are missing, which is 0;0;0"
    )
    if subject.graph.takes_pixels:
        if any(abs(value) > _EXACT for value in values):
            message = f"{found}; the graph takes 0 to 255 and subtracts the means inside"
            yield Problem("offsets", message, "no offsets", line)
    elif spec is not None:
        wanted = [255 * mean for mean in spec.mean]
        if _differ(values, wanted):
            cause = " (they are in reverse order)" if not _differ(values[::-1], wanted) else ""
            text = ";".join(f"{value:.6g}" for value in wanted)
            yield Problem("offsets", f"{found}, the graph expects {text}{cause}", f"offsets={text}", line)


def _differ(values: Sequence[float], wanted: Sequence[float]) -> bool:
    return any(abs(value - want) > _GREY_LEVELS for value, want in zip(values, wanted))


@rule(
    "DS033",
    "pixels that nobody normalises",
    f"{_FORMULA}; without the key it is 1, and the graph has no arithmetic on its input.",
    "warning",
)
def not_normalised(subject: NvinferSubject) -> Problems:
    """Yields a graph of unknown origin that gets 0 to 255 and does not normalise."""
    graph = subject.graph
    if graph is None or subject.manifest is not None or graph.takes_pixels or _from_meta(subject):
        return
    if _factor(subject) >= 0.5 and graph.layout:
        found = f"is {_factor(subject):g}" if subject.has("net-scale-factor") else "is missing, which is 1"
        message = f"{found}, and the graph does not normalise"
        yield Problem(
            "net-scale-factor", message, "the factor and offsets of training", subject.line("net-scale-factor")
        )


@rule(
    "DS034",
    "colour order",
    "model-color-format is the order that the network was trained with, 0 RGB (default), 1 BGR, 2 grey (Gst-nvinfer).",
)
def color(subject: NvinferSubject) -> Problems:
    """Yields another colour order than the graph's."""
    if subject.graph is None or _from_meta(subject):
        return
    value = subject.sound.integer("model-color-format", 0)
    found = f"is {value}" if subject.has("model-color-format") else "is missing, which is 0 (RGB)"
    line = subject.line("model-color-format")
    if value == 2 and subject.graph.layout:
        yield Problem("model-color-format", f"{found} (grey), the graph takes 3 channels", "model-color-format=0", line)
    elif subject.manifest is not None:
        wanted = 0 if subject.graph.takes_pixels else _COLORS[subject.manifest.preprocess.color_order]
        if value != wanted:
            message = f"{found}, the graph takes {'RGB' if wanted == 0 else 'BGR'}"
            yield Problem("model-color-format", message, f"model-color-format={wanted}", line)


@rule(
    "DS035",
    "size of the input",
    "infer-dims sets channels;height;width of the engine's input; another size than the graph's fails or is another model.",
)
def dims(subject: NvinferSubject) -> Problems:
    """Yields another size than the graph's, and none for a graph of any size."""
    graph = subject.graph
    if graph is None or graph.size is None:
        return
    if not subject.has("infer-dims"):
        if any(isinstance(side, str) for side in graph.size):
            message = f"is missing, and the graph's size is dynamic ({graph.size[0]} x {graph.size[1]})"
            yield Problem("infer-dims", message, "infer-dims=3;height;width")
        return
    found, wanted = subject.sound.numbers("infer-dims"), (3, *graph.size)
    if any(isinstance(want, int) and value != want for value, want in zip(found, wanted)):
        text = ";".join(map(str, wanted))
        message = f"is {';'.join(f'{value:g}' for value in found)}, the graph takes {text}"
        yield Problem("infer-dims", message, f"infer-dims={text}", subject.line("infer-dims"))


@rule("DS036", "order of the axes", "network-input-order=0 (default) fills NCHW, 1 fills NHWC (Gst-nvinfer).")
def layout(subject: NvinferSubject) -> Problems:
    """Yields another order of axes than the graph's."""
    if subject.graph is None or not subject.graph.layout:
        return
    value, wanted = subject.sound.integer("network-input-order", 0), 0 if subject.graph.layout == "NCHW" else 1
    if value != wanted:
        found = f"is {value}" if subject.has("network-input-order") else "is missing, which is 0 (NCHW)"
        message = f"{found}, the graph takes {subject.graph.layout}"
        yield Problem(
            "network-input-order", message, f"network-input-order={wanted}", subject.line("network-input-order")
        )


@rule(
    "DS037",
    "input that nvinfer cannot fill",
    "nvinfer fills one input, in FP32 (initInferenceInfo of nvdsinfer_context_impl.cpp).",
)
def input_type(subject: NvinferSubject) -> Problems:
    """Yields a graph with several inputs, or one of another type."""
    if subject.graph is None or _from_meta(subject):
        return
    line = subject.line("onnx-file")
    if len(subject.graph.inputs) != 1:
        names = ", ".join(tensor.name for tensor in subject.graph.inputs)
        yield Problem(
            "onnx-file", f"the graph has {len(subject.graph.inputs)} inputs ({names})", "a graph with one input", line
        )
    elif subject.graph.inputs[0].dtype != "fp32":
        tensor = subject.graph.inputs[0]
        message = f"input {tensor.name} of the graph is {tensor.dtype or 'of an unknown type'}, nvinfer writes FP32"
        yield Problem("onnx-file", message, "export with --input float255", line)


@rule(
    "DS038",
    "another resize",
    "maintain-aspect-ratio=0 (default) stretches to the network's size, 1 keeps the shape and fills with black (Gst-nvinfer).",
)
def resize(subject: NvinferSubject) -> Problems:
    """Yields a letter box where the model was trained on stretched images."""
    if subject.manifest is None or subject.graph is None or subject.manifest.preprocess.resize != "stretch":
        return
    if subject.sound.flag("maintain-aspect-ratio"):
        message = "is 1: images get black borders; the model was trained on images stretched to its size"
        yield Problem(
            "maintain-aspect-ratio", message, "maintain-aspect-ratio=0", subject.line("maintain-aspect-ratio")
        )


@rule(
    "DS039",
    "centre crop that nvinfer does not do",
    "nvinfer stretches or pads whole frames and objects; crops are made by nvdspreprocess (Gst-nvdspreprocess, roi-params-src).",
    "warning",
)
def crop(subject: NvinferSubject) -> Problems:
    """Yields a model that was trained on centre crops."""
    if subject.manifest is None or _from_meta(subject) or subject.manifest.preprocess.resize != "crop":
        return
    message = "cannot say what the model was trained on: the centre of the resized image"
    instead = "nvdspreprocess with the centre as region and input-tensor-from-meta=1, or train with resize='stretch'"
    yield Problem("maintain-aspect-ratio", message, instead, subject.line("maintain-aspect-ratio"))


@rule(
    "DS040",
    "padding without an effect",
    "symmetric-padding is read with maintain-aspect-ratio=1 alone (Gst-nvinfer).",
    "warning",
)
def padding(subject: NvinferSubject) -> Problems:
    """Yields a padding that nothing uses."""
    if subject.sound.flag("symmetric-padding") and not subject.sound.flag("maintain-aspect-ratio"):
        message = "is 1 without maintain-aspect-ratio=1, so it does nothing"
        yield Problem("symmetric-padding", message, "no symmetric-padding", subject.line("symmetric-padding"))


@rule(
    "DS041",
    "nearest neighbour",
    "scaling-filter 0 and 6 take the nearest pixel (NvBufSurfTransform_Inter in nvbufsurftransform.h).",
    "warning",
)
def nearest(subject: NvinferSubject) -> Problems:
    """Yields a filter that takes the nearest pixel."""
    if subject.has("scaling-filter") and (value := subject.sound.integer("scaling-filter", 1)) in (0, 6):
        trained = (
            f", the model was trained on {subject.manifest.preprocess.interpolation} images" if subject.manifest else ""
        )
        yield Problem(
            "scaling-filter",
            f"is {value}: the nearest pixel{trained}",
            "scaling-filter=1",
            subject.line("scaling-filter"),
        )


@rule(
    "DS042",
    "normalisation that nobody reads",
    "with input-tensor-from-meta=1 nvdspreprocess makes the tensor, and nvinfer reads neither factor nor offsets.",
    "warning",
)
def from_meta(subject: NvinferSubject) -> Problems:
    """Yields keys of preprocessing that have no effect."""
    for key in ("net-scale-factor", "offsets", "maintain-aspect-ratio"):
        if _from_meta(subject) and subject.has(key):
            message = "has no effect with input-tensor-from-meta=1"
            yield Problem(key, message, f"{key} in the configuration of nvdspreprocess", subject.line(key))
