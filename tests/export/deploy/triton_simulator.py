"""Serves a model repository as its configurations say, with ONNX Runtime; strict where Triton is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from gft_edge.export.deploy.triton.config import ConfigTensor, ModelConfig, read_model_config

DTYPES = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8, "TYPE_INT32": np.int32}
ORT_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8", "tensor(int32)": "TYPE_INT32"}


class Simulator:
    """The server: one session per model, ensembles by their steps, labels from the files that outputs name."""

    def __init__(self, repository: Path) -> None:
        self.models: dict[str, ModelConfig] = {}
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        for folder in sorted(repository.iterdir()):
            config = read_model_config(folder / "config.pbtxt")
            assert config.name == folder.name and (folder / "1").is_dir()
            self.models[config.name] = config
            if config.platform != "ensemble":
                assert config.backend == "onnxruntime"
                session = onnxruntime.InferenceSession(folder / "1/model.onnx", providers=["CPUExecutionProvider"])
                self.sessions[config.name] = session
                for entries, values in ((config.inputs, session.get_inputs()), (config.outputs, session.get_outputs())):
                    assert {e.name: (e.data_type, self._axes(config, e)) for e in entries} == {
                        v.name: (ORT_TYPES[v.type], tuple(a if isinstance(a, int) else -1 for a in v.shape))
                        for v in values
                    }
        for config in self.models.values():
            for warm_up in config.warm_ups:
                self.infer(
                    config.name,
                    {
                        n: np.zeros(self._warm(warm_up.batch_size, config, d), DTYPES[t])
                        for n, (t, d) in warm_up.inputs.items()
                    },
                )

    @staticmethod
    def _warm(size: int, config: ModelConfig, dims: tuple[int, ...]) -> tuple[int, ...]:
        assert 1 <= size <= max(config.max_batch_size, 1)
        return (size, *dims) if config.max_batch_size else dims

    @staticmethod
    def _axes(config: ModelConfig, tensor: ConfigTensor) -> tuple[int, ...]:
        return (-1, *tensor.dims) if config.max_batch_size else tensor.dims

    def _require(self, config: ModelConfig, tensors: tuple[ConfigTensor, ...], arrays: dict[str, np.ndarray]) -> None:
        assert {t.name for t in tensors} == set(arrays), config.name
        for tensor in tensors:
            array, axes = arrays[tensor.name], self._axes(config, tensor)
            assert array.dtype == DTYPES[tensor.data_type], tensor
            assert len(array.shape) == len(axes) and all(a in (-1, b) for a, b in zip(axes, array.shape)), tensor
            assert not config.max_batch_size or len(array) <= config.max_batch_size

    def infer(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        config = self.models[name]
        self._require(config, config.inputs, inputs)
        if config.platform == "ensemble":
            tensors = dict(inputs)
            for step in config.steps:
                assert self.models[step.model_name].max_batch_size == config.max_batch_size
                results = self.infer(step.model_name, {own: tensors[of] for own, of in step.input_map.items()})
                tensors |= {of: results[own] for own, of in step.output_map.items()}
            outputs = {output.name: tensors[output.name] for output in config.outputs}
        else:
            names = [output.name for output in config.outputs]
            outputs = dict(zip(names, self.sessions[name].run(names, inputs)))
        self._require(config, config.outputs, outputs)
        return outputs

    def classify(self, name: str, output: str, scores: np.ndarray) -> list[str]:
        """The label of each image, as the classification extension gives it."""
        config = self.models[name]
        (file,) = [o.label_filename for o in config.outputs if o.name == output]
        labels = (config.folder / file).read_bytes().decode().removesuffix("\n").split("\n")
        assert len(labels) == scores.shape[-1]
        return [labels[index] for index in scores.argmax(axis=-1)]
