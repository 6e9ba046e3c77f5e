"""Rules for the configuration of Triton Inference Server."""
