"""Adapters: LoRA and its kin, read from any of the layouts that they are published in."""

from perfuse.sources.adapters.active import Active, Strength, Use
from perfuse.sources.adapters.files import Place
from perfuse.sources.adapters.reading import Adapter, Home, read_adapter

__all__ = ["Active", "Adapter", "Home", "Place", "Strength", "Use", "read_adapter"]
