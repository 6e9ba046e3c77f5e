"""Whether the ranking of patches can be taught in training, and what is left of it against a twin that keeps random patches."""
