"""Bundles for places of use: Jetson, DeepStream, Triton, ONNX Runtime."""
