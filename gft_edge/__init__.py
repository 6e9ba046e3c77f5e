"""gft_edge: Gradient Focal Transformers, from training to a board on a robot."""

import os

__version__ = "0.1.0"

# ONNX Runtime's Linux builds report every session to their maker unless told otherwise before they are imported (1.29 and
# newer), and warn where they cannot write to HOME. Who wants the reports sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
