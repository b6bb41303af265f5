"""Automated compression of trained PyTorch networks, searched on Ray.

Kept light, because ``pfray.bench`` runs on devices that have numpy and an interpreter only.
"""

from pfray.api import Result, check, compress, inspect
from pfray.export import load

__all__ = ["Result", "check", "compress", "inspect", "load"]
