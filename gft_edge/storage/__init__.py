"""Storage of files: locks, seals, leftovers of killed processes, and detection of a file's kind."""
