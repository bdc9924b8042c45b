"""Train `shapes-flow` from nothing: `python -m perfuse.shapes.train_flow --output FOLDER --seed 0`.

The autoencoder of `shapes` stays as it is. A transformer in Z-Image's layout, which reads captions and
pictures in one stream, learns together with a small Qwen 3 to turn noise into its latents along straight
lines (Lipman et al. 2022, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206); the moving average of
their weights is what is kept. An unfinished run goes on from the folder `--work`.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from perfuse.models import AutoencoderKL, ZImageTransformer2DModel
from perfuse.models.z_image_transformer.description import describe, host_inputs
from perfuse.shapes import CHECKPOINT, grammar, train
from perfuse.shapes.tokenizer import (
    PADDING,
    TURN,
    TURN_END,
    language_vocabulary,
    write_json,
    write_language_tokenizer,
)
from perfuse.shapes.train import NARROW, Clock, encode_set, rate, save, scene_set


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what comes out."""

    seed: int = 0
    pairs: float = 0.2
    """Share of scenes with two objects."""
    scenes: int = 20_000
    """How many pictures it learns from."""
    steps: int = 9_500
    batch: int = 32
    rate: float = 2e-3
    matrix_rate: float = 4e-3
    """The rate of the blocks' matrices, which learn by Muon."""
    silence: float = 0.1
    """Share of empty captions, for classifier-free guidance (Ho & Salimans 2022)."""
    capital: float = 0.1
    """Share of captions that begin with a capital letter."""
    shift: float = 2.0
    """How much more often levels of much noise are shown (Esser et al. 2024, section 5.3.2)."""
    lean: float = 1.2
    """The most of a picture that is in the noise of half of the examples: guidance leaves too much of it."""
    average: float = 0.999
    """Decay of the moving average of the weights."""


WIDTH = 64
"""Width of the text encoder."""
TOKENS = 32
"""Tokens of a caption, filled up: Z-Image's multiple, which is longer than any caption here."""
SIDE = 16
"""Latents of a picture's side."""

TRANSFORMER: dict[str, Any] = {
    "in_channels": 4,
    "dim": 96,
    "n_layers": 6,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "cap_feat_dim": WIDTH,
    "axes_dims": (8, 8, 8),
    "axes_lens": (1024, 64, 64),
    "sample_size": SIDE,
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.36.0",
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
}

INDEX: dict[str, Any] = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": "0.36.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class Painter(nn.Module):
    """The text encoder and the transformer, for captions of `TOKENS` tokens and one size of picture."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = ZImageTransformer2DModel(**TRANSFORMER)
        self.text_encoder = make_text_encoder()
        for name, weight in self.transformer.named_parameters():
            # Each block does nothing at first (Peebles & Xie 2022, arXiv:2212.09748, section 3.2).
            if "adaLN_modulation" in name or "all_final_layer" in name:
                nn.init.zeros_(weight)
        (spec,) = describe("transformer", "transformer", self.transformer.config.to_dict())
        sizes = {"sequence": TOKENS, "latent_height": SIDE, "latent_width": SIDE}
        tables = host_inputs(spec, {**sizes, "sequence": TOKENS + 1}, None)
        self.tables = {name: torch.from_numpy(table) for name, table in tables.items()}

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """The velocity, [B, 4, 16, 16], from noisy latents, noise shares [B] and tokens [B, TOKENS]."""
        said = tokens != language_vocabulary()[0][PADDING]
        read = self.text_encoder(input_ids=tokens, output_hidden_states=True)
        rotary = self.tables["caption_rotary"]
        velocity: Tensor = self.transformer(
            x_t,
            1000 * t,
            read.hidden_states[-2],
            (~said).float(),
            torch.zeros(tokens.shape),
            rotary[None, :, TOKENS].expand(len(x_t), -1, -1),
            rotary[:, :TOKENS],
            self.tables["row_rotary"],
            self.tables["column_rotary"],
            self.tables["padding_bias"],
        )[0]
        return velocity


def set_of(recipe: Recipe) -> train.Recipe:
    """The training set, as `train` makes it."""
    return train.Recipe(seed=recipe.seed, pairs=recipe.pairs, scenes=recipe.scenes)


def make_text_encoder() -> Qwen3Model:
    """Two layers, of which Z-Image reads the first; captions attend in the transformer, too."""
    ids, _ = language_vocabulary()
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(ids),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
            max_position_embeddings=512,
            eos_token_id=ids[TURN_END],
            pad_token_id=ids[PADDING],
        )
    )


def tokenize(caption: str) -> list[int]:
    """The tokens of a caption, marks and padding included: `TOKENS` numbers."""
    ids, _ = language_vocabulary()
    tokens = [ids[TURN], *(ids["Ġ" + word] for word in caption.split()), ids[TURN_END]]
    # The template has a space before the caption, which an empty one leaves alone.
    tokens[1:1] = [] if caption else [ids["Ġ"]]
    return tokens + [ids[PADDING]] * (TOKENS - len(tokens))


def caption_of(scene: grammar.Scene, recipe: Recipe, rng: np.random.Generator) -> str:
    """What a training caption says of a complete scene."""
    if rng.random() < recipe.silence:
        return ""
    caption = grammar.tell(scene, rng).caption()
    return caption[0].upper() + caption[1:] if rng.random() < recipe.capital else caption


def noised(
    x0: Tensor, mean: Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents on the way to noise, the noise's shares t, and the velocity there: noise - x0.

    `mean` is that of all pictures, [4, 16, 16]. Guidance goes from it to a picture, and too far: what
    differs from it is in half of the noise, too, so that the way back is learned.
    """
    count, shift = len(x0), recipe.shift
    noise = torch.randn(x0.shape, generator=generator)
    lean = recipe.lean * torch.rand(count, generator=generator)
    lean = lean * (torch.rand(count, generator=generator) < 0.5)
    noise = noise + lean[:, None, None, None] * (x0 - mean)
    # One from each of `count` equal parts: the loss is less noisy than with free draws.
    parts = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    t = parts / count
    t = shift * t / (1 + (shift - 1) * t)
    share = t[:, None, None, None]
    return (1 - share) * x0 + share * noise, t, noise - x0


def answers(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """How strongly the decoder answers to a change of each channel, 1 in the mean: [4, 1, 1].

    Two of the four channels hardly say anything; what nobody can predict of them would be most of the
    loss.
    """
    shape = (latents.shape[1], *latents.shape)
    change = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    changes = change.new_zeros(shape)
    for channel in range(len(changes)):
        changes[channel, :, channel] = change[:, channel]
    with torch.no_grad():
        still = vae.decode(latents).sample
        strengths = [(vae.decode(latents + one).sample - still).square().mean() for one in changes]
    told = torch.stack(strengths).sqrt()
    return (told / told.mean())[:, None, None]


def optimizers(model: Painter, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for everything else."""
    net = model.transformer
    stacks = (net.layers, net.noise_refiner, net.context_refiner, model.text_encoder.layers)
    hidden = {
        weight
        for stack in stacks
        for name, weight in stack.named_parameters()
        if weight.ndim == 2 and "adaLN" not in name
    }
    matrices = [weight for weight in model.parameters() if weight in hidden]
    others = [weight for weight in model.parameters() if weight not in hidden]
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01)
    return [muon, adam]


def train_flow(recipe: Recipe, latents: Tensor, weight: Tensor, work: Path) -> Painter:
    """The averaged models. `latents`, [scenes, 4, 16, 16], have mean 0 and variance 1.

    `weight` is how much each of their channels counts.
    """
    scenes, mean = scene_set(set_of(recipe)), latents.mean(0)
    torch.manual_seed(recipe.seed)
    model = Painter()
    averaged = copy.deepcopy(model).requires_grad_(False)
    learning = optimizers(model, recipe)
    path, begin = work / "flow.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["mean"])
        for one, kept in zip(learning, state["learning"], strict=True):
            one.load_state_dict(kept)
        begin = state["step"]
    clock, running = Clock("flow", recipe.steps), 0.0
    model.transformer.compile()
    for step in range(begin, recipe.steps):
        for one, peak in zip(learning, (recipe.matrix_rate, recipe.rate), strict=True):
            one.param_groups[0]["lr"] = peak * rate(step, recipe.steps, warmup=200)
        rng = np.random.default_rng([recipe.seed, 3, step])
        picked = rng.integers(len(scenes), size=recipe.batch)
        tokens = torch.tensor([tokenize(caption_of(scenes[i], recipe, rng)) for i in picked])
        generator = torch.Generator().manual_seed((recipe.seed + 7) * 1_000_003 + step)
        x_t, t, velocity = noised(latents[picked], mean, recipe, generator)
        loss = (weight * (model(x_t, t, tokens) - velocity).square()).mean()
        for one in learning:
            one.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in learning:
            one.step()
        decay = min(recipe.average, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
        running += loss.item()
        if (step + 1) % 100 == 0:
            clock(step + 1, loss=running / 100)
            running = 0.0
        if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
            state = {
                "model": model.state_dict(),
                "mean": averaged.state_dict(),
                "learning": [one.state_dict() for one in learning],
            }
            save(path, {**state, "step": step + 1})
    return averaged.eval()


def write_checkpoint(output: Path, vae: AutoencoderKL, model: Painter) -> None:
    """Write the pipeline's folder in the layout of Z-Image; the transformer in half precision."""
    vae.save_pretrained(output / "vae")
    model.transformer.half().save_pretrained(output / "transformer")
    folder = output / "text_encoder"
    folder.mkdir(parents=True, exist_ok=True)
    model.text_encoder.config.architectures = ["Qwen3Model"]
    model.text_encoder.config.save_pretrained(folder)
    state = {name: one.contiguous() for name, one in model.text_encoder.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_language_tokenizer(output / "tokenizer")
    write_json(output / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(output / "model_index.json", INDEX)


def scaled(vae: AutoencoderKL, latents: Tensor) -> AutoencoderKL:
    """The autoencoder with the factor and the shift that give its latents mean 0 and variance 1."""
    config = {
        **vae.config.to_dict(),
        "scaling_factor": round(1 / latents.std().item(), 5),
        "shift_factor": round(latents.mean().item(), 5),
    }
    other = AutoencoderKL.from_config(config)
    other.load_state_dict(vae.state_dict())
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model `shapes-flow`.")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write the pipeline to"
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--scenes", type=int, default=Recipe.scenes)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="folder of the resumable state")
    options = parser.parse_args()
    recipe = Recipe(seed=options.seed, steps=options.steps, scenes=options.scenes)
    torch.set_num_threads(options.threads)
    work = (
        options.work
        if options.work is not None
        else user_cache_path("perfuse") / f"shapes-flow-{options.seed}"
    )
    work.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(CHECKPOINT, subfolder="vae")
    latents = encode_set(set_of(recipe), vae, work / "latents.pt", NARROW)
    weight = answers(vae, latents[:20])
    vae = scaled(vae, latents)
    shift, factor = vae.config.shift_factor, vae.config.scaling_factor
    assert shift is not None
    model = train_flow(recipe, (latents - shift) * factor, weight, work)
    write_checkpoint(options.output, vae, model)


if __name__ == "__main__":
    main()
