"""A prompt, another scheduler, and a callback that ends guidance half way."""

import sys

import numpy as np
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler


def callback_dynamic_cfg(pipeline, step_index, timestep, callback_kwargs):
    if step_index == int(pipeline.num_timesteps * 0.5):
        callback_kwargs["prompt_embeds"] = callback_kwargs["prompt_embeds"].chunk(2)[-1]
        pipeline._guidance_scale = 0.0
    return callback_kwargs


def main():
    model_id, output = sys.argv[1:]
    pipeline = DiffusionPipeline.from_pretrained(model_id, use_safetensors=True)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator(device="cpu").manual_seed(1)
    image = pipeline(
        prompt="a photo of an astronaut riding a horse on mars",
        num_inference_steps=4,
        generator=generator,
        callback_on_step_end=callback_dynamic_cfg,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    ).images[0]
    np.save(output, np.asarray(image))


if __name__ == "__main__":
    main()
