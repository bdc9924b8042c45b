"""Backends that are wrong on purpose, each in one way, for the conformance suite to catch."""
