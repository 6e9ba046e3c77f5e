"""Latency, memory and start-up, with their conditions."""
