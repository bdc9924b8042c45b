"""What several commands share."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from perfuse.errors import InputError
from perfuse.sources.files import user_path

if TYPE_CHECKING:
    from perfuse.run.pipeline import DiffusionPipeline

__all__ = [
    "ARGUMENT",
    "BRIDGED",
    "FILE",
    "IP_ADAPTER",
    "JSON",
    "LORA",
    "NO_CHECKER",
    "QUIET",
    "TRANSFORM",
    "Number",
    "added_to",
    "check_own_parts",
    "load_ip_adapters",
    "load_loras",
    "model_of",
    "model_options",
    "option",
    "parts_of",
    "preset_options",
    "read_options",
    "size_text",
    "variable",
    "weighted",
    "with_model",
]

#: For every command that opens a model: see ``perfuse.cli.bridged``.
BRIDGED = click.option(
    "--bridged", is_flag=True, help="Run Diffusers' own pipeline, even where perfuse has its own."
)
ARGUMENT = click.option(
    "--arg",
    "arguments",
    metavar="NAME=VALUE",
    multiple=True,
    help="For a bridged pipeline: an argument of its call, as JSON, text or @PICTURE.",
)

#: For every command that opens a model to draw with, or to export.
LORA = click.option(
    "--lora",
    "loras",
    metavar="FILE[:WEIGHT]",
    multiple=True,
    help="A LoRA, its folder or Hub id, and how much it counts; several times for several.",
)
IP_ADAPTER = click.option(
    "--ip-adapter",
    "ip_adapters",
    metavar="FILE[:SCALE]",
    multiple=True,
    help="An IP-Adapter, a file or OWNER/NAME/FOLDER/FILE on the Hub; several times for several.",
)


class _File(click.ParamType):  # type: ignore[type-arg]  # only of newer versions
    """The path of a file or folder; whether there is one, the command says."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        return user_path(value)


FILE = _File()


class Number(click.FloatRange):
    """A number of a range, which Not-a-Number is not: every comparison with it fails."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return found


_F = TypeVar("_F", bound=Callable[..., Any])

#: For every command that prints: output for programs.
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
#: For every command that runs for long and reports progress on standard error.
QUIET = click.option("--quiet", is_flag=True, help="Say nothing while working but warnings.")
TRANSFORM = click.option(
    "--transform", "transforms", multiple=True, help="An acceleration that a plugin brings."
)

_PRESETS = {
    "fast": "Transforms that leave out work and lose nothing a person sees, as measured.",
    "faster": "Transforms that leave out more; pictures change a little.",
    "fastest": "Transforms that leave out as much as is measured to be bearable.",
}


def preset_options(command: _F) -> _F:
    """For every command that draws: ``--fast``, ``--faster`` and ``--fastest``."""
    for name, told in reversed(_PRESETS.items()):
        command = click.option(f"--{name}", "preset", flag_value=name, help=told)(command)
    return command


#: For every command that opens a model to draw with, or to export.
NO_CHECKER = click.option(
    "--no-safety-checker",
    is_flag=True,
    help="Without the model's safety checker, which blackens pictures that it objects to.",
)


def option(name: str, **settings: Any) -> Callable[[_F], _F]:
    """An option that can also be set by an environment variable, ``PERFUSE_NAME``."""
    return click.option(name, envvar=variable(name), **settings)


def variable(name: str) -> str:
    """The environment variable of an option: ``PERFUSE_NUM_IMAGES``."""
    return "PERFUSE_" + name.lstrip("-").split("/")[0].replace("-", "_").upper()


_MODEL = (
    option("--model", help="A checkpoint's folder or file, an exported folder or a Hub id."),
    option("--revision", help="Branch, tag or commit of a Hub repository."),
    option("--variant", help="Weight files to prefer, for example fp16."),
    option("--scheduler-from", help="A model or file to take the scheduler from."),
    # Its variable would be the folder of perfuse's own settings.
    click.option(
        "--config", help="For a single file: a checkpoint that has what the file has not."
    ),
    option("--tokenizer-from", help="For a single file: a folder with CLIP's tokenizer."),
    option("--prediction-type", help="For a single file: epsilon or v_prediction."),
    option("--offline/--online", default=None, help="Use only what the Hub's cache holds."),
    click.option(
        "--controlnet",
        multiple=True,
        help="A ControlNet to draw with: its folder or Hub id; several times for several.",
    ),
    click.option(
        "--adapter",
        multiple=True,
        help="A T2I-Adapter to draw with: its folder or Hub id; several times for several.",
    ),
    option("--vae", help="Another autoencoder, such as TAESD: its folder, file or Hub id."),
)


#: Components that these options add to the model, or put in place of its own.
_ADDED = ("controlnet", "adapter", "vae")
_MODEL_NAMES = (
    "model",
    "revision",
    "variant",
    "scheduler_from",
    "config",
    "tokenizer_from",
    "prediction_type",
    "offline",
)


def model_options(command: _F) -> _F:
    """The options that name a model; ``model_of`` reads them."""
    for one in reversed(_MODEL):
        command = one(command)
    return command


def model_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that open a model, among a command's options, by their Python argument names."""
    return {name: given[name] for name in _MODEL_NAMES if name in given}


def with_model(options: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """A command's option values, with a model that was given without ``--model``.

    Raises:
        InputError: one was given with it, too.
    """
    if model is None:
        return dict(options)
    source = click.get_current_context().get_parameter_source("model")
    if source is ParameterSource.COMMANDLINE:
        raise InputError(f"{model} and --model {options['model']} were given. Give one model.")
    return {**options, "model": model}


def parts_of(no_safety_checker: bool) -> dict[str, Any]:
    """The components that a command line takes out, as arguments of ``from_pretrained``."""
    return {"safety_checker": None} if no_safety_checker else {}


def added_to(given: Mapping[str, Any]) -> dict[str, Any]:
    """A command's option values that add components to the model, or take the place of its own."""
    chosen = {name: given[name] for name in _ADDED if given[name]}
    return {n: value if isinstance(value, str) else list(value) for n, value in chosen.items()}


def check_own_parts(given: Mapping[str, Any], command: str, *, but: str | None = None) -> None:
    """Raise ``InputError`` for options that add components to the model, or take the place of its own.

    Args:
        given: The command's option values.
        command: What takes the model as it is.
        but: One of these options that the command has a use for.
    """
    for name in added_to(given):
        if name != but:
            raise InputError(
                f"--{name} was given; {command} takes the model as it is. Leave it out."
            )


def load_loras(pipe: "DiffusionPipeline", texts: Sequence[str]) -> dict[str, float]:
    """Load the LoRAs of ``--lora FILE[:WEIGHT]`` into a pipeline; all of them count.

    Returns:
        How much each counts, by its name in the pipeline.

    Raises:
        InputError: a weight is no number, or a file does not fit.
    """
    weights = {}
    for number, text in enumerate(texts):
        file, weight = weighted("--lora", text)
        pipe.load_lora_weights(file, adapter_name=f"default_{number}")
        weights[f"default_{number}"] = weight
    if texts:
        pipe.set_adapters(list(weights), list(weights.values()))
    return weights


def load_ip_adapters(pipe: "DiffusionPipeline", texts: Sequence[str]) -> None:
    """Load the IP-Adapters of ``--ip-adapter FILE[:SCALE]`` into a pipeline.

    Raises:
        InputError: a scale is no number, or a file does not fit.
        WeightsError: a file is missing, damaged, a pickle, or no IP-Adapter.
    """
    if not texts:
        return
    files, scales = zip(*(weighted("--ip-adapter", text) for text in texts), strict=True)
    models, folders, names = zip(*map(_in_model, files), strict=True)
    pipe.load_ip_adapter(models, subfolder=folders, weight_name=names)
    pipe.set_ip_adapter_scale(list(scales) if len(scales) > 1 else scales[0])


def _in_model(file: str) -> tuple[str, str, str]:
    """The folder or Hub id that a file is in, the folder in that, and the file's name."""
    from perfuse.sources.hub import is_hub_id

    path, parts = user_path(file), file.split("/")
    if not path.exists() and len(parts) > 2 and is_hub_id("/".join(parts[:2])):
        return "/".join(parts[:2]), "/".join(parts[2:-1]), parts[-1]
    return str(path.parent), "", path.name


def weighted(flag: str, text: str) -> tuple[str, float]:
    """The file and the weight of ``FILE[:WEIGHT]``."""
    file, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists() or len(file) < 2:  # one letter is a drive
        return text, 1.0
    try:
        return file, float(weight)
    except ValueError as exc:
        raise InputError(
            f"{flag} {text!r} was given; {weight!r} is no number. Write FILE, or FILE:NUMBER."
        ) from exc


def read_options(options: tuple[str, ...]) -> dict[str, str]:
    """Parse options written NAME=VALUE.

    Raises:
        InputError: one is written otherwise.
    """
    pairs = [option.partition("=") for option in options]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise InputError(f"--option {wrong[0]!r} was given; an option is written NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def size_text(count: int) -> str:
    """A number of bytes as text: ``12.3 MB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
