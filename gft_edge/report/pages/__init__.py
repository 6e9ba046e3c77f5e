"""HTML pages and their contents."""
