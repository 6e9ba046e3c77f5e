"""Finds faults of a deployment: a configuration against the graph, the labels and the artefact that it serves."""
