"""Measures what the toolkit promises about damaged files, kills, hostile input, long use and repeatability."""
