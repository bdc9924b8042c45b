"""``Transformer2DModel``: the class that checkpoints of DiT and PixArt name, of before they had their own."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="Transformer2DModel",
        describe=f"{__name__}.description:describe",
        build="perfuse.models.dit_transformer.network:build",
    ),
)
