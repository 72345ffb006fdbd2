"""Weights files: found, fetched, checked, read without running anything, converted; no torch at import, no family."""
