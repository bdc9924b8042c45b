"""Train the ControlNet of `shapes`: `python -m perfuse.shapes.train_control --output FOLDER`.

The bundled model stays as it is. A copy of its UNet's first half learns to read outlines: of pictures
whose objects stand anywhere, with captions that say neither where nor, mostly, what they are (Zhang et
al. 2023, arXiv:2302.05543). An unfinished run goes on from the folder `--work`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor, nn
from transformers import CLIPTextModel

from perfuse.models import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from perfuse.shapes import CHECKPOINT, grammar
from perfuse.shapes.outline import moved, outline, without_form
from perfuse.shapes.train import Clock, noised, rate, save, to_model, tokenize


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what comes out."""

    seed: int = 0
    scenes: int = 6000
    """How many pictures it learns from."""
    pairs: float = 0.15
    """Share of scenes with two objects."""
    steps: int = 3000
    batch: int = 8
    rate: float = 1e-3
    vague: float = 0.7
    """Share of captions that do not say what shape and size an object has."""
    silence: float = 0.1
    """Share of empty captions."""


def caption_of(scene: grammar.Scene, recipe: Recipe, rng: np.random.Generator) -> str:
    """A caption of a complete scene for training; it never says where one object stands."""
    if rng.random() < recipe.silence:
        return ""
    if rng.random() < recipe.vague:
        scene = without_form(scene)
    objects = tuple(replace(item, place=None) for item in scene.objects)
    return replace(scene, objects=objects).caption()


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """The training set."""

    scenes: list[grammar.Scene]
    latents: Tensor
    """Of unit variance, float32 [count, 4, 16, 16]."""
    outlines: Tensor
    """uint8 [count, 64, 64], 0 or 255."""


def prepare(recipe: Recipe, vae: AutoencoderKL, path: Path) -> Lessons:
    """Draw the training set and encode it; kept in a file."""
    rngs = [np.random.default_rng([recipe.seed, 5, index]) for index in range(recipe.scenes)]
    scenes = [grammar.sample(rng, pairs=recipe.pairs) for rng in rngs]
    if path.exists():
        state = torch.load(path, weights_only=True)
        return Lessons(scenes=scenes, latents=state["latents"], outlines=state["outlines"])
    clock, latents, outlines = Clock("prepare", recipe.scenes), [], []
    for begin in range(0, recipe.scenes, 50):
        some = zip(scenes[begin : begin + 50], rngs[begin : begin + 50], strict=True)
        drawn = [moved(scene, rng) for scene, rng in some]
        outlines += [np.asarray(outline(picture))[..., 0] for picture in drawn]
        with torch.no_grad():
            latents.append(vae.encode_moments(to_model(drawn)).chunk(2, dim=1)[0])
        if (begin + 50) % 1000 == 0:
            clock(begin + 50)
    state = {
        "latents": torch.cat(latents) * vae.config.scaling_factor,
        "outlines": torch.from_numpy(np.stack(outlines)),
    }
    save(path, state)
    return Lessons(scenes=scenes, **state)


def train(
    recipe: Recipe,
    lessons: Lessons,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    work: Path,
) -> ControlNetModel:
    """The ControlNet; the other models do not learn."""
    torch.manual_seed(recipe.seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 16, 32))
    adam = torch.optim.AdamW(net.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01)
    path, begin = work / "controlnet.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        begin = state["step"]
    clock, running = Clock("controlnet", recipe.steps), 0.0
    for step in range(begin, recipe.steps):
        for group in adam.param_groups:
            group["lr"] = recipe.rate * rate(step, recipe.steps, warmup=200)
        rng = np.random.default_rng([recipe.seed, 6, step])
        picked = rng.integers(recipe.scenes, size=recipe.batch)
        tokens = [tokenize(caption_of(lessons.scenes[index], recipe, rng)) for index in picked]
        with torch.no_grad():
            hidden = text_encoder(input_ids=torch.tensor(tokens)).last_hidden_state
        lines = lessons.outlines[picked][:, None].float().div(255).expand(-1, 3, -1, -1)
        x_t, t, v = noised(
            lessons.latents[picked],
            torch.Generator().manual_seed((recipe.seed + 9) * 1_000_003 + step),
        )
        down, mid = net(x_t, t, hidden, lines, return_dict=False)
        predicted = unet(
            x_t,
            t,
            hidden,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]
        loss = (predicted - v).square().mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        running += loss.item()
        if (step + 1) % 100 == 0:
            clock(step + 1, loss=running / 100)
            running = 0.0
        if (step + 1) % 250 == 0 or step + 1 == recipe.steps:
            state = {"model": net.state_dict(), "adam": adam.state_dict(), "step": step + 1}
            save(path, state)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the ControlNet of the bundled model.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write it to")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--scenes", type=int, default=Recipe.scenes)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="folder of the resumable state")
    options = parser.parse_args()
    recipe = Recipe(seed=options.seed, steps=options.steps, scenes=options.scenes)
    torch.set_num_threads(options.threads)
    usual = user_cache_path("perfuse") / f"shapes-control-{options.seed}"
    work: Path = options.work if options.work is not None else usual
    work.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(CHECKPOINT / "vae").eval()
    unet = UNet2DConditionModel.from_pretrained(CHECKPOINT / "unet").eval().requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(CHECKPOINT / "text_encoder").eval()
    lessons = prepare(recipe, vae, work / "lessons.pt")
    net = train(recipe, lessons, unet, text_encoder, work)
    net.half().save_pretrained(options.output)


if __name__ == "__main__":
    main()
