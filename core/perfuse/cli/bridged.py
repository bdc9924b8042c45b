"""What the commands do for a pipeline that runs through Diffusers."""

import dataclasses
import json
import os
import secrets
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from perfuse.cli.common import load_ip_adapters, parts_of, read_options, weighted
from perfuse.cli.task_options import TaskOption
from perfuse.errors import InputError, NonFiniteError, PerfuseError
from perfuse.report.console import say
from perfuse.sources.files import check_folder, user_path

__all__ = ["check_native", "export", "generate", "has_diffusers", "inspect_model", "runs_bridged"]

#: Options of commands that only native pipelines have, and how they are written.
_NATIVE = {
    "options": "--option",
    "embeddings": "--embedding",
    "preset": "--fast, --faster or --fastest",
    "lora_folder": "--lora-folder",
    "memory": "--memory",
    "preview": "--preview",
    "preview_vae": "--preview-vae",
    "origin": "--from",
    "controlnet": "--controlnet",
    "adapter": "--adapter",
    "vae": "--vae",
    "scheduler_from": "--scheduler-from",
    "config": "--config",
    "tokenizer_from": "--tokenizer-from",
    "prediction_type": "--prediction-type",
    "sizes": "--size",
    "batch": "--batch",
    "dialect": "--dialect",
}
#: The samples a second of sound, by the config that says it.
_RATES = ("sampling_rate", "sample_rate", "audio_sampling_rate")


def has_diffusers() -> bool:
    """Whether Diffusers is installed."""
    from perfuse.bridge.opening import has_diffusers

    return has_diffusers()


def check_native(given: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for arguments of a pipeline's call, which only bridged ones have."""
    if given["arguments"]:
        raise InputError(
            f"--arg {given['arguments'][0]} was given; this model runs natively, and its task's inputs "
            "are options of their own: perfuse generate --help."
        )


def runs_bridged(given: Mapping[str, Any]) -> bool:
    """Whether a command's model was asked to run through Diffusers, or was saved from there."""
    from perfuse.bridge.opening import is_accelerated

    if given["bridged"] and given["model"] is None:
        raise InputError(
            "--bridged was given without a model; Diffusers opens a checkpoint: --model FOLDER."
        )
    return given["bridged"] or is_accelerated(given["model"])


def generate(
    given: Mapping[str, Any],
    flags: Collection[str],
    options: Sequence[TaskOption],
    *,
    usual: bool,
) -> None:
    """``perfuse generate``.

    Args:
        given: The values of its options.
        flags: Those that stood on the command line itself.
        options: The options that are inputs of tasks.
        usual: Whether the output is the default, which takes the suffix that fits.
    """
    output = given["output"]
    _check_output(output)
    pipe = opened(given, flags)
    pipe.set_progress_bar_config(disable=given["quiet"] or None)
    inputs = arguments(pipe, given["prompt"], given, flags, options)
    paths, seed = draw(pipe, inputs, output, seed=given.get("seed"), fps=given["fps"], usual=usual)
    _say(pipe, paths, seed, as_json=given["as_json"], quiet=given["quiet"])


def _check_output(path: Path) -> None:
    """Fail before the work, not after it, where nothing can be written."""
    if str(path) == "-":
        raise InputError("--output - was given; a bridged pipeline writes files. Name one.")
    check_folder("--output", path)
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; name a file in it, such as a.png.")


def opened(given: Mapping[str, Any], flags: Collection[str]) -> Any:
    """The pipeline of a command's options.

    Raises:
        InputError: an option was given that only native pipelines have.
    """
    from perfuse.bridge.opening import open_bridged
    from perfuse.run.precisions import read_precision

    _import_diffusers()
    if refused := [flag for name, flag in _NATIVE.items() if name in flags and given.get(name)]:
        raise InputError(
            f"{refused[0]} was given; {given['model']} runs through Diffusers, "
            "which has no such option. Leave it out, or set what it means in Python."
        )
    precision, schemes = read_precision(given["precision"])
    variant = {} if given["variant"] is None else {"variant": given["variant"]}
    pipe = open_bridged(
        given["model"],
        backend=given.get("backend"),
        precision=precision,
        revision=given["revision"],
        offline=given["offline"],
        options=read_options(given.get("options", ())),
        transforms=(*schemes, *given.get("transforms", ())),
        **variant,
        **parts_of(given["no_safety_checker"]),
    )
    if given.get("scheduler") is not None:
        import diffusers

        from perfuse.schedulers import scheduler_class

        kind = getattr(diffusers, scheduler_class(given["scheduler"]).__name__)
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    for name in ("tiling", "slicing"):
        if given.get(f"vae_{name}"):
            getattr(pipe.vae, f"enable_{name}")()
    _adapt(pipe, given.get("loras", ()), given.get("ip_adapters", ()))
    return pipe


def _adapt(pipe: Any, loras: Sequence[str], ip_adapters: Sequence[str]) -> None:
    """Load LoRAs and IP-Adapters by the pipeline's own methods.

    Raises:
        InputError: its class takes none, a weight is no number, or a file does not fit.
    """
    for flag, texts, method, load in (
        ("--lora", loras, "load_lora_weights", _load_loras),
        ("--ip-adapter", ip_adapters, "load_ip_adapter", load_ip_adapters),
    ):
        if not texts:
            continue
        if not hasattr(pipe, method):
            raise InputError(f"{flag} {texts[0]} was given; {type(pipe).__name__} takes none.")
        try:
            load(pipe, texts)
        except PerfuseError:
            raise
        except Exception as exc:  # Diffusers, PEFT, safetensors: they have no one root
            raise InputError(
                f"{flag} {texts[0]} was given; Diffusers raised {type(exc).__name__}: "
                f"{' '.join(str(exc).split())}"
            ) from exc


def _load_loras(pipe: Any, texts: Sequence[str]) -> None:
    """Load the LoRAs of ``--lora FILE[:WEIGHT]``; all of them count."""
    weights = {}
    for number, text in enumerate(texts):
        file, weight = weighted("--lora", text)
        path, name = Path(file).expanduser(), f"default_{number}"
        own = {"weight_name": path.name} if path.is_file() else {}
        if own and path.suffix != ".safetensors":
            raise InputError(
                f"--lora {file} was given; only .safetensors files are read, as others can run code."
            )
        where = path.parent if own else file
        pipe.load_lora_weights(str(where), adapter_name=name, use_safetensors=True, **own)
        weights[name] = weight
    pipe.set_adapters(list(weights), list(weights.values()))


def _import_diffusers() -> None:
    """Import Diffusers without what it says of packages that it does not find; later warnings are shown."""
    said = "DIFFUSERS_VERBOSITY" in os.environ
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from perfuse.bridge.accelerate import diffusers_pipeline

    diffusers_pipeline()
    from diffusers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
        if find_spec("transformers") is not None:  # which has a bar of its own
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()
    if not said:
        del os.environ["DIFFUSERS_VERBOSITY"]
        logging.set_verbosity_warning()


def arguments(
    pipe: Any,
    prompt: str | None,
    given: Mapping[str, Any],
    flags: Collection[str],
    options: Sequence[TaskOption],
) -> dict[str, Any]:
    """The arguments of the pipeline's call, by the names that its class has for them.

    Raises:
        InputError: an option or an argument was given that the class does not take.
    """
    from perfuse.bridge.calling import inputs_of

    takes = inputs_of(pipe)
    found: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    for one in options:
        value = given.get(one.parameter)
        if value in (None, ()):
            continue
        name = next((n for n in one.names if n in takes), None)
        if one.parameter == "seed":
            continue
        if name is not None:
            found[name] = _pictures(value) if one.kind is Path else value
        elif one.parameter in flags:
            raise _refused(one.flag, takes, pipe)
    for text in given["arguments"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--arg {text!r} was given; an argument is written NAME=VALUE.")
        found[name] = _value(value)
    if unknown := [name for name in found if name not in takes]:
        raise _refused(unknown[0], takes, pipe)
    return found


def _refused(name: str, takes: Collection[str], pipe: Any) -> InputError:
    return InputError(
        f"{name} was given; {type(pipe).__name__} takes {', '.join(takes)}. Give one of these: "
        "--arg NAME=VALUE."
    )


def _value(text: str) -> Any:
    """A value as JSON, a picture as ``@FILE``, or text."""
    if text.startswith("@"):
        return _picture(Path(text[1:]))
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pictures(value: Any) -> Any:
    """The picture of an option's file; a list for several."""
    each = [_picture(one) for one in (value if isinstance(value, tuple) else (value,))]
    return each if len(each) > 1 else each[0]


def _picture(path: Path) -> Any:
    from perfuse.arrays.pictures import open_picture

    return open_picture(path)


def draw(
    pipe: Any,
    inputs: Mapping[str, Any],
    output: Path,
    *,
    seed: int | None,
    fps: int,
    usual: bool,
) -> tuple[list[Path], int]:
    """Call a pipeline and write what it makes.

    Args:
        pipe: A pipeline of Diffusers.
        inputs: The arguments of its call.
        output: The file to write.
        seed: Of the noise; drawn where there is none.
        fps: Pictures a second of a video.
        usual: Whether ``output`` is the default, which takes the suffix that fits.

    Returns:
        The files, and the seed.

    Raises:
        InputError: the call refused its arguments, or what it made cannot be written there.
    """
    import torch

    from perfuse.bridge.calling import inputs_of
    from perfuse.bridge.outputs import SUFFIXES, made, written

    seed = secrets.randbelow(2**32) if seed is None else seed
    own: dict[str, Any] = {}
    if "generator" in inputs_of(pipe):
        own["generator"] = torch.Generator("cpu").manual_seed(seed)
    found = made(_called(pipe, {**inputs, **own}))
    paths: list[Path] = []
    for one in found:
        fitting = usual or (len(found) > 1 and output.suffix.lower() not in SUFFIXES[one.kind])
        path = output.with_suffix(SUFFIXES[one.kind][0]) if fitting else output
        paths += written(one, path, fps=fps, rate=_rate(pipe))
    return paths, seed


def _called(pipe: Any, inputs: Mapping[str, Any]) -> Any:
    from perfuse.bridge.calling import call_by_name

    try:
        with warnings.catch_warnings():
            # With it Diffusers writes a black picture.
            warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)
            return call_by_name(pipe, inputs)
    except PerfuseError:
        raise
    except RuntimeWarning as exc:
        raise NonFiniteError(
            f"{type(pipe).__name__} drew NaN or infinity: {exc}. Try --precision float32, or other "
            "settings."
        ) from exc
    except Exception as exc:  # a pipeline's own code: its errors have no one root
        last = traceback.extract_tb(exc.__traceback__)[-1]
        raise PerfuseError(
            f"{type(pipe).__name__} was called with {', '.join(inputs) or 'no argument'}; it raised "
            f"{type(exc).__name__} in {Path(last.filename).name}, line {last.lineno}: "
            f"{' '.join(str(exc).split()).rstrip('.')}. Other arguments are given as --arg NAME=VALUE."
        ) from exc


def _rate(pipe: Any) -> int:
    """The samples a second of the sound that a pipeline makes."""
    for name in ("vocoder", "vae"):
        part = getattr(pipe, name, None)
        for place in (part, getattr(part, "config", None)):
            for rate in _RATES:
                if isinstance(found := getattr(place, rate, None), int):
                    return found
    return 16_000


def _say(pipe: Any, paths: Sequence[Path], seed: int, *, as_json: bool, quiet: bool) -> None:
    """Print what was written, and what ran where."""
    rows = pipe.perfuse.report()
    if as_json:
        result = {
            "run": "bridged",
            "class": type(pipe).__name__,
            "files": [str(path) for path in paths],
            "seed": seed,
            "components": [dataclasses.asdict(row) for row in rows],
        }
        click.echo(json.dumps(result))
        return
    for path in paths:
        say(f"{path}  (seed {seed})")
    if not quiet:
        say(f"{type(pipe).__name__}, bridged", err=True)
        for row in rows:
            say(row, err=True)


def export(given: Mapping[str, Any], flags: Collection[str]) -> Path:
    """``perfuse export``: draw once, and write the pipeline with the graphs that this made.

    Raises:
        InputError: no backend loads the format, or an option of native pipelines was given.
    """
    from perfuse.bridge.calling import inputs_of
    from perfuse.plugins import host

    fitting = [name for name, one in host().backends().items() if given["format"] in one.formats]
    fitting.sort(key=lambda name: bool(host().backends()[name].interprets))
    if not fitting:
        raise InputError(
            f"--to {given['format']} was given; no backend runs that. perfuse backends lists them."
        )
    if given["switches"]:
        raise InputError(
            f"--option {given['switches'][0]} was given; exporters' options are for native models, and "
            f"{given['model']} runs through Diffusers. Leave it out."
        )
    folder: Path = given["output"]
    pipe = opened({**given, "backend": fitting[0]}, flags)
    takes = inputs_of(pipe)
    usual: dict[str, Any] = {"prompt": "a picture", "num_inference_steps": 2}
    draws = {name: value for name, value in usual.items() if name in takes}
    _called(pipe, draws | arguments(pipe, None, given, flags, _SIZES))
    pipe.save_perfuse(folder)
    return folder


#: The options of ``export`` that are arguments of a pipeline's call, too.
_SIZES = tuple(
    TaskOption(flag=f"--{name}", names=(name,), kind=int, help="") for name in ("height", "width")
)


def inspect_model(given: Mapping[str, Any]) -> dict[str, Any]:
    """``perfuse inspect``: a model's class, and its components by name."""
    from perfuse.bridge.opening import index_of

    model, revision, offline = given["model"], given["revision"], given["offline"]
    index, folder = index_of(model, revision, offline, {}), user_path(model)
    components = {
        name: {
            "library": library,
            "class": kind,
            "weight_bytes": sum(p.stat().st_size for p in (folder / name).glob("*.safetensors")),
        }
        for name, library, kind in _entries(index)
    }
    named = index.get("_class_name")
    return {"model": model, "run": "bridged", "class_name": named, "components": components}


def _entries(index: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    """Each component's name, library and class; a modular pipeline's stand beside where it comes from."""
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) < 2:
            continue
        origin = value[2] if len(value) > 2 and isinstance(value[2], dict) else {}
        library, kind = (
            value[:2] if value[1] is not None else origin.get("type_hint") or (None, None)
        )
        if kind is not None:
            yield name, library, kind
