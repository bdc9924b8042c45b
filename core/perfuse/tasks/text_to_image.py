"""Pictures out of words, for Stable Diffusion 1, 2 and XL (arXiv:2112.10752, arXiv:2307.01952)."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from perfuse.arrays.noise import noise_for
from perfuse.arrays.operations import concatenate, is_torch, place
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import (
    check_count,
    check_output_type,
    check_size,
    denoise_loop,
    draw_latents,
    finish,
    prepare_schedule,
)
from perfuse.tasks.guidance import Guidance
from perfuse.tasks.steps import State, Step, Task, Tools

__all__ = ["TEXT_TO_IMAGE"]

Prompt = str | Sequence[str] | None


def read_texts(prompt: Prompt, name: str) -> list[str]:
    """One text or several as a list; ``InputError`` for anything else."""
    texts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} must be text, or a list of texts; got {prompt!r}.")
    return texts


def _check_states(tools: Tools, name: str, states: Array) -> None:
    """Raise ``InputError`` for text states that are not [B, S, D] with the denoiser's D."""
    wanted = {t.name: t.shape for t in tools.spec.denoiser.signature.inputs}
    width = wanted["encoder_hidden_states"][-1]
    shape = tuple(getattr(states, "shape", ()))
    if len(shape) != 3 or shape[-1] != width:
        found = f"an array of shape {shape}" if hasattr(states, "shape") else repr(states)
        raise InputError(f"{name} must be an array [batch, sequence, {width}]; got {found}.")


def _check_channels(tools: Tools) -> None:
    """Raise ``InputError`` for a denoiser that wants more than latents, as an inpainting one does."""
    latents, taken = tools.spec.latents, tools.spec.denoiser.signature.inputs[0].shape[1]
    if latents is not None and taken != latents.channels:
        raise InputError(
            f"text-to-image was asked for; this denoiser takes {taken} channels and the latents "
            f"have {latents.channels}: it is made for inpainting or editing. Use another checkpoint."
        )


def _read_prompts(
    tools: Tools,
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    guidance_scale: float,
    guidance_rescale: float,
    num_images_per_prompt: int,
    output_type: str,
) -> State:
    """Check what was asked for, before anything is prepared."""
    check_output_type(output_type)
    _check_channels(tools)
    if (prompt is None) == (prompt_embeds is None):
        raise InputError("Give either prompt or prompt_embeds, one of them.")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise InputError("Give either negative_prompt or negative_prompt_embeds, not both.")
    check_count("num_images_per_prompt", num_images_per_prompt)
    if prompt_embeds is not None:
        _check_states(tools, "prompt_embeds", prompt_embeds)
    if negative_prompt_embeds is not None:
        _check_states(tools, "negative_prompt_embeds", negative_prompt_embeds)
    if prompt_embeds is None:
        prompts = read_texts(prompt, "prompt")
        count = len(prompts)
    else:
        prompts, count = [], len(prompt_embeds)
    negatives = (
        read_texts(negative_prompt, "negative_prompt") if negative_prompt is not None else []
    )
    if len(negatives) not in (0, 1, count):
        raise InputError(
            f"{len(negatives)} negative prompts were given for {count} prompts; give one for all, "
            "or one each."
        )
    if (
        prompt_embeds is not None
        and negative_prompt_embeds is not None
        and tuple(prompt_embeds.shape) != tuple(negative_prompt_embeds.shape)
    ):
        raise InputError(
            f"prompt_embeds {tuple(prompt_embeds.shape)} and negative_prompt_embeds "
            f"{tuple(negative_prompt_embeds.shape)} must have the same shape."
        )
    guidance = Guidance(
        scale=guidance_scale,
        rescale=guidance_rescale,
        embedded="timestep_cond" in tools.spec.denoiser.signature.input_names,
    )
    return {
        "prompts": prompts,
        "negatives": negatives * (count if len(negatives) == 1 else 1),
        "count": count,
        "guidance": guidance,
    }


def encode(tools: Tools, encoder: str, tokenizer: str, texts: list[str]) -> dict[str, Any]:
    """Run a text encoder; warn of what did not fit, as Diffusers does."""
    tokens = tools.tokenizer(tokenizer)(texts)
    for cut in tokens.truncated:
        if cut is not None:
            limit = tokens.input_ids.shape[1]
            warnings.warn(
                f"The prompt is longer than the {limit} tokens that {encoder} reads; "
                f"this was cut off: {cut!r}",
                stacklevel=2,
            )
    outputs = tools.program(encoder)(input_ids=tokens.input_ids)
    # A program writes to the same memory again when it is called again.
    return {name: _own(array) for name, array in outputs.items()}


def _own(array: Array) -> Array:
    return array if is_torch(array) else array.copy()


def repeat(array: Array, times: int) -> Array:
    """Each item ``times`` times in a row: the pictures of a prompt stand together."""
    if times == 1:
        return array
    return array.repeat_interleave(times, dim=0) if is_torch(array) else np.repeat(array, times, 0)


def _encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    num_images_per_prompt: int,
    guidance: Guidance,
) -> State:
    """Text states [branches * pictures, S, D], those without the prompt first."""

    def states(texts: list[str]) -> Array:
        return encode(tools, "text_encoder", "tokenizer", texts)["last_hidden_state"]

    positive = prompt_embeds if prompt_embeds is not None else states(prompts)
    parts = [positive]
    if guidance.branches > 1:
        negative = negative_prompt_embeds
        if negative is None:
            negative = states(negatives or [""] * count)
        parts.insert(0, negative)
    device = positive.device if is_torch(positive) else None
    parts = [repeat(place(part, device), num_images_per_prompt) for part in parts]
    return {"conditions": {"encoder_hidden_states": concatenate(parts)}}


encode_prompt = Step(
    name="encode_prompt",
    inputs=(
        "prompts",
        "negatives",
        "count",
        "prompt_embeds",
        "negative_prompt_embeds",
        "num_images_per_prompt",
        "guidance",
    ),
    outputs=("conditions",),
    run=_encode_prompt,
)


def _prepare(
    tools: Tools,
    schedule: Schedule,
    conditions: dict[str, Array],
    guidance: Guidance,
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
) -> State:
    batch = count * num_images_per_prompt
    spec = tools.spec
    if spec.latents is None:
        raise InputError(f"{spec.class_name} has no latents; it cannot draw from text.")
    denoiser = spec.denoiser
    shape = (
        batch,
        int(denoiser.signature.inputs[0].shape[1]),
        height // spec.latents.downscale,
        width // spec.latents.downscale,
    )
    noise = noise_for(seed, generator, batch=batch, mode=noise_mode)
    if guidance.embedded:
        width_of = {t.name: t.shape[-1] for t in denoiser.signature.inputs}
        embedding = guidance_embedding(guidance.scale, int(width_of["timestep_cond"]))
        conditions = {**conditions, "timestep_cond": np.repeat(embedding, batch, axis=0)}
    return {
        "noise": noise,
        "seeds": noise.seeds,
        "latents": draw_latents(noise, schedule, shape, latents),
        "conditions": conditions,
    }


def guidance_embedding(scale: float, width: int) -> Any:
    """Sinusoids of the guidance scale, float32 [1, width] (Meng et al. 2023, arXiv:2210.03142)."""
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -(np.log(10000.0) / (half - 1)))
    phase = np.float32((scale - 1) * 1000.0) * frequencies.astype(np.float32)[None]
    embedding = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
    return np.pad(embedding, ((0, 0), (0, width % 2))).astype(np.float32)


def _check_size(tools: Tools, height: int | None, width: int | None) -> State:
    size = check_size(tools, height, width)
    return {"height": size[0], "width": size[1]}


def _decode(tools: Tools, samples: tuple[Array, ...], output_type: str) -> State:
    latents = samples[0]
    if output_type == "latent" or tools.spec.latents is None:
        return {"decoded": latents}
    scale, shift = tools.spec.latents.decode_coefficients()
    if is_torch(latents) and not isinstance(scale, float):
        scale, shift = place(scale, latents.device), place(shift, latents.device)
    program = tools.program("vae_decoder")
    latents = place(latents * scale + shift, program.torch_device)
    return {"decoded": program(latent_sample=latents)["sample"]}


def _finish(tools: Tools, decoded: Array, output_type: str) -> State:
    return {"images": finish(decoded, output_type)}


TEXT_TO_IMAGE = Task(
    name="text-to-image",
    inputs={
        "prompt": None,
        "negative_prompt": None,
        "height": None,
        "width": None,
        "num_inference_steps": 50,
        "timesteps": None,
        "sigmas": None,
        "guidance_scale": 7.5,
        "guidance_rescale": 0.0,
        "num_images_per_prompt": 1,
        "eta": 0.0,
        "seed": None,
        "generator": None,
        "noise_mode": "torch-cpu",
        "latents": None,
        "prompt_embeds": None,
        "negative_prompt_embeds": None,
        "output_type": "pil",
    },
    steps=(
        Step(
            name="read_prompts",
            inputs=(
                "prompt",
                "negative_prompt",
                "prompt_embeds",
                "negative_prompt_embeds",
                "guidance_scale",
                "guidance_rescale",
                "num_images_per_prompt",
                "output_type",
            ),
            outputs=("prompts", "negatives", "count", "guidance"),
            run=_read_prompts,
        ),
        Step(
            name="check_size",
            inputs=("height", "width"),
            outputs=("height", "width"),
            run=_check_size,
        ),
        prepare_schedule,
        encode_prompt,
        Step(
            name="prepare_latents",
            inputs=(
                "schedule",
                "conditions",
                "guidance",
                "count",
                "num_images_per_prompt",
                "height",
                "width",
                "seed",
                "generator",
                "noise_mode",
                "latents",
            ),
            outputs=("noise", "seeds", "latents", "conditions"),
            run=_prepare,
        ),
        *denoise_loop,
        Step(name="decode", inputs=("samples", "output_type"), outputs=("decoded",), run=_decode),
        Step(name="finish", inputs=("decoded", "output_type"), outputs=("images",), run=_finish),
    ),
)
