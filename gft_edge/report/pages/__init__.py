"""HTML pages and what they say."""
