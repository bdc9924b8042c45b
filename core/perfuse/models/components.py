"""Flat faces of the models: a signature's inputs in order go in, a tuple of its outputs comes out.

These are what the reference path runs and what capture traces: one code path for both.
"""

from typing import Any

import torch
from torch import Tensor, nn

from perfuse.contract.backend import Component
from perfuse.contract.spec import ComponentSpec
from perfuse.errors import InputError
from perfuse.models.architectures import find
from perfuse.models.autoencoder_kl import AutoencoderKL
from perfuse.models.loading import load_state, load_text_encoder
from perfuse.models.model import Model
from perfuse.models.unet_2d import UNet2DModel
from perfuse.models.unet_2d_condition import UNet2DConditionModel
from perfuse.plugins.host import resolve
from perfuse.sources.weights import Weights


class UNet2D(nn.Module):
    """``sample, timestep[, class_labels] -> (out_sample,)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None
    ) -> tuple[Tensor]:
        output: tuple[Tensor] = self.model(sample, timestep, class_labels, return_dict=False)
        return output


class UNet2DCondition(nn.Module):
    """``sample, timestep, encoder_hidden_states, … -> (out_sample,)``, by the signature's names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        named = dict(zip(self.names, inputs, strict=True))
        sample, timestep = named.pop("sample"), named.pop("timestep")
        text = named.pop("encoder_hidden_states")
        added = {
            name: named.pop(name)
            for name in ("text_embeds", "time_ids", "image_embeds")
            if name in named
        }
        output: tuple[Tensor] = self.model(
            sample, timestep, text, added_cond_kwargs=added, return_dict=False, **named
        )
        return output


class VaeEncoder(nn.Module):
    """``sample -> (latent_parameters,)``: means and log-variances."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, _or_identity(model.quant_conv)
        self.whole = lambda: model  # no child: the other half is neither captured nor copied

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (self.quant_conv(self.encoder(sample)),)


class VaeDecoder(nn.Module):
    """``latent_sample -> (sample,)``: an unscaled latent to a picture in about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, _or_identity(model.post_quant_conv)
        self.whole = lambda: model

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder(self.post_quant_conv(latent_sample)),)


def _or_identity(layer: Any) -> Any:
    """Diffusers' autoencoder has ``None`` where it has no such layer."""
    return nn.Identity() if layer is None else layer


class ClipText(nn.Module):
    """``input_ids -> (last_hidden_state, penultimate_hidden_state, pooled)``."""

    def __init__(self, model: nn.Module, pooled: str) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model(input_ids=input_ids, output_hidden_states=True)
        return output.last_hidden_state, output.hidden_states[-2], getattr(output, self.pooled)


def build_component(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a component, its weights memory-mapped where their dtype is ``dtype``."""
    module: nn.Module = resolve(find(spec.class_name, asked=spec.name).build)(spec, weights, dtype)
    return module.eval().requires_grad_(False)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat face of a model of the component's class: ours, Diffusers' or Transformers'."""
    model = _native(spec, model)
    if spec.class_name == "AutoencoderKL":
        return VaeEncoder(model) if spec.name.endswith("_encoder") else VaeDecoder(model)
    if spec.class_name == "UNet2DModel":
        return UNet2D(model)
    if spec.class_name == "UNet2DConditionModel":
        return UNet2DCondition(model, spec.signature.input_names)
    if spec.class_name.startswith("CLIPTextModel"):
        return ClipText(model, spec.signature.output_names[-1])
    return model


def _native(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """Our model around the same tensors, where a module has the names of one of ours.

    Diffusers' modules decide by the size of their input, so that no capture of them holds for all.
    """
    native = {cls.config_class.class_name: cls for cls in _NATIVE}.get(spec.class_name)
    if native is None or isinstance(model, Model):
        return model
    with torch.device("meta"):
        ours = native.from_config(spec.config)
    try:
        ours.load_state_dict(model.state_dict(), assign=True)
    except RuntimeError:  # layers were added or taken out: it runs as it is
        return model
    return ours.requires_grad_(False)


_NATIVE: tuple[type[Model], ...] = (UNet2DModel, UNet2DConditionModel, AutoencoderKL)


def _load(cls: type[Model], spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> Model:
    with torch.device("meta"):
        model = cls.from_config(spec.config)
    load_state(model, weights, where=spec.folder, rename=cls.rename, dtype=dtype)
    return model


def build_unet_2d(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    return wrap(spec, _load(UNet2DModel, spec, weights, dtype))


def build_unet_2d_condition(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    return wrap(spec, _load(UNet2DConditionModel, spec, weights, dtype))


def build_autoencoder_kl(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    return wrap(spec, _load(AutoencoderKL, spec, weights, dtype))


def build_clip_text(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    return wrap(spec, load_text_encoder(spec.class_name, spec.config, weights, dtype))


def unwrap(component: Component) -> nn.Module:
    """The model inside a component's flat module, for a user to look at or to change.

    Raises:
        InputError: the component has no torch module.
    """
    if component.build is None:
        raise InputError(f"{component.name} comes from an export, which has no torch module.")
    module = component.build()
    model = module.whole() if hasattr(module, "whole") else module.model  # type: ignore[operator]
    assert isinstance(model, nn.Module)
    return model.to(getattr(torch, component.precision))
