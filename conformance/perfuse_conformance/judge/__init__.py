"""Verdicts: results compared with limits and with the expectations file."""
