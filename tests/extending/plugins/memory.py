"""A source: a pipeline that is an object in memory, of networks that no checkpoint holds."""

from dataclasses import dataclass

from perfuse import Component, PipelineSpec, Recipe, Source, SourceManifest, hookimpl
from perfuse.errors import InputError
from perfuse.models import describe, latents_of

CONFIG = {
    "sample_size": 8,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "add_attention": False,
}


@hookimpl
def perfuse_sources():
    return [SourceManifest(name="memory", impl=f"{__name__}:opened")]


@dataclass(frozen=True, kw_only=True)
class Drawn(Recipe):
    """A network whose weights are drawn from a seed."""

    seed: int

    def __call__(self):
        import torch

        from perfuse.models import UNet2DModel, wrap
        from perfuse_conformance.checkpoints import randomise

        with torch.random.fork_rng():
            model = randomise(UNet2DModel(**CONFIG), self.seed)
        (spec,) = describe("UNet2DModel", "unet", "unet", CONFIG)
        return wrap(spec, model).eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Memory(Source):
    model: str
    spec: PipelineSpec
    seed: int
    revision: str | None = None

    def component(self, name, *, precision=None, static=None):
        if name not in self.spec.components:
            raise InputError(
                f"{name} was asked for; {self.model} has {list(self.spec.components)}."
            )
        return Component(
            spec=self.spec.components[name],
            precision=precision or "float32",
            static=static or {},
            build=Drawn(seed=self.seed),
            fingerprint=f"memory {self.seed}",
        )

    def tokenizer(self, name):
        raise InputError(f"{name} was asked for; {self.model} has no tokenizer.")


def opened(rest):
    """``memory:SEED``."""
    if not rest.isdecimal():
        raise InputError(f"Model memory:{rest} was asked for; write memory:SEED, a number.")
    components = {one.name: one for one in describe("UNet2DModel", "unet", "unet", CONFIG)}
    spec = PipelineSpec(
        class_name="DDPMPipeline",
        tasks=("unconditional",),
        components=components,
        scheduler={"_class_name": "DDIMScheduler"},
        latents=latents_of(components),
    )
    return Memory(model=f"memory:{rest}", spec=spec, seed=int(rest))
