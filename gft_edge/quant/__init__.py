"""Quantized models: policies, quantizing layers, 8-bit types."""
