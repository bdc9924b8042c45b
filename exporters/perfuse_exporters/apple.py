"""The dialect of Apple's runtimes for Stable Diffusion: names and layouts.

The contract is what ``python_coreml_stable_diffusion`` and the Swift package ``StableDiffusion`` of
https://github.com/apple/ml-stable-diffusion load. This module imports neither torch nor coremltools
before something is written.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from perfuse.backend import Component

__all__ = ["input_name", "is_apple", "output_name", "with_apples_layout"]

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
    name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[np.generic]:
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
