"""The stand-in for the compiler's package."""
