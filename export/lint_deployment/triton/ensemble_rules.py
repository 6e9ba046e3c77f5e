"""The steps of an ensemble: every tensor comes from somewhere and goes somewhere."""

from __future__ import annotations

from gft_edge.errors import did_you_mean
from gft_edge.export.deploy.triton.config import ConfigTensor, ModelConfig
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.export.lint_deployment.triton.subject import ENSEMBLE, TritonSubject

_ENSEMBLE = "Triton, ensemble models"


def _path(step: int) -> str:
    return f"ensemble_scheduling[0].step[{step}]"


@rule(
    "TR030",
    "ensemble without steps",
    f"platform 'ensemble' needs ensemble_scheduling, and the other way round ({_ENSEMBLE}).",
)
def no_steps(subject: TritonSubject) -> Problems:
    """Yields an ensemble without steps, and steps without the platform."""
    config = subject.config
    if config.platform == ENSEMBLE and not config.steps:
        yield Problem(
            "ensemble_scheduling", "is missing", "ensemble_scheduling { step [ ... ] }", subject.line("platform")
        )
    if config.steps and config.platform != ENSEMBLE:
        yield Problem(
            "platform", f"is {config.platform!r}, the model has steps", 'platform: "ensemble"', subject.line("platform")
        )


@rule("TR031", "step that is no model", f"model_name is another folder of the repository ({_ENSEMBLE}).")
def models(subject: TritonSubject) -> Problems:
    """Yields steps whose model is not in the repository."""
    folder = subject.config.folder.parent
    for number, step in enumerate(subject.config.steps):
        if not (folder / step.model_name).is_dir() or not step.model_name:
            there = sorted(path.name for path in folder.iterdir() if path.is_dir())
            path = f"{_path(number)}.model_name"
            message = (
                f"is {step.model_name!r}, the repository has: {', '.join(there)}{did_you_mean(step.model_name, there)}"
            )
            yield Problem("model_name", message, "a model of the repository", subject.line(path))


@rule(
    "TR032",
    "map of a tensor that the model does not have",
    f"the keys of input_map and output_map are tensors of the step's model ({_ENSEMBLE}).",
)
def map_keys(subject: TritonSubject) -> Problems:
    """Yields keys of maps that are not tensors of the step's model, and inputs of it that are not mapped."""
    for number, step in enumerate(subject.config.steps):
        model = subject.neighbour(step.model_name)
        if model is None:
            continue
        sides = (("input_map", step.input_map, model.inputs), ("output_map", step.output_map, model.outputs))
        for field, found, tensors in sides:
            there = [tensor.name for tensor in tensors]
            line = subject.line(f"{_path(number)}.{field}[0]")
            for key in found:
                if there and key not in there:
                    message = f"maps {key!r}; {step.model_name} has: {', '.join(there)}{did_you_mean(key, there)}"
                    yield Problem(field, message, f"one of: {', '.join(there)}", line)
            if field == "input_map":
                for name in there:
                    if name not in found:
                        yield Problem(field, f"lacks input {name} of {step.model_name}", f'key: "{name}"', line)


@rule(
    "TR033",
    "tensor that nobody makes",
    f"the values of input_map are inputs of the ensemble or outputs of a step ({_ENSEMBLE}).",
)
def sources(subject: TritonSubject) -> Problems:
    """Yields tensors that are read and never made."""
    config = subject.config
    made = {tensor.name for tensor in config.inputs} | {
        value for step in config.steps for value in step.output_map.values()
    }
    for number, step in enumerate(config.steps):
        for key, value in step.input_map.items():
            if value not in made:
                message = f"reads {value!r} into {key}, which no step makes{did_you_mean(value, made)}"
                line = subject.line(f"{_path(number)}.input_map[0]")
                yield Problem("input_map", message, f"one of: {', '.join(sorted(made))}", line)
    for number, tensor in enumerate(config.outputs if config.steps else ()):
        if tensor.name not in made:
            path = f"output[{number}].name"
            message = f"{tensor.name!r} is made by no step{did_you_mean(tensor.name, made)}"
            yield Problem(path, message, f"one of: {', '.join(sorted(made))}", subject.line(path))


@rule("TR034", "tensor that nobody reads", f"every input of the ensemble goes into a step ({_ENSEMBLE}).")
def sinks(subject: TritonSubject) -> Problems:
    """Yields inputs of the ensemble that no step reads."""
    config = subject.config
    read = {value for step in config.steps for value in step.input_map.values()}
    for number, tensor in enumerate(config.inputs if config.steps else ()):
        if tensor.name not in read:
            path = f"input[{number}].name"
            message = f"{tensor.name!r} is read by no step{did_you_mean(tensor.name, read)}"
            yield Problem(path, message, "an input_map of a step that names it", subject.line(path))


@rule(
    "TR035",
    "types and shapes along a map",
    f"a tensor has the type and the dims of the model's tensor that it is mapped to ({_ENSEMBLE}).",
)
def agreement(subject: TritonSubject) -> Problems:
    """Yields inputs and outputs of the ensemble of another type or shape than those of the steps."""
    config = subject.config
    inputs = {tensor.name: (f"input[{n}]", tensor) for n, tensor in enumerate(config.inputs)}
    outputs = {tensor.name: (f"output[{n}]", tensor) for n, tensor in enumerate(config.outputs)}
    for step in config.steps:
        model = subject.neighbour(step.model_name)
        if model is None:
            continue
        for known, mapped, tensors in (
            (inputs, step.input_map, model.inputs),
            (outputs, step.output_map, model.outputs),
        ):
            for key, value in mapped.items():
                other = next((tensor for tensor in tensors if tensor.name == key), None)
                if value in known and other is not None:
                    yield from _compare(subject, *known[value], model, other)


def _compare(subject: TritonSubject, path: str, own: ConfigTensor, model: ModelConfig, other: ConfigTensor) -> Problems:
    name = model.name or model.folder.name
    if own.data_type != other.data_type:
        message = f"of {own.name} is {own.data_type}, {other.name} of {name} is {other.data_type}"
        yield Problem(f"{path}.data_type", message, f"data_type: {other.data_type}", subject.line(f"{path}.data_type"))
    batched = (subject.config.max_batch_size > 0, model.max_batch_size > 0)
    same_rank = len(own.dims) + batched[0] == len(other.dims) + batched[1]
    pairs = zip(reversed(own.dims), reversed(other.dims))
    if not same_rank or any(a != b and -1 not in (a, b) for a, b in pairs):
        message = f"of {own.name} are {list(own.dims)}, {other.name} of {name} has {list(other.dims)}"
        yield Problem(f"{path}.dims", message, f"dims: {list(other.dims)}", subject.line(f"{path}.dims"))


@rule("TR036", "batches of an ensemble", f"max_batch_size of an ensemble is at most that of every step ({_ENSEMBLE}).")
def batches(subject: TritonSubject) -> Problems:
    """Yields an ensemble that takes larger batches than its steps."""
    for number, step in enumerate(subject.config.steps):
        model = subject.neighbour(step.model_name)
        if model is not None and model.max_batch_size < subject.config.max_batch_size:
            message = (
                f"is {subject.config.max_batch_size}, step {number} ({step.model_name}) takes {model.max_batch_size}"
            )
            yield Problem(
                "max_batch_size", message, f"max_batch_size: {model.max_batch_size}", subject.line("max_batch_size")
            )
