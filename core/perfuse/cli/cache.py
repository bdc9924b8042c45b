"""``perfuse cache``: the cache of exports."""

import json

import click

from perfuse.cli.common import JSON, size_text
from perfuse.report.console import say

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Look at the exports made on the way, or remove them."""


@cache.command("list")
@JSON
def cache_list(as_json: bool) -> None:
    """List the exports in the cache, with their sizes."""
    from perfuse.sources.store import ArtifactStore

    store = ArtifactStore.default()
    entries = store.entries()
    if as_json:
        listed = [{"folder": str(folder), "bytes": size} for folder, size in entries]
        click.echo(json.dumps({"cache": str(store.root), "entries": listed}))
        return
    from perfuse.report.console import console, safe

    to = console()
    total = size_text(sum(size for _, size in entries))
    to.print(safe(f"{store.root}: {len(entries)} exports, {total}"))
    for folder, size in entries:
        to.print(safe(f"  {size_text(size):>9}  {folder.name}"))


@cache.command("clear")
def cache_clear() -> None:
    """Remove every export in the cache, and what is kept of plugins."""
    from perfuse.plugins.kept import forget_all
    from perfuse.sources.store import ArtifactStore

    forget_all()
    say(f"{ArtifactStore.default().clear()} exports removed")
