"""Data sets: the built-in scenes and typefaces, and image folders."""
