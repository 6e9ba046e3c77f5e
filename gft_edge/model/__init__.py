"""The Gradient Focal Transformer: importance (GALA), selection (PPS) and the model."""
