"""Computes a saved Core ML program on any machine, operation by operation.

What this gives is *interpreted*: it says that the file computes what the reference computes, and
nothing of how Core ML itself rounds, fuses or places it.
"""
