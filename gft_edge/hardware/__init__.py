"""Devices: profiles, which machine this is, TensorRT versions and what each can do."""
