"""Finished studies: what docs/results.md quotes, each run once by itself, an hour and more."""
