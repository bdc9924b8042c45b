"""How a plugin adds a model class: the import paths of its config, description and builder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Architecture", "Attended", "Attentions", "Called"]

#: The inputs of a call, and what makes of the outputs what Diffusers' model returns.
Called = tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Sequence[Any]]]


@dataclass(frozen=True, kw_only=True)
class Attended:
    """An attention of a transformer, which gives the picture's tokens [B, N, C]."""

    #: The path of its module: ``"transformer_blocks.0.attn1"``.
    module: str
    #: ``"spatial"`` among the picture's tokens, or them and the text's; ``"cross"`` to the text's.
    kind: str
    #: Whether it gives a pair, the second of it the text's tokens [B, S, C] or ``None``: it takes the
    #: text's tokens second. They are not kept: where no attention is computed, no picture sees them.
    joint: bool = False
    #: Where the text's tokens are, ``"before"`` the picture's or ``"after"``, where it gives, and takes
    #: first, one sequence of both.
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Attentions:
    """Those of a transformer, in the order in which they run."""

    each: tuple[Attended, ...]
    #: Channels of a token.
    width: int
    #: The side of a token, in latents; ``None`` where latents are packed to tokens before.
    patch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How one model class of a checkpoint becomes components.

    Each field but ``class_name`` and ``library`` is an import path, ``"module:name"``. Only what
    ``build`` and ``wrap`` name may import torch.
    """

    #: The class as ``model_index.json`` names it: ``"UNet2DConditionModel"``.
    class_name: str
    #: ``(name, folder, config) -> tuple[ComponentSpec, ...]``.
    describe: str
    #: ``(spec, weights, dtype) -> nn.Module`` that takes the signature's inputs in order and
    #: returns a tuple of its outputs. ``weights`` is a ``perfuse.sources.Weights``.
    build: str
    #: ``(spec, model) -> nn.Module``: wraps a model that the user gives, so that it is called like
    #: the result of ``build``. Empty where the model needs no wrapper.
    wrap: str = ""
    #: A dataclass of ``config.json``'s fields; their types are checked before ``describe`` runs.
    config: str = ""
    #: ``(spec, components) -> ComponentSpec``: completes the description with what only the
    #: pipeline's other components determine.
    fit: str = ""
    #: ``(config, inner) -> LatentSpec`` for a class that defines the pipeline's latents; ``inner``
    #: is the ``LatentSpec`` that another component defined before, or ``None``.
    latents: str = ""
    #: The ``LatentSpec`` subclass that ``latents`` returns; reads it back from a manifest.
    latent_spec: str = ""
    #: ``(spec, sizes, guidance) -> {input: array}``: inputs that follow from the sizes of a call
    #: and the guidance scale alone: position tables, ids, masks, an embedded scale. Where the tokens
    #: of other pictures follow the sample's, ``sizes`` has ``reference_0_height``,
    #: ``reference_0_width`` and so on: their latents' sizes, before they are packed.
    host_inputs: str = ""
    #: ``(module, kind, layers, amount) -> nn.Module``: a worse version of a denoiser, for guidance; a
    #: ``perfuse.Perturbation`` says what is changed. Empty if there is none.
    perturb: str = ""
    #: ``(component, layers) -> (component, component)``: a denoiser that also gives its state before
    #: its last layers, and another entry, whose last input that is and which runs these layers
    #: alone. Empty if there is none.
    shallow: str = ""
    #: ``(component) -> component``: a denoiser that also gives what its cross-attentions give,
    #: ``attention_N``, and takes that as ``kept_attention_N`` where its input ``gate`` is 1. With what its
    #: host inputs say, it computes everything. Empty if there is none.
    gated: str = ""
    #: ``(component, first, last) -> (component, component)``: a transformer with more outputs, and another
    #: entry of its first blocks, its last ones and its end alone. ``sign_N``, which the entry gives, too,
    #: tells how much has changed since another step; ``added_N`` and others of such names, the entry's
    #: last inputs, are what the blocks in the middle add. Empty if there is none.
    first_blocks: str = ""
    #: ``(spec) -> Attentions``: a transformer's attentions, so that what they gave can be used again at
    #: another step. Empty if there are none such.
    attentions: str = ""
    #: ``(spec) -> ComponentSpec``: the same with every hidden state among its outputs, called
    #: ``hidden_states_0`` and so on, for a caller that asks a text encoder for all. Empty if there is none.
    hidden_states: str = ""
    #: ``(spec, arguments) -> Called | None``: how Diffusers' own model is called, where that is not
    #: by the names of the inputs. ``arguments`` are those that are not ``None`` or a flag, by name, with
    #: numpy arrays for tensors; the inputs are those that ``host_inputs`` does not give. ``None`` where
    #: something else is asked for.
    called: str = ""
    #: ``"module:NAME"`` of a ``perfuse.models.ip_adapter.prompting.Prompting``: how IP-Adapters add image
    #: prompts to a denoiser. Empty where none are made for it.
    image_prompts: str = ""
    #: For a class that holds several models, in the folders ``NAME``, ``NAME_1``, …: their class.
    each: str = ""
    #: ``(name, shapes) -> perfuse.contract.original.Original | None``: reads the class from the
    #: tensors of a single-file checkpoint, where it is a component of this name; ``None`` if they
    #: are not this class's. A ``KeyError`` names a tensor that is missing.
    original: str = ""
    #: ``(layers) -> {other: layer}``: what files of adapters may also call its layers, for a class
    #: whose weights adapters change; every layer's own name is known without. A layer of the file
    #: that is several of the class is a ``perfuse.contract.original.Stacked``. Empty if there is none.
    aliases: str = ""
    #: ``(name) -> str | None``: a stored tensor's name in checkpoints of today; ``None`` for one that
    #: the class does not have. With it, tensors are found in a file without building the model.
    names: str = ""
    #: ``(spec, name) -> bool``: whether a component reads a stored tensor, for a class of several
    #: components in one folder, or with tensors that none reads. Empty where all are read.
    reads: str = ""
    #: Fields of the config that change no graph: what the host reads, such as a scaling factor.
    beside_graph: tuple[str, ...] = ()
    #: Fields of the config that change its graphs in half precision alone.
    in_half_precision: tuple[str, ...] = ()
    #: The library that ``model_index.json`` names for the class.
    library: str = "diffusers"
