"""A denoiser with a task: a small transformer on packed latents, with embedded guidance and a rotary
table from the host (Su et al. 2021, arXiv:2104.09864)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from perfuse import (
    Architecture,
    Dim,
    Input,
    LatentSpec,
    PipelineManifest,
    Role,
    Signature,
    Task,
    TensorSpec,
    hookimpl,
    step,
)
from perfuse.errors import InputError
from perfuse.spec import ComponentSpec
from perfuse.tasks import (
    NOISE,
    OUTPUT,
    SIZE,
    STEPS,
    check_size,
    decode,
    denoise_loop,
    finish,
    prepare_latents,
    prepare_schedule,
)
from perfuse.tasks.guiders import EmbeddedGuidance

NAME = "PackedTransformer"


@hookimpl
def perfuse_architectures():
    return [
        Architecture(
            class_name=NAME,
            describe=f"{__name__}:describe",
            latents=f"{__name__}:latents",
            latent_spec=f"{__name__}:PackedLatents",
            host_inputs=f"{__name__}:host_inputs",
            build=f"{__name__}:build",
        )
    ]


@hookimpl
def perfuse_pipelines():
    return [
        PipelineManifest(
            class_name="PackedPipeline",
            tasks={"class-to-image": f"{__name__}:CLASS_TO_IMAGE"},
            needs=("transformer", "vae", "scheduler"),
        )
    ]


def describe(name, folder, config):
    tokens = ("batch", "tokens", 4 * config["channels"])
    head = config["head_dim"]
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=NAME,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    TensorSpec(name="sample", dtype="float", shape=tokens),
                    TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
                    TensorSpec(name="label", dtype="int64", shape=("batch",)),
                    TensorSpec(name="guidance", dtype="float", shape=("batch", 1)),
                    TensorSpec(name="rotary_cos", dtype="float", shape=("tokens", head)),
                    TensorSpec(name="rotary_sin", dtype="float", shape=("tokens", head)),
                ),
                outputs=(TensorSpec(name="out_sample", dtype="float", shape=tokens),),
            ),
            dims={"batch": Dim(example=2), "tokens": Dim(example=12, smallest=2)},
            sample_size=(config["size"], config["size"]),
            guidance="embedded",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class PackedLatents(LatentSpec):
    """An autoencoder's latents, two by two pixels of them a token: [B, h/2 · w/2, 4 C]."""

    kind: ClassVar[str] = NAME

    inner: LatentSpec

    @property
    def multiple(self):
        return 2 * self.downscale

    def dims(self, height, width):
        inner = self.inner.dims(height, width)
        return {**inner, "tokens": inner["latent_height"] // 2 * (inner["latent_width"] // 2)}

    def encode(self, latents):
        return self.inner.encode(latents)

    def decode(self, latents):
        return self.inner.decode(latents)

    def pack(self, latents):
        b, c, h, w = latents.shape
        pairs = latents.reshape(b, c, h // 2, 2, w // 2, 2)
        order = (0, 2, 4, 1, 3, 5)
        moved = pairs.permute(order) if hasattr(pairs, "permute") else pairs.transpose(order)
        return moved.reshape(b, h // 2 * (w // 2), 4 * c)

    def unpack(self, latents, height, width):
        h, w = height // self.downscale, width // self.downscale
        pairs = latents.reshape(-1, h // 2, w // 2, self.channels, 2, 2)
        order = (0, 3, 1, 4, 2, 5)
        moved = pairs.permute(order) if hasattr(pairs, "permute") else pairs.transpose(order)
        return moved.reshape(-1, self.channels, h, w)


def latents(config, inner):
    return PackedLatents(channels=inner.channels, downscale=inner.downscale, inner=inner)


def host_inputs(spec, sizes, guidance):
    """Rotation by the place of a token in the picture, and the guidance scale."""
    head = spec.config["head_dim"]
    rows, columns = sizes["latent_height"] // 2, sizes["latent_width"] // 2
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    frequencies = 100.0 ** -(np.arange(head // 4) / (head // 4))
    angles = [place.reshape(-1, 1) * frequencies for place in (y, x)]
    angle = np.concatenate([*angles, *angles], axis=1).astype(np.float32)
    scale = np.full((sizes["batch"], 1), 1.0 if guidance is None else guidance, np.float32)
    return {"rotary_cos": np.cos(angle), "rotary_sin": np.sin(angle), "guidance": scale}


def build(spec, weights, dtype):
    """The network; one file needs torch only here."""
    import torch
    from torch import nn

    from perfuse.models import load_state

    width, head = 4 * spec.config["channels"], spec.config["head_dim"]

    def turned(x, cos, sin):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter = nn.Linear(width, head)
            self.time = nn.Linear(2, head)
            self.label = nn.Embedding(spec.config["classes"], head)
            self.qkv = nn.Linear(head, 3 * head)
            self.leave = nn.Linear(head, width)

        def forward(self, sample, timestep, label, guidance, rotary_cos, rotary_sin):
            told = torch.cat([timestep[:, None].to(sample.dtype) / 1000, guidance], dim=-1)
            hidden = self.enter(sample) + (self.time(told) + self.label(label))[:, None]
            q, k, v = self.qkv(hidden).chunk(3, dim=-1)
            q, k = turned(q, rotary_cos, rotary_sin), turned(k, rotary_cos, rotary_sin)
            scores = (q @ k.transpose(1, 2)) * head**-0.5
            return (self.leave(hidden + scores.softmax(dim=-1) @ v),)

    with torch.device("meta"):
        module = Packed()
    load_state(module, weights, where=spec.folder, dtype=dtype)
    return module


@step(outputs=("count", "guider", "conditions"))
def read_label(tools, label, guidance_scale, num_images_per_prompt):
    if not 0 <= label < tools.spec.denoiser.config["classes"]:
        raise InputError(f"label {label} was asked for; there is none of that number.")
    labels = np.full((num_images_per_prompt,), label, np.int64)
    guider = EmbeddedGuidance(guidance_scale=guidance_scale)
    return {"count": 1, "guider": guider, "conditions": {"positive": {"label": labels}}}


@step(outputs=("mu",))
def shift_by_size(tools, height, width):
    """More noise for larger pictures, as flow-matching models have it."""
    return {"mu": 0.5 + tools.spec.latents.dims(height, width)["tokens"] / 256}


CLASS_TO_IMAGE = Task(
    name="class-to-image",
    inputs={
        "label": Input(default=0, kind=int, option="--label", help="The number of a class."),
        "guidance_scale": Input(default=3.5, kind=float, help="What the denoiser is told."),
        "num_images_per_prompt": Input(default=1, kind=int, option="--num-images"),
        **SIZE,
        **STEPS,
        **NOISE,
        **OUTPUT,
    },
    steps=(
        read_label,
        check_size,
        shift_by_size,
        prepare_schedule,
        prepare_latents,
        *denoise_loop,
        decode,
        finish,
    ),
)
