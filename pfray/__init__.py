"""Automated compression of trained PyTorch networks, searched on Ray."""
