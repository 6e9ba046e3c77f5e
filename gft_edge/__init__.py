"""gft_edge: Gradient Focal Transformers, from training to a board on a robot."""

__version__ = "0.1.0"
