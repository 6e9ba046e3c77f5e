"""The project's own studies; run by `make bench`, not in the wheel."""
