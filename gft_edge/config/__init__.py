"""Model configurations, training recipes, and the reader that fills both."""
