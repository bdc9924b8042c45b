"""Families of pipelines that share architectures and tasks: one file each.

``PIPELINES`` of each module lists Diffusers' pipeline classes and their tasks. Tasks are named by
import path, so importing this package is cheap.
"""
