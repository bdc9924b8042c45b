"""Asks a backend in a process of its own, case by case."""
