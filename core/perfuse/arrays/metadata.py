"""What a picture was drawn from, kept in its file, so that the same picture can be drawn again.

A PNG carries it twice: as JSON under ``perfuse``, which holds everything, and as text under
``parameters``, as the web UI of AUTOMATIC1111 writes it and other programs read it. A PIL image
carries the same two texts in ``image.info``; Pillow writes them where it is told to:

    image.save("picture.png", pnginfo=png_info(image))

A file may come from anybody, so what is read is checked: every field, its type and its size.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from perfuse.arrays.reading import picture_file
from perfuse.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

__all__ = ["Metadata", "Ran", "attach", "of", "parameters", "png_info", "read"]

#: The names of the two texts.
CHUNK, PARAMETERS = "perfuse", "parameters"
#: Of the fields below. One more wherever a reader of an earlier one would go wrong.
VERSION = 1

Value: TypeAlias = str | int | float | bool | None | list["Value"]

_LONGEST = 1 << 18  # characters of the JSON: prompts are long, and no more than that
_TEXT = 1 << 16
_MANY = 4096


@dataclass(frozen=True, kw_only=True)
class Ran:
    """Where a component ran: the target that was asked for, and what its program reported."""

    target: str
    device: str
    precision: str
    engine: str


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What is needed to draw a picture again."""

    #: A folder or a Hub id as it was named, or a bundled model's name, as ``shapes``.
    model: str
    #: The commit of a Hub repository, and the variant of its weights.
    revision: str | None
    variant: str | None
    task: str
    #: The inputs of the task, defaults included, under their names in Python.
    inputs: Mapping[str, Value]
    #: One for all pictures of the call or one each; ``None`` for a generator of the caller's.
    seeds: tuple[int | None, ...]
    #: Which picture of the call this is, from 0, and of how many.
    picture: int
    pictures: int
    #: Height and width in pixels.
    size: tuple[int, int]
    #: The scheduler's config, with its ``_class_name``.
    scheduler: Mapping[str, Any]
    #: As ``--backend`` takes it.
    backend: str
    #: The precision that was asked for.
    precision: str | None
    #: The backends' switches.
    options: Mapping[str, str]
    transforms: tuple[str, ...]
    #: Those of the transforms that change pictures by more than rounding.
    approximate: tuple[str, ...] = ()
    components: Mapping[str, Ran]
    #: Adapters, as LoRAs: ``file``, ``weight`` and ``fingerprint`` of each.
    loras: tuple[Mapping[str, Any], ...] = ()
    #: Inputs that were given and cannot be written down, such as ``latents``.
    unrecorded: tuple[str, ...]
    #: Components that the caller put in the place of the model's own.
    replaced: tuple[str, ...]
    #: Of perfuse, Python and numpy; those of the engines are with the components.
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """One object in ASCII, which ``from_json`` reads."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, where: str = "The text") -> "Metadata":
        """Read what ``to_json`` wrote; nothing of it is believed before it is checked.

        Args:
            text: One JSON object.
            where: What it was found in, for the message.

        Raises:
            InputError: it is no such object, or a field is missing, unknown, or not of its type.
        """
        data = _parsed(text, where)
        if data.get("version") != VERSION:
            raise InputError(
                f"{where} was to be read; its metadata has version {data.get('version')!r}, and "
                f"this perfuse reads version {VERSION}. Use the perfuse that wrote it."
            )
        fields = {name: value for name, value in data.items() if name != "version"}
        for name in ("loras", "approximate"):  # which pictures of before there were any have not
            fields.setdefault(name, [])
        _check(fields, where)
        for name in _SEVERAL:
            fields[name] = tuple(fields[name])
        ran = {name: Ran(**one) for name, one in fields.pop("components").items()}
        return cls(**fields, components=ran)


def _parsed(text: str, where: str) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    try:
        if len(text) > _LONGEST:
            raise ValueError(f"{len(text)} characters are more than {_LONGEST}")
        data = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as exc:
        raise InputError(
            f"{where} was to be read; its metadata is damaged: {exc}. Draw the picture anew."
        ) from exc
    if not isinstance(data, dict):
        raise InputError(
            f"{where} was to be read; its metadata is {_short(data)}, and not an object. Draw the "
            "picture anew."
        )
    return data


# --- the schema -------------------------------------------------------------------------------

_Test: TypeAlias = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int) or _is_text(value)


def _is_value(value: Any) -> bool:
    return _is_scalar(value) or _list_of(_is_scalar)(value)


def _list_of(test: _Test) -> _Test:
    return lambda value: (
        isinstance(value, list) and len(value) <= _MANY and all(test(one) for one in value)
    )


def _table_of(test: _Test) -> _Test:
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= _MANY
        and all(_is_text(name) and test(one) for name, one in value.items())
    )


def _or_none(test: _Test) -> _Test:
    return lambda value: value is None or test(value)


def _is_seed(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_count(one) for one in value)


def _is_ran(value: Any) -> bool:
    names = {field.name for field in dataclasses.fields(Ran)}
    return _table_of(_is_text)(value) and set(value) == names


def _is_lora(value: Any) -> bool:
    tests = {"file": _is_text, "weight": _is_scalar, "fingerprint": _is_text}
    return (
        isinstance(value, dict)
        and value.keys() == tests.keys()
        and all(test(value[name]) for name, test in tests.items())
        and isinstance(value["weight"], int | float)
    )


_TEXTS = _list_of(_is_text)
#: What each field is, in words and as a test.
_SCHEMA: Mapping[str, tuple[str, _Test]] = {
    "model": ("text", _is_text),
    "revision": ("text or null", _or_none(_is_text)),
    "variant": ("text or null", _or_none(_is_text)),
    "task": ("text", _is_text),
    "inputs": ("an object of texts, numbers, and lists of them", _table_of(_is_value)),
    "seeds": ("a list of whole numbers", _list_of(_is_seed)),
    "picture": ("a whole number", _is_count),
    "pictures": ("a whole number", _is_count),
    "size": ("two whole numbers", _is_size),
    "scheduler": ("an object of texts, numbers, and lists of them", _table_of(_is_value)),
    "backend": ("text", _is_text),
    "precision": ("text or null", _or_none(_is_text)),
    "options": ("an object of texts", _table_of(_is_text)),
    "transforms": ("a list of texts", _TEXTS),
    "approximate": ("a list of texts", _TEXTS),
    "components": ("an object of what each component ran on", _table_of(_is_ran)),
    "loras": ("a list of files, each with its weight and fingerprint", _list_of(_is_lora)),
    "unrecorded": ("a list of texts", _TEXTS),
    "replaced": ("a list of texts", _TEXTS),
    "versions": ("an object of texts", _table_of(_is_text)),
}


_SEVERAL = ("seeds", "size", "transforms", "approximate", "loras", "unrecorded", "replaced")


def _check(data: Mapping[str, Any], where: str) -> None:
    unknown = [name for name in data if name not in _SCHEMA]
    missing = [name for name in _SCHEMA if name not in data]
    wrong = [name for name, (_, fits) in _SCHEMA.items() if name in data and not fits(data[name])]
    if unknown:
        found = f"it has {_short(unknown[0])}, which this perfuse does not know"
    elif missing:
        found = f"it has no {missing[0]}"
    elif wrong:
        found = f"its {wrong[0]} is not {_SCHEMA[wrong[0]][0]}: {_short(data[wrong[0]])}"
    elif data["picture"] >= data["pictures"]:
        found = f"it is picture {data['picture']} of {data['pictures']}"
    else:
        return
    raise InputError(
        f"{where} was to be read; its metadata cannot be used: {found}. Use the perfuse that wrote "
        "it, or draw the picture anew."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- in a picture -----------------------------------------------------------------------------


def attach(image: "Image", metadata: Metadata) -> None:
    """Have a PIL image carry its metadata; ``png_info`` and ``save_png`` write it."""
    image.info[CHUNK] = metadata.to_json()
    image.info[PARAMETERS] = parameters(metadata)


def of(image: "Image") -> Metadata:
    """The metadata that a PIL image carries.

    Raises:
        InputError: it carries none, or it cannot be used.
    """
    text = image.info.get(CHUNK)
    if not isinstance(text, str):
        raise InputError(
            "A picture was asked what it was drawn from; it carries no metadata of perfuse. Give "
            "one that a pipeline returned, or that was opened from a PNG of perfuse."
        )
    return Metadata.from_json(text, where="The picture")


def png_info(image: "Image") -> "PngInfo":
    """What an image carries, as Pillow's ``save`` takes it."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name in (PARAMETERS, CHUNK):
        text = image.info.get(name)
        if isinstance(text, str):
            info.add_text(name, text)  # as Latin-1 where it can be, else as UTF-8
    return info


def read(path: "str | os.PathLike[str]") -> Metadata:
    """The metadata of a PNG that perfuse wrote.

    Raises:
        InputError: there is no such file, it is damaged or no PNG, it has no metadata of perfuse,
            or what it has cannot be used.
    """
    path = os.fspath(path)
    with picture_file(path) as image:
        kind, text = image.format, image.info.get(CHUNK)
        image.verify()  # every chunk, to the end
    if kind != "PNG":
        raise InputError(
            f"{path} was to be read; it is a {kind}, and only a PNG carries what it was drawn from. "
            "Name the PNG that perfuse wrote."
        )
    if not isinstance(text, str):
        raise InputError(
            f"{path} was to be read; it does not say what it was drawn from: another program wrote "
            "it, or it was drawn with --no-metadata. Name a PNG that perfuse wrote."
        )
    return Metadata.from_json(text, where=path)


# --- for other programs -----------------------------------------------------------------------

#: What that web UI calls the samplers that both have.
_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


def parameters(metadata: Metadata) -> str:
    """The text that AUTOMATIC1111's web UI writes: prompts, then the settings on one line."""
    lines = []
    prompt = _own(metadata, "prompt")
    if prompt is not None:
        lines.append(str(prompt))
    negative = _own(metadata, "negative_prompt")
    if negative is not None:
        lines.append(f"Negative prompt: {negative}")
    pairs = [f"{name}: {_quoted(value)}" for name, value in _settings(metadata)]
    text = "\n".join([*lines, ", ".join(pairs)])
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def _settings(metadata: Metadata) -> list[tuple[str, Any]]:
    inputs, scheduler = metadata.inputs, metadata.scheduler
    class_name = str(scheduler.get("_class_name"))
    karras = "Karras" if scheduler.get("use_karras_sigmas") else None
    height, width = metadata.size
    several = metadata.pictures > 1
    one_each = len(metadata.seeds) == metadata.pictures
    seed = metadata.seeds[metadata.picture if one_each else 0] if metadata.seeds else None
    found = [
        ("Steps", inputs.get("num_inference_steps")),
        ("Sampler", _SAMPLERS.get(class_name, class_name)),
        ("Schedule type", karras),
        ("CFG scale", inputs.get("guidance_scale")),
        ("Seed", seed),
        ("Size", f"{width}x{height}"),
        ("Model", metadata.model),
        ("Denoising strength", inputs.get("strength")),
        ("Batch size", metadata.pictures if several else None),
        ("Batch pos", metadata.picture if several else None),
        ("Version", f"perfuse {metadata.versions.get('perfuse', '')}".strip()),
    ]
    return [(name, value) for name, value in found if value is not None]


def _own(metadata: Metadata, name: str) -> Value:
    """An input of one text, or one a prompt, for this picture."""
    value = metadata.inputs.get(name)
    if not isinstance(value, list):
        return value
    each = max(metadata.pictures // max(len(value), 1), 1)
    return value[min(metadata.picture // each, len(value) - 1)] if value else None


def _quoted(value: Any) -> str:
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text
