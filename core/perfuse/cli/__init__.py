"""The command line."""

from perfuse.cli.main import main

__all__ = ["main"]
