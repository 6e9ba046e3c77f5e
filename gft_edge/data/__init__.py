"""Data sets: the built-in typefaces and image folders."""
