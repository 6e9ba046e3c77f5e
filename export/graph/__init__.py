"""Reads ONNX graphs: loading, checking, preparing, viewing, comparing."""
