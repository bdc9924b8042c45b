"""StableHLO, for XLA's devices."""
