"""Optional speed: the same results in less time."""
