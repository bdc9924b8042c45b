"""The dialect of Apple's runtimes for Stable Diffusion: names, layouts, types, files.

The contract is what ``python_coreml_stable_diffusion`` and the Swift package ``StableDiffusion`` of
https://github.com/apple/ml-stable-diffusion load. Its Python checks dtypes and ranks exactly; its
Swift converts dtypes and checks nothing. This module imports torch where something is written.
"""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfuse.backend import Component
from perfuse.errors import ExportError
from perfuse.spec import Signature, TensorSpec
from perfuse_exporters.coreml.mlpackage import parts_of

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "CLASSES",
    "LATENTS",
    "SCALING",
    "adapted",
    "arrange",
    "input_name",
    "is_apple",
    "output_name",
    "with_apples_layout",
]

#: What Apple's runtimes divide latents by; the Swift package has another for XL.
SCALING = 0.18215
#: Where a package notes its latents, which this layout has no place for.
LATENTS = "latents"
_INPUTS: Mapping[str, Mapping[str, str]] = {
    "vae_decoder": {"latent_sample": "z"},
    "vae_encoder": {"sample": "x"},
}
_TEXT = {
    "penultimate_hidden_state": "hidden_embeds",
    "pooler_output": "pooled_outputs",
    "text_embeds": "pooled_outputs",
}
_OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "text_encoder": _TEXT,
    "text_encoder_2": _TEXT,
    "unet": {"out_sample": "noise_pred"},
    "vae_decoder": {"sample": "image"},
    "vae_encoder": {"latent_parameters": "latent"},
}
#: Each component's class, and the part of a checkpoint that it is of.
CLASSES: Mapping[str, tuple[str, str]] = {
    "text_encoder": ("CLIPTextModel", "text_encoder"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "text_encoder_2"),
    "unet": ("UNet2DConditionModel", "unet"),
    "vae_decoder": ("AutoencoderKL", "vae"),
    "vae_encoder": ("AutoencoderKL", "vae"),
}
_UNET = ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids")


def is_apple(component: Component) -> bool:
    """Whether the component's files are in this dialect."""
    return component.options.get("dialect") == "apple"


def input_name(component: str, name: str) -> str:
    """What Apple calls an input of a component."""
    return _INPUTS.get(component, {}).get(name, name)


def output_name(component: str, name: str) -> str:
    """What Apple calls an output of a component."""
    return _OUTPUTS.get(component, {}).get(name, name)


def with_apples_layout(
    name: str, array: npt.NDArray[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """An input as Apple's graphs take it: text states [B, S, D] as [B, D, 1, S].

    Args:
        name: The input, by the signature's name.
        array: It, as the signature has it.
        shape: The shape that the file declares.
    """
    if name == "encoder_hidden_states":
        return np.moveaxis(array, 1, 2)[:, :, None, :]
    if name == "time_ids" and array.size == np.prod(shape):
        return array.reshape(shape)  # older packages have one row of twelve
    return array


def adapted(component: Component, module: "nn.Module") -> "tuple[Component, nn.Module]":
    """A component and its module with the inputs and outputs that Apple's runtimes use.

    Text encoders give the last states and those before the last layer, of which the runtimes take
    what they look for by name.

    Raises:
        ExportError: Apple's runtimes have no such component, or cannot feed it.
    """
    _check(component)
    names = component.spec.signature.input_names
    signature = Signature(
        inputs=tuple(_input(component, tensor) for tensor in component.spec.signature.inputs),
        outputs=tuple(
            dataclasses.replace(tensor, name=output_name(component.name, tensor.name))
            for tensor in component.spec.signature.outputs
        ),
    )
    spec = dataclasses.replace(component.spec, signature=signature)
    return dataclasses.replace(component, spec=spec), _wrapped(names, module)


def _check(component: Component) -> None:
    spec = component.spec
    unknown = [name for name in spec.signature.input_names if name not in _UNET]
    if (
        spec.name not in _OUTPUTS
        or spec.class_name not in {class_name for class_name, _ in CLASSES.values()}
        or (spec.name == "unet" and unknown)
    ):
        what = f" with {', '.join(unknown)}" if spec.name == "unet" and unknown else ""
        raise ExportError(
            f"{spec.name} ({spec.class_name}{what}) was to be exported in Apple's dialect; its "
            "runtimes run Stable Diffusion 1, 2 and XL alone. Export without --dialect."
        )
    batches = (1, 2) if spec.name == "unet" else (1,)
    if component.static.get("batch") not in batches:
        raise ExportError(
            f"{spec.name} was to be exported in Apple's dialect for a batch of "
            f"{component.static.get('batch')}; its runtimes call it with {batches[-1]}. Leave out "
            "--batch, or give --batch 1."
        )


def _input(component: Component, tensor: TensorSpec) -> TensorSpec:
    name, dtype, shape = input_name(component.name, tensor.name), tensor.dtype, tensor.shape
    if dtype == "int64":
        dtype = "float32"  # their text encoders take token ids so
    elif component.name == "unet" or component.precision == "float16":
        dtype = "float16"
    if tensor.name == "encoder_hidden_states":
        batch, sequence, width = shape
        shape = (batch, width, 1, sequence)
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _wrapped(names: tuple[str, ...], module: "nn.Module") -> "nn.Module":
    import torch
    from torch import Tensor, nn

    def ours(name: str, value: Tensor) -> Tensor:
        if name == "input_ids":
            return value.to(torch.int64)
        if name == "encoder_hidden_states":
            return value.squeeze(2).transpose(1, 2)
        return value

    class Adapted(nn.Module):
        """Takes Apple's inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Tensor) -> Any:
            pairs = zip(names, inputs, strict=True)
            return self.module(*[ours(name, value) for name, value in pairs])

    return Adapted()


def arrange(
    folder: Path, components: Mapping[str, Component], files: Mapping[str, Path], *, model: str
) -> dict[str, Path]:
    """Put the packages where Apple's Python looks for them, and the vocabulary where Swift does.

    Args:
        folder: The pipeline's folder, with a folder for each component in it.
        components: What was exported.
        files: The main file of each component.
        model: What the person called the model: ``runwayml/stable-diffusion-v1-5``, or a path.

    Returns:
        The main file of each, where it is now.
    """
    version = Path(model).name if Path(model).exists() else model.replace("/", "_")
    moved = {}
    for name, main in files.items():
        for part in reversed(parts_of(main)):  # the first, which is the main file, comes last
            chunk = part.stem[part.stem.index("_chunk") :] if "_chunk" in part.stem else ""
            moved[name] = folder / f"Stable_Diffusion_version_{version}_{name}{chunk}.mlpackage"
            part.rename(moved[name])
        if not any(main.parent.iterdir()):
            main.parent.rmdir()
    if "vae_decoder" in moved:
        _note_latents(moved["vae_decoder"], components)
    _write_vocabulary(folder)
    return moved


def _note_latents(package: Path, components: Mapping[str, Component]) -> None:
    """Note in the decoder's package how its latents are scaled; warn where Apple's runtimes differ."""
    from perfuse.models import ScaledLatents, latents_of
    from perfuse.sources import to_plain
    from perfuse_exporters.coreml.edit import sign

    latents = latents_of({"vae_decoder": components["vae_decoder"].spec})
    assert isinstance(latents, ScaledLatents)  # Apple's runtimes know no other
    sign(package, {LATENTS: json.dumps(to_plain(latents))})
    if latents.scaling_factor != SCALING and "text_encoder_2" not in components:
        warnings.warn(
            f"The latents of this model are scaled by {latents.scaling_factor}; Apple's runtimes "
            f"divide them by {SCALING}, and will draw other pictures. perfuse reads the number from "
            "the package.",
            stacklevel=2,
        )


def _write_vocabulary(folder: Path) -> None:
    """``vocab.json`` and ``merges.txt`` of the first tokenizer, beside the packages."""
    tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder / "tokenizer_2"
    names = ("vocab.json", "merges.txt")
    if all((tokenizer / name).is_file() for name in names):
        for name in names:
            shutil.copyfile(tokenizer / name, folder / name)
    elif (tokenizer / "tokenizer.json").is_file():
        model = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (folder / names[0]).write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
        (folder / names[1]).write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
