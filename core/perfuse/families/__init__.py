"""Pipelines that share architectures and tasks: a file a family.

Each module here says in ``PIPELINES`` which pipeline classes of Diffusers it has, and by which tasks
they run; the tasks are named by import path, so that listing them imports none.
"""
