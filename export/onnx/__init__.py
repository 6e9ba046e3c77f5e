"""From a checkpoint to an ONNX graph and its artefact."""
