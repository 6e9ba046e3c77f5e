"""TensorRT: build options, build plans, builders."""
