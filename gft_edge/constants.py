"""Numbers of the model that its readers need without PyTorch."""

from __future__ import annotations

TEMPERATURE = 0.1
"""Of the softmax that turns scores into importance."""
