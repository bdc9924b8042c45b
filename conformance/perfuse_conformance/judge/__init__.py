"""Verdicts: what was found, held to limits and to what was expected."""
