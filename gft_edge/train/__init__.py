"""Training: checkpoints and the loop."""
