"""Depth-balanced preference data, after BPO (arXiv 2411.10914)."""

__version__ = "0.1.0"
