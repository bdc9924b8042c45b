"""The command line. Options can come from a flag, the environment or ``perfuse.toml``."""

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from perfuse.cli.backends import backends, doctor
from perfuse.cli.cache import cache
from perfuse.cli.common import JSON, size_text
from perfuse.cli.plugins import plugin
from perfuse.errors import BackendNotFoundError, ConfigError, InputError, PerfuseError, PluginError

if TYPE_CHECKING:
    from perfuse.plugins.installed import Entry
    from perfuse.sources.artifact import Artifact
    from perfuse.sources.checkpoint import Checkpoint

__all__ = ["main"]

_F = TypeVar("_F", bound=Callable[..., Any])

#: What ``perfuse.toml`` may set, and the type of each.
_SETTINGS: dict[str, type] = {
    "model": str,
    "backend": str,
    "precision": str,
    "scheduler": str,
    "scheduler_from": str,
    "steps": int,
    "guidance": float,
    "seed": int,
    "height": int,
    "width": int,
    "num_images": int,
    "negative_prompt": str,
    "revision": str,
    "variant": str,
    "offline": bool,
}


class _Group(click.Group):
    """Ends every error of ours in one line on standard error, and a status that tells its kind.

    Further commands come from the entry points of ``perfuse.commands``: ``name = "module:command"``.
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
        """The list for --help, for which no plugin is imported."""
        from perfuse.plugins.installed import command_entries

        said = {
            name: f"From {entry.distribution} {entry.version}: perfuse {name} --help."
            for name, entry in command_entries().items()
        }
        said |= {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(said.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("perfuse: interrupted.", err=True)
            ctx.exit(130)  # what a shell gives for it
        except PerfuseError as exc:
            click.echo(f"perfuse: {exc}", err=True)
            wrong_line = isinstance(exc, InputError | ConfigError | BackendNotFoundError)
            ctx.exit(2 if wrong_line else 1)


def _load_command(entry: "Entry") -> click.Command:
    """A plugin's command.

    Raises:
        PluginError: it cannot be imported, or is no command.
    """
    try:
        command = entry.point.load()
        if not isinstance(command, click.Command):
            raise TypeError(
                f"{entry.point.value} is a {type(command).__name__}, not a click command"
            )
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        why = f"{type(exc).__name__}: {exc}".splitlines()[0].removesuffix(": ")
        raise PluginError(
            f"Command {entry.name!r} was asked for; it is from {entry.distribution} "
            f"{entry.version}, and cannot be loaded: {why}. Update or uninstall that."
        ) from exc
    return command


class _Configured(click.Command):
    """A command whose options can come from ``perfuse.toml`` too."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if not {"-h", "--help"} & set(args):  # help is there whatever the file holds
            from perfuse.cli.settings import read_settings

            extra["default_map"] = read_settings(Path.cwd(), _SETTINGS)
        return super().make_context(info_name, args, parent, **extra)


def _option(name: str, **settings: Any) -> Callable[[_F], _F]:
    """An option that the environment can give too, as ``PERFUSE_NAME``."""
    variable = "PERFUSE_" + name.lstrip("-").split("/")[0].replace("-", "_").upper()
    return click.option(name, envvar=variable, **settings)


_TRANSFORM = click.option(
    "--transform", "transforms", multiple=True, help="An acceleration that a plugin brings."
)


def _model_options(command: _F) -> _F:
    for option in (
        _option("--offline/--online", default=None, help="Use only what the Hub's cache holds."),
        _option("--scheduler-from", help="A model or file to take the scheduler from."),
        _option("--variant", help="Weight files to prefer, for example fp16."),
        _option("--revision", help="Branch, tag or commit of a Hub repository."),
        _option("--model", help="A checkpoint's folder, an exported folder or a Hub id."),
    ):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="perfuse")
def main() -> None:
    """Run diffusion pipelines on any hardware. Without --model, the bundled `shapes` model."""
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        click.echo(f"perfuse: warning: {message}", err=True)


@main.command(cls=_Configured)
@click.argument("prompt", required=False)
@_model_options
@_option("--backend", help="BACKEND[:DEVICE], or one a component: unet=openvino:GPU,torch:cpu.")
@_option("--precision", help="float32, float16 or bfloat16.")
@_option("--scheduler", help="ddim, euler, dpm++, unipc, … instead of the checkpoint's.")
@_option("--steps", type=int, help="Denoising steps.")
@_option("--guidance", type=float, help="Guidance scale; 1 or less draws without it.")
@_option("--guidance-rescale", type=float, help="0 to 1, against overexposure.")
@_option("--negative-prompt", help="What not to draw.")
@_option("--seed", type=int, help="The same seed draws the same picture on every backend.")
@_option("--height", type=int, help="In pixels.")
@_option("--width", type=int, help="In pixels.")
@_option("--num-images", type=int, default=1, show_default=True, help="Pictures to draw.")
@click.option("--option", "options", multiple=True, help="A backend's switch: compile=true.")
@_TRANSFORM
@click.option("--output", type=click.Path(path_type=Path), default=Path("picture.png"))
@JSON
def generate(
    prompt: str | None,
    model: str | None,
    revision: str | None,
    variant: str | None,
    offline: bool | None,
    scheduler_from: str | None,
    backend: str | None,
    precision: str | None,
    scheduler: str | None,
    options: tuple[str, ...],
    transforms: tuple[str, ...],
    num_images: int,
    output: Path,
    as_json: bool,
    **inputs: Any,
) -> None:
    """Draw pictures, from PROMPT where the model takes one."""
    from perfuse.run.pipeline import DiffusionPipeline

    _check_output(output)
    with _progress() as watch:
        pipe = DiffusionPipeline.from_pretrained(
            model,
            backend=backend,
            precision=precision,
            revision=revision,
            variant=variant,
            offline=offline,
            options=_read_options(options),
            transforms=transforms,
            scheduler_from=scheduler_from,
        )
        if scheduler is not None:
            from perfuse.schedulers import scheduler_class

            pipe.scheduler = scheduler_class(scheduler).from_config(pipe.scheduler.config)
        if num_images < 1:
            raise InputError(f"--num-images must be at least 1; got {num_images}.")
        given = _task_inputs(pipe.task.name, prompt, num_images, inputs)
        state: Any = {}
        for event in pipe.stream(**given):
            watch(event.step, event.done, event.total)
            state = event.state
    paths = _save(state["images"], output)
    seeds = list(state["seeds"])
    if as_json:
        reports = {name: program.report() for name, program in pipe._programs.items()}
        result = {
            "pictures": [str(path) for path in paths],
            "seeds": seeds,
            "model": str(model) if model is not None else "shapes",
            "prompt": prompt,
            "components": {
                name: {
                    "target": str(pipe.placement[name]),
                    "device": report.device,
                    "precision": report.precision,
                    "engine": report.engine,
                    "fallbacks": list(report.fallbacks),
                }
                for name, report in reports.items()
            },
        }
        click.echo(json.dumps(result))
    else:
        for path in paths:
            click.echo(f"{path}  (seed {', '.join(str(seed) for seed in seeds)})")


def _task_inputs(
    task: str, prompt: str | None, num_images: int, inputs: dict[str, Any]
) -> dict[str, Any]:
    """The command line's options under the names that the task gives them."""
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    given = {names.get(name, name): v for name, v in inputs.items() if v is not None}
    if task == "unconditional":
        if prompt is not None:
            raise InputError(
                f"The prompt {prompt!r} was given; this model draws without one. Leave it out."
            )
        return {**given, "batch_size": num_images}
    if prompt is None:
        raise InputError('This model draws from words: perfuse generate "a red circle".')
    return {**given, "prompt": prompt, "num_images_per_prompt": num_images}


def _read_options(options: tuple[str, ...]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise InputError(f"--option {wrong[0]!r} was given; an option is written NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _read_size(text: str) -> tuple[int, int]:
    height, by, width = text.lower().partition("x")
    if not by or not height.isdecimal() or not width.isdecimal():
        raise InputError(f"--size {text!r} was given; a size is written HEIGHTxWIDTH: 512x768.")
    return int(height), int(width)


def _check_output(output: Path) -> None:
    """Say before the work, not after it, that the picture cannot be written."""
    folder = output.parent
    if not folder.is_dir():
        raise InputError(f"--output {output} was asked for; there is no folder {folder}. Make it.")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; name a file in it, such as a.png.")


def _save(images: list[Any], output: Path) -> list[Path]:
    from perfuse.arrays.pictures import save_png

    paths = [output]
    if len(images) > 1:
        paths = [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(len(images))]
    try:
        return [save_png(image, path) for image, path in zip(images, paths, strict=True)]
    except InputError as exc:  # the line was checked before the work: now it is the disk
        raise PerfuseError(str(exc)) from exc


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda step, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from perfuse.run.export import reporting

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        bar = bars.add_task("Preparing", total=None)

        def watch(step: str, done: int, total: int) -> None:
            if total > 1:
                bars.update(bar, description=step, completed=done, total=total)

        def report(message: str) -> None:
            bars.update(bar, description=message)

        with reporting(report):
            yield watch


@main.command(cls=_Configured)
@_model_options
@click.option("--to", "format", required=True, help="onnx, openvino, or another exporter's format.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A new folder.")
@_option("--precision", help="float32 or float16.")
@_option("--height", type=int, help="Fix the height in pixels; by default any size.")
@_option("--width", type=int, help="Fix the width in pixels.")
@_TRANSFORM
@click.option("--batch", type=int, help="Fix the batch size of every component.")
@click.option("--size", "sizes", multiple=True, help="HEIGHTxWIDTH, several times for several.")
@click.option("--option", "options", multiple=True, help="An exporter's switch: palettize=6.")
@click.option("--dialect", help="Whose names and layout: apple. The same as --option dialect=….")
@JSON
def export(
    model: str | None,
    revision: str | None,
    variant: str | None,
    offline: bool | None,
    scheduler_from: str | None,
    format: str,
    output: Path,
    precision: str | None,
    height: int | None,
    width: int | None,
    transforms: tuple[str, ...],
    batch: int | None,
    sizes: tuple[str, ...],
    options: tuple[str, ...],
    dialect: str | None,
    as_json: bool,
) -> None:
    """Write a model in an engine's format, to run without torch."""
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.sources.manifest import Manifest

    with _progress():
        pipe = DiffusionPipeline.from_pretrained(
            model,
            precision=precision,
            revision=revision,
            variant=variant,
            offline=offline,
            transforms=transforms,
            scheduler_from=scheduler_from,
        )
        folder = pipe.export(
            output,
            to=format,
            height=height,
            width=width,
            batch=batch,
            sizes=[_read_size(size) for size in sizes],
            options=_read_options(options) | ({"dialect": dialect} if dialect else {}),
        )
    files = Manifest.read(folder).files
    size = sum(int(entry["size"]) for entry in files.values())
    if as_json:
        click.echo(json.dumps({"folder": str(output), "files": len(files), "bytes": size}))
    else:
        click.echo(f"{output}  ({len(files)} files, {size_text(size)})")


@main.command(cls=_Configured)
@_model_options
@click.option("--verify", is_flag=True, help="Check the SHA-256 of every exported file.")
@click.option("--for", "target", help="Report what a target would say; it need not be here.")
@_option("--precision", help="With --for: float32, float16 or bfloat16.")
@_option("--height", type=int, help="With --for: the height in pixels, fixed.")
@_option("--width", type=int, help="With --for: the width in pixels, fixed.")
@click.option("--batch", type=int, help="With --for: the batch, fixed.")
@click.option("--memory", help="With --for: the device's memory, as 8GB.")
@JSON
@click.pass_context
def inspect(
    ctx: click.Context,
    model: str | None,
    revision: str | None,
    variant: str | None,
    offline: bool | None,
    scheduler_from: str | None,
    verify: bool,
    target: str | None,
    precision: str | None,
    height: int | None,
    width: int | None,
    batch: int | None,
    memory: str | None,
    as_json: bool,
) -> None:
    """Print a model's spec: components, signatures, sizes, schedule, tasks. Loads no weights.

    With --for, say what a target would make of each component, without the target; exit with 1 if
    one would not run.
    """
    from perfuse.report.tables import print_spec, weight_sizes
    from perfuse.sources.artifact import Artifact
    from perfuse.sources.opening import open_model

    source = open_model(
        model,
        revision=revision,
        variant=variant,
        offline=offline,
        scheduler_from=scheduler_from,
    )
    if verify:
        if not isinstance(source, Artifact):
            raise InputError(f"--verify checks an exported folder; {source.model} is a checkpoint.")
        source.manifest.verify(source.path)
    if target is not None:
        asked = {"precision": precision, "height": height, "width": width, "batch": batch}
        ctx.exit(_inspect_for(source, target, memory, as_json, asked))
    if as_json:
        data = {
            "model": source.model,
            **source.spec.to_dict(),
            "weight_bytes": weight_sizes(source),
        }
        if isinstance(source, Artifact):
            components = source.manifest.components
            data["exported"] = {name: c.to_dict() for name, c in components.items()}
        click.echo(json.dumps(data))
        return
    print_spec(source)


def _inspect_for(
    source: "Checkpoint | Artifact",
    text: str,
    memory: str | None,
    as_json: bool,
    asked: Mapping[str, Any],
) -> int:
    """Print the portability report; 1 where a component would not run."""
    from perfuse.contract.target import Target
    from perfuse.report.portability import limits_of, read_bytes, report, verdicts

    target = Target.parse(text)
    name, limits = limits_of(target)
    executed = limits.executed if limits is not None else ""
    room = read_bytes(memory) if memory is not None else None
    with _progress():
        findings = report(source, target, memory=room, **asked)
    found = verdicts(findings)
    if as_json:
        result = {
            "model": source.model,
            "target": name,
            "executed": executed,
            "verdicts": found,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        click.echo(json.dumps(result))
    else:
        from perfuse.report.tables import print_findings

        print_findings(source.model, name, findings, executed)
    return int("does not run" in found.values())


for command in (backends, doctor, plugin, cache):
    main.add_command(command)


if __name__ == "__main__":
    main()
