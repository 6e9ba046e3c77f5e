"""Rules for bundles: record, artefact, engines, scripts and options against each other."""
