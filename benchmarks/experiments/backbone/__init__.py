"""Quantization policies on a model with a trained backbone."""
