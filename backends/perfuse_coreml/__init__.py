"""Core ML programs on Apple's devices."""
