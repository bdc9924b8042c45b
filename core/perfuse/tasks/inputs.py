"""The inputs that tasks share, with their defaults and help."""

from perfuse.contract.steps import REQUIRED, Input

__all__ = ["GUIDANCE", "NOISE", "OUTPUT", "PROMPTS", "REQUIRED", "SIZE", "STEPS"]

STEPS = {
    "num_inference_steps": Input(default=50, kind=int, option="--steps", help="Denoising steps."),
    "timesteps": Input(help="Exactly these timesteps instead of a number of steps."),
    "sigmas": Input(help="Exactly these noise levels instead of a number of steps."),
    "eta": Input(default=0.0, kind=float, help="DDIM's eta: share of fresh noise, 0 to 1."),
}
SIZE = {
    "height": Input(kind=int, option="--height", help="In pixels."),
    "width": Input(kind=int, option="--width", help="In pixels."),
}
GUIDANCE = {
    "guidance_scale": Input(
        default=7.5,
        kind=float,
        option="--guidance",
        help="Guidance scale; 1 or less draws without it.",
    ),
    "guidance_rescale": Input(
        default=0.0, kind=float, option="--guidance-rescale", help="0 to 1, against overexposure."
    ),
    "guider": Input(
        kind=str,
        option="--guider",
        help="A guidance method instead of the default one: NAME:key=value.",
    ),
}
PROMPTS = {
    "clip_skip": Input(
        kind=int, option="--clip-skip", help="Layers of the text encoder to leave out at the end."
    ),
    "prompt_syntax": Input(
        kind=str,
        option="--prompt-syntax",
        help="a1111, compel or plain: prompts of any length, with that syntax's weights.",
    ),
}
NOISE = {
    "seed": Input(
        kind=int, option="--seed", help="The same seed draws the same picture on every backend."
    ),
    "generator": Input(help="A torch.Generator, or one per picture, instead of a seed."),
    "noise_mode": Input(default="torch-cpu", kind=str, help="torch-cpu, or portable."),
    "latents": Input(help="Unit noise [B, C, h, w] instead of noise from the seed."),
}
OUTPUT = {
    "output_type": Input(default="pil", kind=str, help="pil, np, pt or latent."),
}
