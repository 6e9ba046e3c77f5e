"""Effects of single layers in INT8, and mixed precision chosen from them."""
