"""The command line. Options can come from a flag, the environment or ``perfuse.toml``."""

import atexit
import os
import signal
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from perfuse.cli.backends import backends, doctor
from perfuse.cli.bench import bench
from perfuse.cli.cache import cache
from perfuse.cli.calibrate import calibrate
from perfuse.cli.export import export
from perfuse.cli.generate import generate
from perfuse.cli.graphs import graphs
from perfuse.cli.inspect import inspect
from perfuse.cli.merge import merge
from perfuse.cli.plugins import plugin
from perfuse.cli.stopping import say_stopped, stoppable
from perfuse.cli.tune import tune
from perfuse.errors import BackendNotFoundError, ConfigError, InputError, PerfuseError, PluginError
from perfuse.plugins.importing import Stopped, guarded, said
from perfuse.report.console import forgive, safe, say
from perfuse.sources.files import shown

if TYPE_CHECKING:
    from perfuse.plugins.installed import Entry

__all__ = ["main"]


#: Set by whoever wants to see the traceback of an error that is a fault of perfuse or of a plugin.
_TRACEBACK = "PERFUSE_TRACEBACK"


class _Group(click.Group):
    """Prints every perfuse error as one line on standard error; the exit status tells its kind.

    Plugins add commands by entry points of the group ``perfuse.commands``:
    ``name = "module:command"``.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        from perfuse.plugins.installed import command_entries

        return sorted({*super().list_commands(ctx), *command_entries()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            from perfuse.plugins.installed import command_entries

            entry = command_entries().get(cmd_name)
            command = _load_command(entry) if entry is not None else None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands for --help, without importing a plugin."""
        from perfuse.plugins.installed import command_entries

        lines = {
            name: f"From {entry.distribution} {entry.version}: perfuse {name} --help."
            for name, entry in command_entries().items()
        }
        lines |= {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(lines.items()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program: what is on the command line, then the end of the process."""
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as exc:
            _wait_for_nobody(exc.code)
            raise

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            forgive(stream)
        with stoppable():
            # By itself click ends with 1 where a signal comes right before or after the command.
            run: partial[Any] = partial(super().main, *args, standalone_mode=False, **kwargs)
            if not standalone_mode:
                return run()
            try:
                status = run()
            except click.ClickException as exc:
                exc.show()
                status = exc.exit_code
            except (click.Abort, KeyboardInterrupt) as exc:
                status = _aborted(exc.__cause__ or exc)
        sys.exit(status or 0)

    def invoke(self, ctx: click.Context) -> None:
        try:
            _check_working_folder()
            super().invoke(ctx)
        except KeyboardInterrupt as exc:
            ctx.exit(_aborted(exc))
        except PerfuseError as exc:
            _complain(exc)
            wrong_line = isinstance(exc, InputError | ConfigError | BackendNotFoundError)
            ctx.exit(2 if wrong_line else 1)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as exc:  # where no message says what was being done
            named = isinstance(exc.filename, str | bytes)
            where = shown(exc.filename) if named else "the working folder, or a device"
            _complain(f"{where}: the system said: {exc.strerror or exc}. Is it there, and allowed?")
            ctx.exit(1)
        except MemoryError as exc:
            _complain(f"There is not enough memory: {exc or 'none is left'}. Ask for less at once.")
            ctx.exit(1)
        except click.exceptions.NoArgsIsHelpError:  # which shows the help
            raise
        except click.UsageError as exc:  # it quotes the command line
            raise click.UsageError(safe(exc.format_message()), exc.ctx) from exc
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BaseException as exc:  # SystemExit of a plugin, too, which would end it with 0
            if _TRACEBACK in os.environ:
                raise
            _complain(_unforeseen(exc))
            ctx.exit(1)


def _aborted(exc: BaseException) -> int:
    """Say that the user ended the command; returns its status."""
    if isinstance(exc, KeyboardInterrupt):
        say_stopped()
        # What a shell reports for a process ended by the signal.
        return 128 + (exc.signal if isinstance(exc, Stopped) else signal.SIGINT)
    say("Aborted!", err=True)  # a plugin's command asked whether to go on
    return 1


def _check_working_folder() -> None:
    """Raise where it was removed: engines look for their libraries from there, and end the process."""
    try:
        os.getcwd()
    except OSError as exc:
        raise PerfuseError(
            f"The working folder cannot be used: {exc.strerror}. Change to one that is there."
        ) from exc


def _unforeseen(exc: BaseException) -> str:
    """What is said of an error that is a fault of perfuse, of a plugin or of a library."""
    place = traceback.extract_tb(exc.__traceback__)[-1]
    return (
        f"{said(exc)} was raised in {shown(place.filename)}, line {place.lineno}, which nobody foresaw. "
        f"Tell the authors of that file, with the traceback: {_TRACEBACK}=1."
    )


def _wait_for_nobody(status: object) -> None:
    """End the process now if a plugin or a library left a thread that Python would wait for."""
    if not any(
        one for one in threading.enumerate() if not (one.daemon or one is threading.main_thread())
    ):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # it was closed
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _complain(message: object) -> None:
    """Say on one line what is wrong; the message may quote an engine or a file."""
    say(f"perfuse: {' '.join(str(message).splitlines())}", err=True)


def _load_command(entry: "Entry") -> click.Command:
    """Load a plugin's command.

    Raises:
        PluginError: the command cannot be imported, or is not a click command.
    """
    with guarded(
        lambda why: PluginError(
            f"Command {entry.name!r} was asked for; it is from {entry.distribution} "
            f"{entry.version}, and cannot be loaded: {why}. Update or uninstall that."
        )
    ):
        command = entry.point.load()
        if not isinstance(command, click.Command):
            raise TypeError(
                f"{entry.point.value} is a {type(command).__name__}, not a click command"
            )
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="perfuse")
def main() -> None:
    """Run diffusion pipelines on any hardware. Without --model, the bundled `shapes` model."""
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        _complain(f"warning: {message}")


for command in (
    generate,
    export,
    merge,
    inspect,
    bench,
    calibrate,
    tune,
    backends,
    doctor,
    plugin,
    cache,
    graphs,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
