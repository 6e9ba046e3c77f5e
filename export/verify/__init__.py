"""Proof that an artefact computes what its checkpoint computes."""
