"""Constants of the 8-bit types: levels of INT8, largest value of FP8, and the floor of a range. Imports nothing."""

from __future__ import annotations

QMAX = 127
QMIN = -128
E4M3_MAX = 448.0
E4M3_STEP = 32.0
"""Distance between the two largest values."""
SMALLEST_RANGE = 1e-5
"""Floor of a range: a dead channel would have a zero scale, which TensorRT refuses."""
