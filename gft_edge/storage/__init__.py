"""How files are kept: locks, seals, leftovers of killed processes, and what kind a file is."""
