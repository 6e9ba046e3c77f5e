"""Names, types and shapes of a configuration against the graph that it serves."""

from __future__ import annotations

from gft_edge.errors import did_you_mean
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.export.lint_deployment.triton.subject import TRITON_TYPES, TritonSubject, fits, tensors
from gft_edge.labels import first_difference

_CONFIG = "Triton, model configuration"


def _dims(values: tuple[int, ...]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


@rule(
    "TR010",
    "tensor that the graph does not have",
    f"Triton loads no model with an unknown input or output ({_CONFIG}: 'unexpected inference output').",
)
def names(subject: TritonSubject) -> Problems:
    """Yields inputs and outputs that are not the graph's."""
    for path, tensor, known in tensors(subject):
        if known is not None and tensor.name not in {other.name for other in known}:
            there = [other.name for other in known]
            message = f"{tensor.name!r} is not in the graph{did_you_mean(tensor.name, there)}"
            yield Problem(f"{path}.name", message, f"one of: {', '.join(there)}", subject.line(f"{path}.name"))


@rule(
    "TR011",
    "input that is missing",
    f"every input of the graph must be in the configuration ({_CONFIG}: 'expected N inputs').",
)
def missing_inputs(subject: TritonSubject) -> Problems:
    """Yields inputs of the graph that the configuration does not have."""
    named = {tensor.name for tensor in subject.config.inputs}
    if not named or subject.inputs is None or not {tensor.name for tensor in subject.inputs} & named:
        return  # none at all: Triton completes the configuration from the graph; all others: TR010
    for tensor in subject.inputs:
        if tensor.name not in named:
            yield Problem(
                "input", f"lacks {tensor.name}", f'input {{ name: "{tensor.name}" ... }}', subject.line("input")
            )


@rule("TR012", "type of a tensor", f"data_type must be the graph's ({_CONFIG}, datatypes).")
def types(subject: TritonSubject) -> Problems:
    """Yields data types that are not the graph's."""
    for path, tensor, known in tensors(subject):
        other = next((found for found in known or () if found.name == tensor.name), None)
        wanted = TRITON_TYPES.get(other.dtype) if other else None
        if wanted and tensor.data_type != wanted:
            message = f"of {tensor.name} is {tensor.data_type}, the graph has {wanted}"
            yield Problem(f"{path}.data_type", message, f"data_type: {wanted}", subject.line(f"{path}.data_type"))


@rule(
    "TR013",
    "shape of a tensor",
    f"dims have no batch axis where max_batch_size is above 0, and have it where it is 0 ({_CONFIG}, maximum batch size).",
)
def shapes(subject: TritonSubject) -> Problems:
    """Yields shapes that are not the graph's."""
    for path, tensor, known in tensors(subject):
        other = next((found for found in known or () if found.name == tensor.name), None)
        wanted = subject.expected(other) if other else None
        message_field = subject.config.message.input if path.startswith("input") else subject.config.message.output
        index = int(path[path.index("[") + 1 : -1])
        if wanted is None or message_field[index].HasField("reshape") or fits(tensor.dims, wanted):
            continue
        cause = ""
        if other and other.shape and len(tensor.dims) == len(wanted) + 1:
            cause = ": the batch axis is one too many with max_batch_size above 0"
        elif len(tensor.dims) == len(wanted) - 1:
            cause = ": the batch axis is missing with max_batch_size: 0"
        elif sorted(tensor.dims) == sorted(wanted):
            cause = ": the axes stand in another order"
        message = f"of {tensor.name} are {_dims(tensor.dims)}, the graph has {_dims(wanted)}{cause}"
        yield Problem(f"{path}.dims", message, f"dims: {_dims(wanted)}", subject.line(f"{path}.dims"))


@rule(
    "TR014",
    "layout of the image",
    f"format says where the channels of a 3-D input stand ({_CONFIG}: FORMAT_NHWC, FORMAT_NCHW).",
)
def layout(subject: TritonSubject) -> Problems:
    """Yields a format that is not the graph's."""
    graph, inputs = subject.graph, subject.config.message.input
    if graph is None or not graph.layout:
        return
    for number, tensor in enumerate(inputs):
        found = {1: "NHWC", 2: "NCHW"}.get(tensor.format)
        if found and found != graph.layout:
            path = f"input[{number}].format"
            yield Problem(
                path,
                f"is FORMAT_{found}, the graph takes {graph.layout}",
                f"format: FORMAT_{graph.layout}",
                subject.line(path),
            )


@rule(
    "TR015",
    "label file that is missing",
    f"label_filename is relative to the folder of the model ({_CONFIG}; classification extension).",
)
def label_file(subject: TritonSubject) -> Problems:
    """Yields label files that do not exist."""
    for path, tensor, _ in tensors(subject):
        file = subject.config.folder / tensor.label_filename
        if tensor.label_filename and not file.is_file():
            place = f"{path}.label_filename"
            yield Problem(place, f"{file} does not exist", f"a file in {subject.config.folder}", subject.line(place))


@rule(
    "TR016",
    "number of labels",
    "Triton reads one label per line; a class beyond them has none (classification extension).",
)
def label_count(subject: TritonSubject) -> Problems:
    """Yields label files of another length than the output."""
    for path, tensor, _ in tensors(subject):
        labels = _labels(subject, tensor.label_filename)
        if labels is None or not tensor.dims or tensor.dims[-1] < 1 or len(labels) == tensor.dims[-1]:
            continue
        classes = tensor.dims[-1]
        one_line = ", all in one line, as DeepStream wants them" if len(labels) == 1 and ";" in labels[0] else ""
        message = f"has {len(labels)} lines{one_line}; output {tensor.name} has {classes} classes"
        file = subject.config.folder / tensor.label_filename
        yield Problem(f"{path}.label_filename", message, f"{classes} lines with one label each", 1, file)


@rule(
    "TR017",
    "labels of another order",
    "line n names class n (classification extension); the manifest lists the classes.",
)
def label_order(subject: TritonSubject) -> Problems:
    """Yields the first label that the manifest names differently."""
    for path, tensor, _ in tensors(subject):
        labels = _labels(subject, tensor.label_filename)
        if labels is None or subject.manifest is None or len(labels) != len(subject.manifest.labels):
            continue
        if difference := first_difference(labels, subject.manifest.labels):
            number, here, there = difference
            file = subject.config.folder / tensor.label_filename
            message = f"class {number} is {here}, the manifest has {there}"
            yield Problem(
                f"{path}.label_filename", message, "the labels in the order of the manifest", number + 1, file
            )


@rule(
    "TR018", "classes without labels", "without label_filename the classification extension returns numbers.", "warning"
)
def no_labels(subject: TritonSubject) -> Problems:
    """Yields the output with the classes if it names no labels."""
    for path, tensor, _ in tensors(subject):
        is_scores = subject.manifest is not None and tensor.name == subject.manifest.outputs[0].name
        one_image = subject.manifest is not None and subject.manifest.static_batch in (None, 1)
        if path.startswith("output") and is_scores and one_image and not tensor.label_filename:
            place = f"{path}.label_filename"
            yield Problem(place, f"is missing from {tensor.name}", 'label_filename: "labels.txt"', subject.line(place))


def _labels(subject: TritonSubject, name: str) -> list[str] | None:
    """Returns the lines of a label file as Triton reads them (LabelProvider::AddLabels); None where there is none."""
    file = subject.config.folder / name
    if not name or not file.is_file():
        return None
    lines = file.read_bytes().decode("utf-8", errors="replace").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
