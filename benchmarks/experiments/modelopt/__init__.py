"""The built-in model quantized by this project beside Model-Optimizer and ONNX Runtime, on a CPU."""
