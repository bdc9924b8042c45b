"""Models and schedulers in the user's own loop, as the chapter on what a pipeline is made of has it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import perfuse
from perfuse import ArtifactStore

pytestmark = pytest.mark.export

Make = Callable[[str], Path]


def models_of(folder: Path) -> dict[str, Any]:
    return {
        "vae": diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        "text_encoder": transformers.CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder"
        ),
        "unet": diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
    }


def drawn(folder: Path, vae: Any, text_encoder: Any, unet: Any) -> Any:
    """The chapter's loop for Stable Diffusion: guided, with another scheduler than the checkpoint's."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    prompt = ["a red circle"]
    filled = {"padding": "max_length", "max_length": tokenizer.model_max_length}
    text_input = tokenizer(prompt, truncation=True, return_tensors="pt", **filled)
    with torch.no_grad():
        text_embeddings = text_encoder(text_input.input_ids)[0]
    uncond_input = tokenizer([""] * len(prompt), return_tensors="pt", **filled)
    uncond_embeddings = text_encoder(uncond_input.input_ids)[0]
    text_embeddings = torch.cat([uncond_embeddings, text_embeddings])
    latents = torch.randn(
        (len(prompt), unet.config.in_channels, 8, 8), generator=torch.manual_seed(0)
    )
    latents = latents * scheduler.init_noise_sigma
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(torch.cat([latents] * 2), timestep=t)
        with torch.no_grad():
            noise_pred = unet(model_input, t, encoder_hidden_states=text_embeddings).sample
        noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
        noise_pred = noise_pred_uncond + 7.5 * (noise_pred_text - noise_pred_uncond)
        latents = scheduler.step(noise_pred, t, latents).prev_sample
    with torch.no_grad():
        return vae.decode(1 / 0.18215 * latents).sample


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_stable_diffusion_taken_apart(engine: str, checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    folder = checkpoint("sd1")
    expected = drawn(folder, **models_of(folder))
    on_engine = {
        name: perfuse.accelerate(model, engine, store=ArtifactStore(tmp_path), strict=True)
        for name, model in models_of(folder).items()
    }
    found = drawn(folder, **on_engine)
    assert float((found - expected).detach().abs().max()) <= 1e-3 * float(expected.abs().max())
    calls = {name: model.perfuse.report()[0].calls for name, model in on_engine.items()}
    assert calls == {"vae": 1, "text_encoder": 2, "unet": 3}
