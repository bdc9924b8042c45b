"""Single-file checkpoints in their original layouts: found, and told apart by their tensors.

A file is read as far as its header; nothing is copied, and a pickle is never opened.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.original import Original, View
from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse.models.registry import original
from perfuse.sources.files import user_path
from perfuse.sources.header import Header
from perfuse.sources.hub import file_from_hub
from perfuse.sources.layouts import DENOISERS, LAYOUTS, VAE
from perfuse.sources.weights import Weights, header_of, is_pickle, some

__all__ = ["NONE", "OriginalFile", "Part", "locate", "values"]

#: No arguments for the Hub.
NONE: Mapping[str, Any] = FrozenDict()
_URL = re.compile(
    r"(?:https?://)?(?:huggingface\.co|hf\.co)/(?P<repository>[^/]+/[^/]+)/(?:blob|resolve)/"
    r"(?P<revision>[^/]+)/(?P<file>[^?]+)(?:\?.*)?"
)
_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^?]+)")
_LORA = (
    ".lora_up.weight",
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora.up.weight",
    ".lora_linear_layer.up.weight",
    ".hada_w1_a",
    ".lokr_w1",
)
_EMBEDDING = {"emb_params", "clip_l", "clip_g", "*"}
_CONTROL = ("control_model.", "controlnet_cond_embedding.", "input_hint_block.")
_DIFFUSERS = re.compile(r"(unet\.|vae\.)?(encoder\.|decoder\.)?(down_blocks|up_blocks|mid_block)\.")
#: An embedding file holds at most one tensor for each text encoder, and their notes.
_FEW = 4


def locate(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool | None = None,
    hub: Mapping[str, Any] = NONE,
) -> tuple[Path, str | None]:
    """A file on this machine, or one of the Hub in its cache, and the commit of the latter.

    Raises:
        WeightsError: it is a pickle.
        CheckpointError: there is no such file, or the Hub does not give it.
    """
    asked = str(model)
    if is_pickle(asked.partition("?")[0].lower()):
        raise WeightsError(
            f"{asked} is a pickle: reading such a file can run code that is hidden in it, so perfuse "
            "never does. Take its safetensors version, or convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True)['state_dict'], NEW)."
        )
    path = user_path(model)
    if path.is_file():
        return path, None
    match = _URL.fullmatch(asked)
    if match is not None:
        found = match.groupdict()
        return file_from_hub(found["repository"], found["file"], found["revision"], offline, hub)
    match = _ID.fullmatch(asked)
    if match is not None and not path.parent.is_dir():
        return file_from_hub(match["repository"], match["file"], revision, offline, hub)
    raise CheckpointError(
        f"Model {asked!r} was asked for; there is no such file. Name an existing file, or one of the "
        "Hub as OWNER/NAME/FILE."
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """One model in a file."""

    class_name: str
    #: Its ``config.json``, as far as the tensors tell it.
    config: Mapping[str, Any]
    weights: Weights


@dataclass(frozen=True, kw_only=True)
class OriginalFile:
    """The header of a single-file checkpoint. Open one with ``OriginalFile.open``."""

    path: Path
    header: Header

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header.

        Raises:
            WeightsError: the file is damaged.
            InputError: it is a GGUF file, and the package ``gguf`` is not installed.
        """
        return cls(path=path, header=header_of(path))

    def part(self, name: str, prefixes: Sequence[str], *, ema: bool = False) -> Part | None:
        """A model of the file; ``None`` if the file has none there.

        Args:
            name: The component that it is of a pipeline.
            prefixes: What may stand before the names of its tensors; the first that does is taken.
            ema: Take the averages that training kept, ``model_ema.…``.

        Raises:
            CheckpointError: tensors of the model are missing.
        """
        for prefix in prefixes:
            shapes = {
                key.removeprefix(prefix): shape
                for key, shape in self.header.shapes.items()
                if key.startswith(prefix)
            }
            try:
                found = original(name, shapes)
            except CheckpointError as exc:
                raise WeightsError(f"{self.path}: {exc}. Download the file again.") from exc
            if found is not None:
                class_name, model = found
                return Part(
                    class_name=class_name,
                    config=model.config,
                    weights=Weights.of(self.path, self.header, self._views(model, prefix, ema)),
                )
        return None

    def denoiser(self, *, ema: bool = False) -> tuple[str, Part] | None:
        """The denoiser and its name in a pipeline; ``None`` for a file without one."""
        for name, prefixes in DENOISERS.items():
            found = self.part(name, prefixes, ema=ema)
            if found is not None:
                return name, found
        return None

    def _views(self, model: Original, prefix: str, ema: bool) -> dict[str, View]:
        views = {n: replace(v, stored=prefix + v.stored) for n, v in model.views.items()}
        if not ema:
            return views
        views = {n: replace(v, stored=_averaged(v.stored)) for n, v in views.items()}
        missing = [v.stored for v in views.values() if v.stored not in self.header.shapes]
        if missing:
            raise WeightsError(
                f"{self.path}: the averages that training kept were asked for (extract_ema); the "
                f"file has no {some(missing)}. Leave extract_ema out."
            )
        return views

    def refusal(self) -> CheckpointError:
        """Why this file, which has no denoiser that perfuse knows, is not a pipeline."""
        names = list(self.header.shapes)
        if any(name.endswith(_LORA) or name.startswith("lora_") for name in names):
            return self._is("a LoRA: weights to add to a model's", "Name the model's file.")
        if len(names) <= _FEW and (_EMBEDDING & set(names) or _are_vectors(self.header)):
            return self._is(
                "an embedding (textual inversion): tokens to add to a text encoder's",
                "Name the model's file.",
            )
        if any(name.startswith(_CONTROL) for name in names):
            return self._is("a ControlNet, which steers another model", "Name the model's file.")
        vae = self.part("vae", VAE)
        if vae is not None:
            return self._is(
                "an autoencoder alone",
                f"Load it with {vae.class_name}.from_single_file, and give it to a pipeline: vae=….",
            )
        if any(_DIFFUSERS.match(name) for name in names):
            return self._is(
                "in Diffusers' layout, in which a model is a folder with a config.json",
                "Put it there, and name the folder of the pipeline.",
            )
        known = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
        return CheckpointError(
            f"{self.path} is of an architecture that perfuse does not know. Considered were {known}. "
            f"It holds {some(_groups(names))}. Name a file of one of these."
        )

    def _is(self, what: str, remedy: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is {what}; a whole pipeline was expected. {remedy}")


def values(file: OriginalFile, name: str) -> tuple[float, ...]:
    """The numbers of a small tensor.

    Raises:
        WeightsError: the file was damaged since it was opened.
        InputError: torch is not installed.
    """
    dtype, shape = file.header.shapes[name]
    view = {name: View(stored=name, shape=shape)}
    try:
        ((_, tensor),) = Weights.of(file.path, file.header, view).tensors()
    except ImportError as exc:
        raise InputError(
            f"{file.path}: reading {name}, {dtype} {list(shape)}, needs torch, which is not "
            "installed: pip install 'perfuse[torch]'"
        ) from exc
    return tuple(float(value) for value in tensor.flatten().tolist())


def _averaged(name: str) -> str:
    """Where training kept the average of a tensor: its name without dots."""
    head, _, rest = name.partition(".")
    return f"{head}_ema.{rest.replace('.', '')}"


def _are_vectors(header: Header) -> bool:
    """Whether tensors are vectors or rows of them, and none is a layer's by its name."""
    layers = (".weight", ".bias")
    return all(
        len(shape) <= 2 and not name.endswith(layers) for name, (_, shape) in header.shapes.items()
    )


def _groups(names: Sequence[str]) -> list[str]:
    """The beginnings of names, each once."""
    return list(dict.fromkeys(f"{'.'.join(name.split('.')[:3])}…" for name in names))
