"""The detector: the formulas of its paper. Kernels for particular processors are in `sparsercnn.fast`."""
