"""Compression algorithms, one a file."""
