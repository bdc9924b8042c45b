"""Tasks: a file each, made of the steps that they share. Importing this imports none.

A pipeline class names its tasks in ``perfuse.families``, or in a plugin's manifest.
"""
