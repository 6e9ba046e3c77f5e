"""Classifiers in ONNX files of other programs: reading, recognising the parts of a ViT, quantizing."""
