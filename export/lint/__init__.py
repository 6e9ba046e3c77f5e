"""Hazards of a graph, found before anything is built."""
