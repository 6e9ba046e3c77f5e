"""Latency, memory and power, with the conditions they were measured under."""

if __name__ != "gft_edge.benchmarks":
    raise ImportError(
        f"this folder is the package gft_edge.benchmarks, not {__name__}; run 'pip install -e .' and import gft_edge.benchmarks"
    )
