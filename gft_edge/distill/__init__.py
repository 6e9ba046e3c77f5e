"""Losses of training and distillation; teachers, live or as stored answers."""
