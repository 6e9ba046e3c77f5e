"""Observing activations: statistics of every tensor while images run, and ranges from them."""
