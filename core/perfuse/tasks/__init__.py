"""Tasks: one file each, built from shared steps.

A pipeline class names its tasks by import path, in ``perfuse.families`` or in a plugin's manifest,
so importing this package is cheap.
"""
