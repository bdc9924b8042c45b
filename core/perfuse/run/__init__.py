"""Pipelines: placing components, preparing programs, running tasks, exporting."""
