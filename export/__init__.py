"""ONNX export, engine builds and verification."""

if __name__ != "gft_edge.export":
    raise ImportError(
        f"this folder is the package gft_edge.export, not {__name__}; run 'pip install -e .' and import gft_edge.export"
    )
