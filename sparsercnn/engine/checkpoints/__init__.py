"""Checkpoints and other files of tensors: written whole, with a checksum, and read once without running code."""
