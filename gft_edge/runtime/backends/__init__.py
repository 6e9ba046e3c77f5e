"""Backends: the table of them, and how each opens an artefact and runs it."""
