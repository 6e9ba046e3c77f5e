"""Bundles for DeepStream, and what its Gst-nvinfer reads and computes."""
