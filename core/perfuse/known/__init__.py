"""Configurations that many checkpoints have, and their graphs, which come along."""

from pathlib import Path

__all__ = ["GRAPHS"]

#: Their graphs, without weights; ``python -m perfuse.known.make`` makes them.
GRAPHS = Path(__file__).parent / "graphs"
