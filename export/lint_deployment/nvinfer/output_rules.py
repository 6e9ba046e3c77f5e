"""What nvinfer makes of the outputs."""

from __future__ import annotations

from gft_edge.export.lint_deployment.nvinfer.subject import CLASSIFIER, OTHER, NvinferSubject
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule

_SOURCE = "parseAttributesFromSoftmaxLayers of nvdsinfer"
_TENSORS = "network-type=100 and output-tensor-meta=1, and read the tensors in a probe"


@rule(
    "DS020",
    "not a classifier",
    "network-type=0, the default, sends the outputs to a parser of boxes (Gst-nvinfer, network-type).",
)
def network_type(subject: NvinferSubject) -> Problems:
    """Yields a graph of classes that is not read as one."""
    if subject.graph is None or subject.graph.classes is None or subject.kind in (CLASSIFIER, OTHER):
        return
    found = f"is {subject.kind}" if subject.has("network-type") else "is missing: a detector"
    yield Problem(
        "network-type",
        f"{found}; the graph gives classes",
        f"network-type=1, or {_TENSORS}",
        subject.line("network-type"),
    )


@rule(
    "DS021",
    "several outputs read as attributes",
    f"{_SOURCE} takes every output for one attribute, its first axis for classes.",
)
def several_outputs(subject: NvinferSubject) -> Problems:
    """Yields a classifier whose graph has further outputs."""
    if subject.is_classifier and subject.graph and len(subject.graph.outputs) > 1:
        names = ", ".join(tensor.name for tensor in subject.graph.outputs[1:])
        message = f"is 1; the outputs {names} would be read as attributes too"
        yield Problem("network-type", message, f"{_TENSORS}; or export with --maps none", subject.line("network-type"))


@rule(
    "DS022",
    "output that is not FP32",
    f"{_SOURCE} reads the buffer as float whatever it is; nvinferserver takes FP32 only.",
)
def output_type(subject: NvinferSubject) -> Problems:
    """Yields outputs of another type that a parser would read."""
    for tensor in subject.graph.outputs if subject.graph and subject.is_classifier else ():
        if tensor.dtype != "fp32":
            message = f"output {tensor.name} is {tensor.dtype or 'of an unknown type'}, nvinfer reads it as FP32"
            yield Problem("network-type", message, _TENSORS, subject.line("network-type"))


@rule("DS023", "output without an axis of classes", f"{_SOURCE} takes the first axis after the batch for the classes.")
def output_shape(subject: NvinferSubject) -> Problems:
    """Yields a classifier's output that is not (batch, classes)."""
    scores = subject.graph.scores if subject.graph else None
    if (
        subject.is_classifier
        and scores
        and scores.shape is not None
        and subject.graph
        and subject.graph.classes is None
    ):
        message = f"output {scores.name} is {list(scores.shape)}, expected (batch, classes)"
        yield Problem("network-type", message, "a graph whose output is (batch, classes)", subject.line("network-type"))


@rule(
    "DS024",
    "logits read as probabilities",
    f"{_SOURCE} keeps the largest value above classifier-threshold and reports it as confidence (dusty-nv/jetson-inference #1106).",
)
def logits(subject: NvinferSubject) -> Problems:
    """Yields a classifier whose graph does not end in a Softmax."""
    scores = subject.graph.scores if subject.graph else None
    if subject.is_classifier and scores and not scores.probabilities:
        message = f"output {scores.name} comes out of no Softmax: its values are logits"
        yield Problem(
            "network-type", message, f"export with --probabilities; or {_TENSORS}", subject.line("network-type")
        )


@rule(
    "DS025",
    "threshold that decides nothing",
    f"{_SOURCE} compares classifier-threshold with every value of the output.",
)
def threshold(subject: NvinferSubject) -> Problems:
    """Yields a threshold that is compared with logits, or that no probability passes."""
    if subject.kind != CLASSIFIER or not subject.has("classifier-threshold"):
        return
    value, scores = subject.sound.number("classifier-threshold", 0), subject.graph.scores if subject.graph else None
    line = subject.line("classifier-threshold")
    if value >= 1:
        yield Problem("classifier-threshold", f"is {value:g}: no probability is above it", "a value below 1", line)
    elif scores and not scores.probabilities and subject.is_classifier:
        message = f"is {value:g} and is compared with the logits of {scores.name}"
        yield Problem("classifier-threshold", message, "export with --probabilities", line)


@rule(
    "DS026",
    "outputs that reach nobody",
    "with network-type=100 nvinfer parses nothing; output-tensor-meta=1 attaches the tensors.",
)
def tensor_meta(subject: NvinferSubject) -> Problems:
    """Yields a configuration that neither parses nor attaches the outputs."""
    if subject.kind == OTHER and not subject.sound.flag("output-tensor-meta"):
        found = "is 0" if subject.has("output-tensor-meta") else "is missing"
        line = subject.line("output-tensor-meta", "network-type")
        yield Problem(
            "output-tensor-meta", f"{found}, and network-type=100 parses no output", "output-tensor-meta=1", line
        )


@rule(
    "DS027",
    "outputs that stay on the GPU",
    "disable-output-host-copy=1 leaves the tensors on the GPU, where a probe in Python cannot read them.",
    "warning",
)
def host_copy(subject: NvinferSubject) -> Problems:
    """Yields tensors that stay on the GPU."""
    if subject.sound.flag("disable-output-host-copy") and (subject.kind == OTHER or subject.is_classifier):
        message = "is 1: the outputs are not copied to the host, where parser and probe read them"
        yield Problem(
            "disable-output-host-copy", message, "disable-output-host-copy=0", subject.line("disable-output-host-copy")
        )
