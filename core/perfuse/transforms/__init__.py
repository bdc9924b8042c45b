"""Transforms that perfuse brings: a file each, with its manifest in ``TRANSFORMS``."""
