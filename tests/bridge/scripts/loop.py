"""A model, a scheduler, and the loop written by hand."""

import sys

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

repo_id, output = sys.argv[1:]
scheduler = DDPMScheduler.from_pretrained(repo_id, subfolder="scheduler")
model = UNet2DModel.from_pretrained(repo_id, subfolder="unet", use_safetensors=True).to("cpu")
scheduler.set_timesteps(4)

sample_size = model.config.sample_size
torch.manual_seed(0)
noise = torch.randn((1, 3, sample_size, sample_size), device="cpu")

input = noise
for t in scheduler.timesteps:
    with torch.no_grad():
        noisy_residual = model(input, t).sample
    previous_noisy_sample = scheduler.step(noisy_residual, t, input).prev_sample
    input = previous_noisy_sample

image = (input / 2 + 0.5).clamp(0, 1).squeeze()
image = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
image = Image.fromarray(image)
np.save(output, np.asarray(image))
