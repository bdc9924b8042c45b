"""What a checkpoint's class is: where its description, its builder and its latents are."""

from dataclasses import dataclass

__all__ = ["Architecture"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a checkpoint's class becomes components.

    Each field but the first is ``"module:name"``. Only what ``build`` and ``wrap`` name may import
    torch.
    """

    class_name: str
    #: ``(name, folder, config) -> tuple[ComponentSpec, ...]``.
    describe: str
    #: ``(spec, weights, dtype) -> nn.Module`` that takes the signature's inputs in order and
    #: returns a tuple of its outputs. ``weights`` is a ``perfuse.sources.Weights``.
    build: str
    #: ``(spec, model) -> nn.Module``: the same face around a model that the user gives. Empty where
    #: the model itself has it.
    wrap: str = ""
    #: A dataclass with the types of ``config.json``'s fields, checked before it is described.
    config: str = ""
    #: ``(spec, components) -> ComponentSpec``: the description with what only the pipeline's other
    #: components tell of it.
    fit: str = ""
    #: ``(config, inner) -> LatentSpec`` for a class that decides what latents are; ``inner`` is
    #: what another component of the pipeline decided before, or ``None``.
    latents: str = ""
    #: The ``LatentSpec`` subclass that ``latents`` gives, to read a manifest with.
    latent_spec: str = ""
    #: ``(spec, sizes, guidance) -> {input: array}``: inputs that follow from the sizes of a call
    #: and the guidance scale alone: position tables, ids, masks, an embedded scale.
    host_inputs: str = ""
    #: The library that ``model_index.json`` names for the class.
    library: str = "diffusers"
