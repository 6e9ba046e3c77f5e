"""Speed and numerics of the model on one NVIDIA GPU, in PyTorch: one command, under four minutes, JSON out."""
