"""Decode latents once, in a process of its own, and say what memory that took.

python decode_once.py ENGINE MODEL TILING LATENTS.npy PICTURE.npy

ENGINE is a target of perfuse's, or `diffusers`.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

engine, model, tiling, latents, picture = sys.argv[1:]
tiling = tiling == "true"
start = np.load(latents)


def peak() -> int:
    """The most resident memory so far, in bytes; Linux only."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024


if engine == "diffusers":
    import diffusers
    import torch

    vae = diffusers.AutoencoderKL.from_pretrained(model, subfolder="vae")
    if tiling:
        vae.enable_tiling()
    loaded = peak()
    with torch.inference_mode():
        scaled = torch.from_numpy(start) / vae.config.scaling_factor
        made = vae.decode(scaled).sample.numpy()
else:
    from perfuse import DiffusionPipeline
    from perfuse.run.tools import PipelineTools
    from perfuse.tasks.denoise import pictures_of

    options = {"cache": "false"} if engine.startswith("openvino") else {}
    pipe = DiffusionPipeline.from_pretrained(model, backend=engine, options=options)
    pipe.vae_tiling = tiling
    pipe.program("vae_decoder")
    loaded = peak()
    scale = pipe.spec.latents.downscale
    height, width = scale * start.shape[2], scale * start.shape[3]
    made = np.asarray(pictures_of(PipelineTools(pipe), start, height, width))
most = peak()  # before the picture is written
np.save(picture, made)
print(json.dumps({"loaded": loaded, "peak": most}))
