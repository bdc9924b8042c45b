"""``perfuse plugin``: write one, list them, switch one off or on."""

import dataclasses
import json
from pathlib import Path

import click

from perfuse.cli.common import FILE, JSON
from perfuse.report.console import say

__all__ = ["plugin"]


@click.group()
def plugin() -> None:
    """Write a plugin, list those there are, switch one off or on."""


@plugin.command("list")
@JSON
def plugin_list(as_json: bool) -> None:
    """List the plugins that are installed, and those that are switched off."""
    from perfuse.plugins.installed import allowed_plugins, survey

    rows = [row for _, row in survey(allowed_plugins())]
    if as_json:
        click.echo(json.dumps({"plugins": [dataclasses.asdict(row) for row in rows]}))
        return
    from perfuse.report.console import console, safe

    to = console()
    for row in rows:
        why = f"  {row.reason}. {row.remedy}" if row.reason else ""
        to.print(safe(f"{row.name:16} {row.state:12} {row.distribution} {row.version}{why}"))


@plugin.command("disable")
@click.argument("name")
def plugin_disable(name: str) -> None:
    """Switch a plugin off by its NAME, or by that of its distribution."""
    from perfuse.plugins.disabled import switch
    from perfuse.plugins.installed import entry_points

    say(f"{', '.join(switch(name, [e.key for e in entry_points()], on=False))} disabled")


@plugin.command("enable")
@click.argument("name")
def plugin_enable(name: str) -> None:
    """Switch a plugin on again."""
    from perfuse.plugins.disabled import switch
    from perfuse.plugins.installed import entry_points

    say(f"{', '.join(switch(name, [e.key for e in entry_points()], on=True))} enabled")


@plugin.command("new")
@click.argument("name")
@click.option("--output", type=FILE, default=Path(), help="Where to make the folder.")
def plugin_new(name: str, output: Path) -> None:
    """Write a plugin that runs as it is: the folder perfuse-NAME."""
    import shlex

    from perfuse.plugins.scaffold import new_plugin

    folder = new_plugin(name, output)
    say(f"{folder} is ready. Next:")
    for line in (f"cd {shlex.quote(str(folder))}", "pip install -e '.[test]'", "pytest"):
        say(f"  {line}")
