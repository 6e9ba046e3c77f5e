"""Files, batches, instances and warm-up of a model."""

from __future__ import annotations

from gft_edge.errors import did_you_mean
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.export.lint_deployment.triton.subject import FILES, PLATFORMS, TritonSubject, fits

_CONFIG = "Triton, model configuration"
_REPOSITORY = "Triton, model repository"


@rule("TR001", "name of another model", f"name must be that of the folder ({_CONFIG}: 'unexpected directory name').")
def name(subject: TritonSubject) -> Problems:
    """Yields a name that is not the folder's."""
    config = subject.config
    folder = config.folder.resolve().name
    if config.name and config.name != folder:
        yield Problem(
            "name", f"is {config.name!r}, the folder is {folder!r}", f'name: "{folder}"', subject.line("name")
        )


@rule("TR002", "backend", f"backend or platform says which file is loaded ({_CONFIG}, name, platform and backend).")
def backend(subject: TritonSubject) -> Problems:
    """Yields a backend that is missing, unknown, or does not agree with the platform."""
    config = subject.config
    if subject.is_ensemble:
        if config.backend:
            yield Problem(
                "backend",
                f"is {config.backend!r}, the model is an ensemble",
                'platform: "ensemble"',
                subject.line("backend"),
            )
        return
    known = (*FILES, *PLATFORMS)
    if not subject.backend:
        yield Problem("backend", "is missing, and so is platform", 'backend: "onnxruntime"')
    elif subject.backend not in FILES:
        field = "backend" if config.backend else "platform"
        message = f"is {subject.backend!r}{did_you_mean(subject.backend, known)}"
        yield Problem(field, message, 'backend: "onnxruntime" or "tensorrt"', subject.line(field))
    elif config.backend and config.platform and PLATFORMS.get(config.platform) != config.backend:
        yield Problem(
            "platform",
            f"is {config.platform!r}, backend is {config.backend!r}",
            "one of them",
            subject.line("platform"),
        )


@rule("TR003", "version folder", f"a model needs a folder whose name is a number above 0 ({_REPOSITORY}).")
def versions(subject: TritonSubject) -> Problems:
    """Yields a model without a version, or a policy that names one that is not there."""
    folder = subject.config.folder
    if not subject.versions:
        message = f"{folder} has no folder with a number for a name"
        yield Problem("1/", message, f"{folder / '1'}/ with the model's file")
        return
    there = [int(version.name) for version in subject.versions]
    for wanted in subject.config.message.version_policy.specific.versions:
        if wanted not in there:
            message = f"names version {wanted}; there are: {', '.join(map(str, there))}"
            yield Problem("version_policy", message, f"a version of {there}", subject.line("version_policy"))


@rule("TR004", "file of another backend", f"onnxruntime loads model.onnx, tensorrt loads model.plan ({_REPOSITORY}).")
def model_file(subject: TritonSubject) -> Problems:
    """Yields a version that lacks the file of its backend."""
    file = subject.file
    if file is None or file.is_file() or subject.is_ensemble:
        return
    others = sorted(path.name for path in file.parent.glob("model.*"))  # the folder itself may be missing
    field = "backend" if subject.config.backend else "platform"
    if others:
        message = f"is {subject.backend!r}, which loads {file.name}; {file.parent} has {', '.join(others)}"
        loads = next((backend for backend, known in FILES.items() if known in others), subject.backend)
        yield Problem(field, message, f'backend: "{loads}"', subject.line(field))
    elif not (subject.backend == "tensorrt" and subject.manifest is not None):  # an engine is built on the device
        message = f"is {subject.backend!r}, and {file} does not exist"
        yield Problem(field, message, f"{file.name} in {file.parent}", subject.line(field))


@rule(
    "TR005",
    "batch that the graph does not take",
    f"max_batch_size above 0 needs a dynamic first axis of every tensor ({_CONFIG}, maximum batch size).",
)
def batch(subject: TritonSubject) -> Problems:
    """Yields a batch size that does not fit the graph's."""
    value, line = subject.config.max_batch_size, subject.line("max_batch_size")
    if subject.inputs is None or not subject.inputs:
        return
    if value > 0 and subject.batch is not None and not (subject.backend == "tensorrt" and value == subject.batch):
        message = f"is {value}, the batch axis of the graph is {subject.batch} always"
        yield Problem("max_batch_size", message, "max_batch_size: 0, with the batch axis in dims", line)
    elif value > 0 and subject.manifest and subject.batch is None and value > subject.manifest.batch[2]:
        largest = subject.manifest.batch[2]
        message = f"is {value}, the artefact was exported for up to {largest}"
        yield Problem("max_batch_size", message, f"max_batch_size: {largest}", line)


@rule(
    "TR006",
    "requests that are not joined",
    "with max_batch_size: 0 the server sends every request alone (Triton, dynamic batcher).",
    "warning",
)
def no_batches(subject: TritonSubject) -> Problems:
    """Yields a dynamic batch axis that the server does not use."""
    shape = subject.inputs[0].shape if subject.inputs else None
    if subject.config.max_batch_size == 0 and shape and isinstance(shape[0], str) and not subject.is_ensemble:
        found = "is 0" if "max_batch_size" in subject.lines else "is missing, which is 0"
        message = f"{found}, the batch axis of the graph is dynamic"
        yield Problem("max_batch_size", message, "max_batch_size: 8", subject.line("max_batch_size"))


@rule(
    "TR007",
    "dynamic batching without batches",
    "the dynamic batcher needs max_batch_size above 1; preferred sizes are at most that (Triton, dynamic batcher).",
)
def dynamic_batching(subject: TritonSubject) -> Problems:
    """Yields dynamic batching that joins nothing, and preferred sizes beyond the largest."""
    config, line = subject.config, subject.line("dynamic_batching[0]")
    if not config.dynamic_batching:
        return
    if config.max_batch_size < 2:
        message = f"joins nothing with max_batch_size: {config.max_batch_size}"
        yield Problem("dynamic_batching", message, "no dynamic_batching, or a larger max_batch_size", line)
    elif subject.batch is not None:
        yield Problem(
            "dynamic_batching", f"the batch axis of the graph is {subject.batch} always", "no dynamic_batching", line
        )
    for size in config.preferred_batch_sizes:
        if config.max_batch_size >= 2 and size > config.max_batch_size:
            path = "dynamic_batching[0].preferred_batch_size"
            message = f"has {size}, max_batch_size is {config.max_batch_size}"
            yield Problem("preferred_batch_size", message, f"sizes up to {config.max_batch_size}", subject.line(path))


@rule(
    "TR008",
    "instances that cannot run",
    f"tensorrt runs on GPUs alone; KIND_CPU takes no GPU numbers ({_CONFIG}, instance groups).",
)
def instances(subject: TritonSubject) -> Problems:
    """Yields instance groups on the wrong device."""
    for number, group in enumerate(subject.config.message.instance_group):
        kind, path = subject.config.instance_kinds[number], f"instance_group[{number}]"
        if kind == "KIND_CPU" and subject.backend == "tensorrt":
            yield Problem(
                f"{path}.kind", "is KIND_CPU, an engine runs on a GPU", "kind: KIND_GPU", subject.line(f"{path}.kind")
            )
        if kind == "KIND_CPU" and group.gpus:
            yield Problem(
                f"{path}.gpus", "names GPUs for KIND_CPU", "kind: KIND_GPU, or no gpus", subject.line(f"{path}.gpus")
            )


@rule(
    "TR009",
    "accelerator",
    "gpu_execution_accelerator is read by onnxruntime alone, on a GPU; 'tensorrt' and 'cuda' are known (Triton, optimization).",
)
def accelerators(subject: TritonSubject) -> Problems:
    """Yields accelerators that have no effect or are unknown."""
    path = "optimization[0].execution_accelerators[0].gpu_execution_accelerator"
    for number, found in enumerate(subject.config.accelerators):
        field, line = "gpu_execution_accelerator", subject.line(f"{path}[{number}].name")
        if found not in ("tensorrt", "cuda"):
            yield Problem(field, f"is {found!r}{did_you_mean(found, ('tensorrt', 'cuda'))}", 'name: "tensorrt"', line)
        elif subject.backend == "tensorrt":
            yield Problem(field, "has no effect on an engine", "no execution_accelerators", line)
        elif subject.config.instance_kinds and set(subject.config.instance_kinds) == {"KIND_CPU"}:
            yield Problem(field, "has no effect: every instance is KIND_CPU", "kind: KIND_GPU", line)


@rule(
    "TR020",
    "warm-up that the model refuses",
    "Triton sends the warm-up as a request; one that fails keeps the model from becoming ready (model_warmup).",
)
def warm_up(subject: TritonSubject) -> Problems:
    """Yields warm-up requests with other names, types or shapes than the model's."""
    config = subject.config
    inputs = {tensor.name: tensor for tensor in config.inputs}
    for number, request in enumerate(config.warm_ups):
        path = f"model_warmup[{number}]"
        if request.batch_size > max(config.max_batch_size, 1):
            message = f"is {request.batch_size}, max_batch_size is {config.max_batch_size}"
            place = f"{path}.batch_size"
            yield Problem(place, message, f"batch_size: {max(config.max_batch_size, 1)}", subject.line(place))
        for name, (data_type, dims) in request.inputs.items():
            tensor = inputs.get(name)
            if tensor is None:
                message = f"names input {name!r}, the model has: {', '.join(inputs)}{did_you_mean(name, inputs)}"
                yield Problem(f"{path}.inputs", message, "the inputs of the model", subject.line(f"{path}.inputs"))
            elif data_type != tensor.data_type:
                message = f"sends {name} as {data_type}, the model takes {tensor.data_type}"
                yield Problem(
                    f"{path}.inputs", message, f"data_type: {tensor.data_type}", subject.line(f"{path}.inputs")
                )
            elif not fits(dims, tensor.dims):
                message = f"sends {name} as {list(dims)}, the model takes {list(tensor.dims)}"
                yield Problem(f"{path}.inputs", message, f"dims: {list(tensor.dims)}", subject.line(f"{path}.inputs"))
        for name in inputs:
            if name not in request.inputs:
                yield Problem(f"{path}.inputs", f"lacks input {name}", "every input of the model", subject.line(path))
