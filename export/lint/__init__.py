"""Finds hazards of a graph before anything is built."""
