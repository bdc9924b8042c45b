"""A picture, and another made of it by a pipeline of the same models."""

import sys

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image

model_id, output = sys.argv[1:]
pipe_txt2img = AutoPipelineForText2Image.from_pretrained(model_id, use_safetensors=True)
pipe_txt2img.set_progress_bar_config(disable=True)
prompt = "cinematic photo of Godzilla eating sushi with a cat in a izakaya"
generator = torch.Generator(device="cpu").manual_seed(37)
image = pipe_txt2img(prompt, num_inference_steps=2, generator=generator).images[0]

pipe_img2img = AutoPipelineForImage2Image.from_pipe(pipe_txt2img)
pipe_img2img.set_progress_bar_config(disable=True)
generator = torch.Generator(device="cpu").manual_seed(37)
image = pipe_img2img(
    prompt, image=image, strength=0.7, num_inference_steps=4, generator=generator
).images[0]
np.save(output, np.asarray(image))
