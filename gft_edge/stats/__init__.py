"""Statistics, each defined once: figures of merit, paired tests, agreement of two sides."""
