"""Train `shapes` from nothing: `python -m perfuse.shapes.train --output FOLDER --seed 0`.

Three stages, each resumable, each a function of the seed alone:

1. *vae*: an `AutoencoderKL` learns 64×64 pictures as 16×16×4 latents (Rombach et al. 2022, section 3.1);
2. *latents*: the frozen encoder turns a fixed training set into latents of unit variance;
3. *unet*: the UNet and the text encoder learn together to denoise them, by v-prediction (Salimans &
   Ho 2022, appendix D); the moving average of their weights is what is kept.

The state of an unfinished run lies in the folder `--work`; the same command goes on from it.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from perfuse.models import AutoencoderKL, UNet2DConditionModel
from perfuse.shapes import grammar
from perfuse.shapes.tokenizer import BOS, EOS, LENGTH, vocabulary, write_json, write_tokenizer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what comes out."""

    seed: int = 0
    vae_steps: int = 4000
    vae_batch: int = 16
    vae_rate: float = 2e-3
    kl_weight: float = 5e-4
    """Weight of the mean KL divergence of one latent number."""
    pairs: float = 0.15
    """Share of scenes with two objects."""
    scenes: int = 40_000
    """How many pictures the UNet learns from."""
    unet_steps: int = 25_000
    wide_steps: int = 6_000
    """Steps of these on pictures whose objects wander far; the others learn clean edges."""
    late_step: int = 11_500
    """From this step on, when one object is easy, `late_pairs` of the scenes have two."""
    late_pairs: float = 0.35
    unet_batch: int = 32
    unet_rate: float = 1e-3
    silence: float = 0.12
    """Share of empty captions, for classifier-free guidance (Ho & Salimans 2022)."""
    average: float = 0.9995
    """Decay of the moving average of the weights."""


WIDE, NARROW = 1.5, 0.5
"""How far objects wander from their places, in pixels."""

WIDTH = 64
"""Width of the text encoder, and of what it tells the UNet."""

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.35.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class Clock:
    """Prints a line of progress now and then."""

    def __init__(self, stage: str, steps: int) -> None:
        self.stage, self.steps, self.began = stage, steps, time.monotonic()

    def __call__(self, step: int, **numbers: float) -> None:
        said = "  ".join(f"{name} {value:.5f}" for name, value in numbers.items())
        minutes = (time.monotonic() - self.began) / 60
        print(f"{self.stage} {step}/{self.steps}  {said}  {minutes:.1f} min", flush=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def rate(step: int, steps: int, *, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_vae(factor: float = 1.0) -> AutoencoderKL:
    """The autoencoder; `factor` is what its latents are multiplied with to have unit variance."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=grammar.SIDE,
        scaling_factor=factor,
    )


def pictures(rng: np.random.Generator, count: int, pairs: float) -> Tensor:
    """Random training pictures, float32 [count, 3, 64, 64] in [-1, 1]."""
    drawn = [grammar.draw(grammar.sample(rng, pairs=pairs), rng, wander=WIDE) for _ in range(count)]
    return to_model(drawn)


def to_model(drawn: list[NDArray[np.uint8]]) -> Tensor:
    """Pictures as the VAE takes them: float32 [count, 3, 64, 64] in [-1, 1]."""
    x = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def edges(x: Tensor) -> Tensor:
    """One, and more where the picture changes: [batch, 1, height, width]."""
    high, low = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    return 1 + 3 * (high - low).amax(1, keepdim=True).clamp(max=1)


def train_vae(recipe: Recipe, work: Path) -> AutoencoderKL:
    """Stage 1."""
    torch.manual_seed(recipe.seed)
    vae = make_vae()
    vae.to(memory_format=torch.channels_last)
    adam = torch.optim.AdamW(
        vae.parameters(), lr=recipe.vae_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    path, begin = work / "vae.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        begin = state["step"]
    clock = Clock("vae", recipe.vae_steps)
    for step in range(begin, recipe.vae_steps):
        rng = np.random.default_rng([recipe.seed, 1, step])
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        for group in adam.param_groups:
            group["lr"] = recipe.vae_rate * rate(step, recipe.vae_steps, warmup=100)
        x = pictures(rng, recipe.vae_batch, recipe.pairs)
        mean, log_variance = vae.encode_moments(x).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        y = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample
        weight = edges(x)
        picture = (weight * ((y - x).abs() * 0.2 + (y - x).square())).mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = picture + recipe.kl_weight * kl
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        adam.step()
        if (step + 1) % 50 == 0:
            clock(
                step + 1, picture=picture.item(), mse=(y - x).square().mean().item(), kl=kl.item()
            )
        if (step + 1) % 250 == 0 or step + 1 == recipe.vae_steps:
            save(path, {"model": vae.state_dict(), "adam": adam.state_dict(), "step": step + 1})
    vae.eval()
    return vae


def scene_set(recipe: Recipe) -> list[grammar.Scene]:
    """The scenes that the UNet learns from."""
    streams = (np.random.default_rng([recipe.seed, 2, index]) for index in range(recipe.scenes))
    return [grammar.sample(rng, pairs=recipe.pairs) for rng in streams]


def encode_set(recipe: Recipe, vae: AutoencoderKL, path: Path, wander: float) -> Tensor:
    """Stage 2: the latents of pictures of the scenes, as the encoder gives them: float32 [count, 4, 16, 16]."""
    if path.exists():
        latents: Tensor = torch.load(path, weights_only=True)["latents"]
        return latents
    scenes, clock, parts = scene_set(recipe), Clock(path.stem, recipe.scenes), []
    for begin in range(0, recipe.scenes, 50):
        drawn = []
        for index in range(begin, min(begin + 50, recipe.scenes)):
            rng = np.random.default_rng([recipe.seed, 4, index])
            drawn.append(grammar.draw(scenes[index], rng, wander=wander))
        with torch.no_grad():
            parts.append(vae.encode_moments(to_model(drawn)).chunk(2, dim=1)[0])
        if (begin + 50) % 5000 == 0:
            clock(begin + 50)
    latents = torch.cat(parts).contiguous()
    save(path, {"latents": latents})
    return latents


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 6),
    )


def make_text_encoder() -> CLIPTextModel:
    ids, _ = vocabulary()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(ids),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=ids[BOS],
            eos_token_id=ids[EOS],
            pad_token_id=ids[EOS],
        )
    )


def tokenize(caption: str) -> list[int]:
    """The tokens of a caption, marks and padding included: LENGTH numbers."""
    ids, _ = vocabulary()
    tokens = [ids[BOS], *(ids[word + "</w>"] for word in caption.split()), ids[EOS]]
    return tokens + [ids[EOS]] * (LENGTH - len(tokens))


def alphas_bar() -> Tensor:
    """The cumulative product of 1 - beta of Stable Diffusion's schedule, float32 [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


class Lessons:
    """Which scenes a step of the last stage shows, and what it says of them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.scenes = recipe, scene_set(recipe)
        two = np.array([scene.relation is not None for scene in self.scenes])
        self.paired, self.alone = np.flatnonzero(two), np.flatnonzero(~two)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """The numbers of the scenes, int64 [batch], and their captions' tokens, int64 [batch, LENGTH]."""
        recipe, batch = self.recipe, self.recipe.unet_batch
        rng = np.random.default_rng([recipe.seed, 3, step])
        picked = rng.integers(len(self.scenes), size=batch)
        if step >= recipe.late_step:
            two = rng.choice(self.paired, size=batch)
            late = rng.random(batch) < recipe.late_pairs
            picked = np.where(late, two, rng.choice(self.alone, size=batch))
        tokens = [
            tokenize(
                ""
                if rng.random() < recipe.silence
                else grammar.tell(self.scenes[index], rng).caption()
            )
            for index in picked
        ]
        return torch.from_numpy(picked), torch.tensor(tokens)


def noised(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents x_t, their timesteps t and the targets v = alpha * noise - sigma * x0."""
    count, alpha_bar = len(x0), alphas_bar()
    noise = torch.randn(x0.shape, generator=generator)
    # One timestep from each of `count` equal parts: the loss is less noisy than with free draws.
    parts = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    t = (parts / count * 1000).long().clamp(max=999)
    alpha, sigma = (part.sqrt()[:, None, None, None] for part in (alpha_bar[t], 1 - alpha_bar[t]))
    return alpha * x0 + sigma * noise, t, alpha * noise - sigma * x0


def train_unet(
    recipe: Recipe, wide: Tensor, narrow: Tensor, work: Path
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Stage 3: the averaged UNet and text encoder.

    `wide` and `narrow` are the latents of unit variance of the first and of the other steps.
    """
    lessons = Lessons(recipe)
    torch.manual_seed(recipe.seed + 1)
    unet, text_encoder = make_unet(), make_text_encoder()
    averaged = copy.deepcopy((unet, text_encoder))
    model = nn.ModuleList((unet, text_encoder))
    mean = nn.ModuleList(averaged).requires_grad_(False)
    adam = torch.optim.AdamW(
        model.parameters(), lr=recipe.unet_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    path, begin = work / "unet.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        adam.load_state_dict(state["adam"])
        begin = state["step"]
    clock, running = Clock("unet", recipe.unet_steps), 0.0
    for step in range(begin, recipe.unet_steps):
        for group in adam.param_groups:
            group["lr"] = recipe.unet_rate * rate(step, recipe.unet_steps, warmup=300)
        picked, tokens = lessons(step)
        x0 = (wide if step < recipe.wide_steps else narrow)[picked]
        x_t, t, v = noised(x0, torch.Generator().manual_seed((recipe.seed + 7) * 1_000_003 + step))
        hidden = text_encoder(input_ids=tokens).last_hidden_state
        loss = (unet(x_t, t, hidden, return_dict=False)[0] - v).square().mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        decay = min(recipe.average, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - decay)
        running += loss.item()
        if (step + 1) % 100 == 0:
            clock(step + 1, loss=running / 100)
            running = 0.0
        if (step + 1) % 500 == 0 or step + 1 == recipe.unet_steps:
            state = {
                "model": model.state_dict(),
                "mean": mean.state_dict(),
                "adam": adam.state_dict(),
            }
            save(path, {**state, "step": step + 1})
    mean.eval()
    return averaged


def _save_text_encoder(text_encoder: CLIPTextModel, folder: Path) -> None:
    """Save it under the names of Stable Diffusion's files, which every transformers reads.

    (Since version 5 transformers itself leaves the prefix out, and version 4 does not find the rest.)
    """
    folder.mkdir(parents=True, exist_ok=True)
    text_encoder.config.architectures = ["CLIPTextModel"]
    text_encoder.config.save_pretrained(folder)
    named = {
        "text_model." + name.removeprefix("text_model."): tensor.contiguous()
        for name, tensor in text_encoder.state_dict().items()
    }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def write_checkpoint(
    output: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
) -> None:
    """Write the pipeline's folder in the layout of Stable Diffusion."""
    vae.save_pretrained(output / "vae")
    unet.save_pretrained(output / "unet")
    _save_text_encoder(text_encoder, output / "text_encoder")
    write_tokenizer(output / "tokenizer")
    write_json(output / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(output / "model_index.json", INDEX)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model `shapes` from nothing.")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write the pipeline to"
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--vae-steps", type=int, default=Recipe.vae_steps)
    parser.add_argument("--unet-steps", type=int, default=Recipe.unet_steps)
    parser.add_argument("--scenes", type=int, default=Recipe.scenes)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="folder of the resumable state")
    options = parser.parse_args()
    recipe = Recipe(
        seed=options.seed,
        vae_steps=options.vae_steps,
        unet_steps=options.unet_steps,
        scenes=options.scenes,
    )
    torch.set_num_threads(options.threads)
    work = (
        options.work
        if options.work is not None
        else user_cache_path("perfuse") / f"shapes-{options.seed}"
    )
    work.mkdir(parents=True, exist_ok=True)
    vae = train_vae(recipe, work)
    wide = encode_set(recipe, vae, work / "wide.pt", WIDE)
    narrow = encode_set(recipe, vae, work / "narrow.pt", NARROW)
    factor = round(1 / wide.std().item(), 5)
    unet, text_encoder = train_unet(recipe, wide * factor, narrow * factor, work)
    scaled = make_vae(factor)
    scaled.load_state_dict(vae.state_dict())
    write_checkpoint(options.output, scaled, unet, text_encoder)


if __name__ == "__main__":
    main()
