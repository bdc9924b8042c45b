"""``perfuse backends`` and ``perfuse doctor``."""

import json

import click

from perfuse.cli.common import JSON, Number

__all__ = ["backends", "doctor"]


@click.command()
@click.option("--devices/--no-devices", default=True, help="Ask the engines for their devices.")
@click.option("--refresh", is_flag=True, help="Ask again, whatever is kept of earlier answers.")
@JSON
def backends(devices: bool, refresh: bool, as_json: bool) -> None:
    """List backends, the devices each one sees, and why the rest does not run.

    What an engine answered is kept until a version, a driver or the environment changes.
    """
    from perfuse.plugins.installed import allowed_plugins, check_rows, is_strict

    if devices:
        from perfuse.plugins.doctor import examine

        found = examine(thorough=False, refresh=refresh)
    else:
        from perfuse.plugins.host import PluginHost

        found = PluginHost(allowed_plugins(), again="all" if refresh else "failed").listing()
    if is_strict():
        check_rows(found["backends"])
    if as_json:
        click.echo(json.dumps(found))
        return
    from perfuse.report.backends import print_backends

    print_backends(found["backends"])


@click.command()
@click.option("--backend", "names", multiple=True, help="One to look at; all by default.")
@click.option("--timeout", type=Number(min=0, min_open=True), help="Seconds for each.")
@JSON
@click.pass_context
def doctor(
    ctx: click.Context, names: tuple[str, ...], timeout: float | None, as_json: bool
) -> None:
    """Look at every backend in a process of its own; exit with 1 if one is broken or crashes."""
    from perfuse.plugins.doctor import TIMEOUT, examine
    from perfuse.plugins.installed import check_rows, is_strict

    found = examine(names=names, timeout=timeout if timeout is not None else TIMEOUT)
    rows = found["backends"]
    if as_json:
        click.echo(json.dumps(found))
    else:
        from perfuse.report.backends import print_examined

        print_examined(rows, found["plugins"])
    if is_strict():
        check_rows(rows)
    if any(row["state"] in ("broken", "crashed") for row in rows):
        ctx.exit(1)
