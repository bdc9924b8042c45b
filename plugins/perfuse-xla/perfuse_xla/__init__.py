"""Runs components as StableHLO on XLA's devices, through JAX."""
