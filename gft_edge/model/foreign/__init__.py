"""Weights of Vision Transformers of other programs: their files, their names, and the backbone that they fit."""
