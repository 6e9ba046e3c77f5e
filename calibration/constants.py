"""Numbers of 8-bit quantization that files need without PyTorch."""

from __future__ import annotations

QMIN = -128
QMAX = 127
SMALLEST_RANGE = 1e-5
"""Floor of a range: TensorRT refuses a zero scale, which a dead channel would have."""
