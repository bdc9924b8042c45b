"""The layout of optimum-neuron: its files, its order of inputs, its ``config.json["neuron"]``.

As https://github.com/huggingface/optimum-neuron writes and reads it (``optimum/exporters/neuron`` and
``modeling_diffusion.py``, at 003d252f): ``{component}/model.neuron`` is TorchScript that takes its
inputs by position, and ``{component}/config.json`` the component's own config with one more object,
``"neuron"``. No torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from perfuse.backend import Component
from perfuse.spec import ComponentSpec

__all__ = [
    "CONFIG",
    "MODEL",
    "input_names",
    "named_outputs",
    "neuron_config",
    "static_sizes",
    "treated_as",
]

MODEL, CONFIG = "model.neuron", "config.json"

_LAST = ("text_embeds", "time_ids", "image_embeds")
#: A dimension's name in perfuse, and the key in ``config.json`` that holds its size.
_STATIC = {
    "batch": "static_batch_size",
    "sequence": "static_sequence_length",
    "height": "static_height",
    "width": "static_width",
    "latent_height": "static_height",
    "latent_width": "static_width",
}
#: A model class, its kind here, and its model type in the layout.
_PROJECTED = "CLIPTextModelWithProjection"
_CLASSES = {
    "UNet2DConditionModel": ("unet", "unet"),
    "UNet2DModel": ("unet", "unet"),
    "CLIPTextModel": ("text", "clip-text-model"),
    _PROJECTED: ("text", "clip-text-with-projection"),
    "AutoencoderKL": ("autoencoder", ""),
}


def treated_as(class_name: str) -> str:
    """``"unet"``, ``"text"`` or ``"autoencoder"``, which the layout treats apart; else empty."""
    return _CLASSES.get(class_name, ("", ""))[0]


def input_names(spec: ComponentSpec) -> tuple[str, ...]:
    """A component's inputs in the order of the file: a denoiser's added conditions come last."""
    names = spec.signature.input_names
    return (
        *(name for name in names if name not in _LAST),
        *(name for name in _LAST if name in names),
    )


def named_outputs(spec: ComponentSpec, outputs: Any) -> dict[str, Any]:
    """What a file returned, by the signature's names; those that it lacks are left out.

    Args:
        spec: The component.
        outputs: One tensor, a dict of them, or a tuple that may hold a tuple of hidden states.
    """
    names = spec.signature.output_names
    if isinstance(outputs, Mapping):
        return {name: outputs[name] for name in names if name in outputs}
    flat: Sequence[Any] = outputs if isinstance(outputs, tuple | list) else (outputs,)
    if treated_as(spec.class_name) != "text":
        return dict(zip(names, flat, strict=False))
    projected = spec.class_name == _PROJECTED
    order = (
        ("text_embeds", "last_hidden_state")
        if projected
        else ("last_hidden_state", "pooler_output")
    )
    found = dict(zip(order, flat[:2], strict=False))
    hidden = flat[2] if len(flat) == 3 and isinstance(flat[2], tuple | list) else flat[2:]
    if len(hidden) > 1:
        found["penultimate_hidden_state"], found["unnormed_hidden_state"] = hidden[-2:]
    return {name: found[name] for name in names if name in found}


def neuron_config(
    component: Component, settings: Mapping[str, str], compiler_version: str
) -> dict[str, Any]:
    """``config.json`` of a component: its own config with the compilation settings.

    ``static_vae_scale_factor``, which a denoiser's has, too, needs another component.

    Args:
        component: With every dimension fixed.
        settings: The exporter's switches, all of them.
        compiler_version: Of neuronx-cc.
    """
    config = dict(component.spec.config)
    shape = component.spec.signature.inputs[0].shape
    _, model_type = _CLASSES.get(component.spec.class_name, ("", ""))
    model_type = model_type or component.name.replace("_", "-")
    text = treated_as(component.spec.class_name) == "text"
    neuron: dict[str, Any] = {
        "compiler_type": "neuronx-cc",
        "compiler_version": compiler_version,
        "inline_weights_to_neff": settings["inline_weights_to_neff"] == "true",
        **{_STATIC[dim]: size for dim, size in component.static.items() if dim in _STATIC},
        **({"static_num_channels": shape[1]} if len(shape) == 4 else {}),
        "dynamic_batch_size": False,
        "tensor_parallel_size": 1,
        "optlevel": settings["optlevel"],
        "auto_cast": None if settings["auto_cast"] == "none" else settings["auto_cast"],
        "auto_cast_type": settings["auto_cast_type"],
        "instance_type": settings.get("instance_type"),
        "input_names": list(input_names(component.spec)),
        "int_dtype": "int64",
        "float_dtype": "fp32",
        "output_attentions": False,
        "output_hidden_states": text,
        "task": "feature-extraction" if text else "semantic-segmentation",
    }
    if "model_type" in config:
        neuron["model_type"] = model_type
    else:
        config["model_type"] = model_type
    return {**config, "neuron": neuron}


def static_sizes(spec: ComponentSpec, neuron: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a ``"neuron"`` object fixes, by the names of the signature's dimensions."""
    return {
        dim: neuron[_STATIC[dim]]
        for dim in spec.signature.dims
        if isinstance(neuron.get(_STATIC.get(dim, "")), int)
    }
