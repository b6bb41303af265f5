"""Benchmarks of pfray against its peers and its own goals; the tests never run them."""
