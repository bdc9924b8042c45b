"""What a pipeline of Diffusers returned, as files: pictures, videos, sound, arrays."""

import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays.media import export_to_gif, export_to_video
from perfuse.errors import InputError

__all__ = ["Made", "made", "written"]

#: The fields of Diffusers' outputs, and what each holds.
_KINDS = {"images": "pictures", "frames": "videos", "audios": "sounds", "audio": "sounds"}
#: The files that each is written as; the first where nothing was said.
SUFFIXES = {
    "pictures": (".png", ".jpg", ".jpeg", ".webp"),
    "videos": (".mp4", ".gif"),
    "sounds": (".wav",),
    "arrays": (".npz",),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """One kind of thing that a call returned."""

    #: ``"pictures"``, ``"videos"``, ``"sounds"`` or ``"arrays"``.
    kind: str
    #: PIL images; lists of them; arrays of samples by channel, in [-1, 1]; or named arrays.
    things: Sequence[Any]


def made(output: Any) -> tuple[Made, ...]:
    """What the output of a pipeline's call holds.

    Args:
        output: What ``pipe(…)`` returned, with ``return_dict=True``.

    Raises:
        InputError: it holds nothing that can be written.
    """
    fields = dict(output.items()) if hasattr(output, "items") else {"output": output}
    found = [
        Made(kind=_KINDS[name], things=_things(_KINDS[name], value))
        for name, value in fields.items()
        if name in _KINDS and value is not None
    ]
    if found:
        return tuple(_videos(one) for one in found)
    arrays = [(name, _array(value)) for name, value in fields.items() if _is_array(value)]
    if not arrays:
        raise InputError(
            f"The pipeline returned {', '.join(fields)}; none of it is a picture, a video, sound or an "
            "array. Call it in Python."
        )
    return (Made(kind="arrays", things=arrays),)


def _videos(one: Made) -> Made:
    """Several pictures from one place, views of a shape for one, are a video."""
    nested = one.kind == "pictures" and all(isinstance(each, list) for each in one.things)
    return Made(kind="videos", things=one.things) if nested and one.things else one


def _things(kind: str, value: Any) -> Sequence[Any]:
    if isinstance(value, list) and not (value and _is_array(value[0])):
        return value if kind != "videos" or (value and isinstance(value[0], list)) else [value]
    if kind == "sounds":
        return [np.atleast_2d(_array(one)) for one in value]
    images = [_images(_array(one)) if _array(one).ndim > 3 else _array(one) for one in value]
    if kind == "videos" and images and not isinstance(images[0], list):
        images = [images]
    return [
        _images(one)[0] if not isinstance(one, list) and one.ndim == 3 else one for one in images
    ]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().float().cpu() if hasattr(value, "detach") else value)


def _images(array: NDArray[Any]) -> list[Any]:
    """Pictures of an array NHWC or HWC in [0, 1]."""
    from PIL import Image

    whole = array if array.ndim == 4 else array[None]
    eight = (np.clip(whole, 0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one) for one in eight]


def written(one: Made, path: Path, *, fps: int, rate: int) -> list[Path]:
    """Write what was made; several things get numbers.

    Args:
        one: What was made.
        path: The file; its suffix says the format.
        fps: Pictures a second of a video.
        rate: Samples a second of sound.

    Raises:
        InputError: the suffix is of another kind of file.
    """
    if path.suffix.lower() not in SUFFIXES[one.kind]:
        raise InputError(
            f"{path} was to be written; the pipeline made {one.kind}, which are written as "
            f"{' or '.join(SUFFIXES[one.kind])}. Name such a file."
        )
    if one.kind == "arrays":
        np.savez(path, **dict(one.things))
        return [path]
    paths = [path]
    if len(one.things) > 1:
        paths = [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(len(one.things))]
    for thing, place in zip(one.things, paths, strict=True):
        _WRITERS[one.kind](thing, place, rate if one.kind == "sounds" else fps)
    return paths


def _write_picture(image: Any, path: Path, _: int) -> None:
    image.save(path)


def _write_video(frames: Sequence[Any], path: Path, fps: int) -> None:
    write = export_to_gif if path.suffix.lower() == ".gif" else export_to_video
    write(frames, path, fps=fps)


def _write_sound(samples: NDArray[Any], path: Path, rate: int) -> None:
    """Sixteen-bit WAV of samples by channel, in [-1, 1]."""
    # A channel more than samples is the other way round.
    channels = samples if samples.shape[0] <= samples.shape[1] else samples.T
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(channels.T, -1, 1) * 32767).round().astype("<i2").tobytes())


_WRITERS: dict[str, Callable[[Any, Path, int], None]] = {
    "pictures": _write_picture,
    "videos": _write_video,
    "sounds": _write_sound,
}
