"""The stand-in for the bridge to the runtime."""
