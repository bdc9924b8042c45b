"""Core ML programs, in this project's layout and in Apple's."""
