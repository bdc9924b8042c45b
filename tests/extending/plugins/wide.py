"""A latent decoder of another shape: 16 channels, and a shift."""

from perfuse import Architecture, Dim, Role, Signature, TensorSpec, hookimpl
from perfuse.models import ScaledLatents
from perfuse.spec import ComponentSpec

NAME = "WideDecoder"
SCALE = 2


@hookimpl
def perfuse_architectures():
    return [
        Architecture(
            class_name=NAME,
            describe=f"{__name__}:describe",
            latents=f"{__name__}:latents",
            latent_spec=f"{__name__}:WideLatents",
            build=f"{__name__}:build",
        )
    ]


class WideLatents(ScaledLatents):
    kind = NAME


def latents(config, inner):
    return WideLatents(
        channels=16,
        downscale=SCALE,
        scaling_factor=config["scaling_factor"],
        shift_factor=config["shift_factor"],
    )


def describe(name, folder, config):
    latent = ("batch", 16, "latent_height", "latent_width")
    return (
        ComponentSpec(
            name=f"{name}_decoder",
            role=Role.LATENT_DECODER,
            class_name=NAME,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(TensorSpec(name="latent_sample", dtype="float", shape=latent),),
                outputs=(
                    TensorSpec(name="sample", dtype="float", shape=("batch", 3, "height", "width")),
                ),
            ),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(example=12, smallest=2),
                "latent_width": Dim(example=10, smallest=2),
            },
        ),
    )


def build(spec, weights, dtype):
    import torch
    from torch import nn

    from perfuse.models import load_state

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter = nn.Conv2d(16, 8, 3, padding=1)
            self.leave = nn.Conv2d(8, 3 * SCALE**2, 3, padding=1)

        def forward(self, latent_sample):
            hidden = torch.nn.functional.silu(self.enter(latent_sample))
            return (torch.nn.functional.pixel_shuffle(self.leave(hidden), SCALE).tanh(),)

    with torch.device("meta"):
        module = Decoder()
    load_state(module, weights, where=spec.folder, dtype=dtype)
    return module
