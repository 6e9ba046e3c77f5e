"""Activation ranges and quantization."""

if __name__ != "gft_edge.calibration":
    raise ImportError(
        f"this folder is the package gft_edge.calibration, not {__name__}; run 'pip install -e .' and import gft_edge.calibration"
    )
