"""Tests the toolkit's promises about damaged files, kills, hostile input, long use and repeatability."""
