"""Diffusers' own pipelines on engines: small random ones, drawn eager and bridged.

A recipe makes a small pipeline of one class (``recipe``); a file of this folder is a family of them.
``measure`` draws with one, ``page`` writes what was measured. The next pipeline is one more recipe.
"""
