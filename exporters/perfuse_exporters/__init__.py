"""Captures components once and lowers them to engine formats."""
