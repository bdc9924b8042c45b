"""A pipeline of ours beside Diffusers' of the same checkpoint: torch on the CPU, float32."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from perfuse import DiffusionPipeline

LATENTS, PICTURES = 1e-4, 1
#: Of what lines typed for Diffusers leave, in float32.
CLOSE = 5e-5

#: What a trained model's prediction has and a random one's has not: about the noise's own size.
GENTLE = 0.05

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


def make_gentle(
    folder: Path, *, factor: float = GENTLE, part: str = "unet", layer: str = "conv_out"
) -> Path:
    """Scale the denoiser's last layer, so that latents stay within what trained models have."""
    from safetensors.torch import load_file, save_file

    path = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for name in (f"{layer}.weight", f"{layer}.bias"):
        weights[name] = weights[name] * factor
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def run_lines(lines: str, library: Any, **names: Any) -> Any:
    """What lines as a user types them leave as ``result``.

    Args:
        lines: The lines; ``LIB`` in them is the library's name.
        library: ``diffusers`` or ``perfuse``.
        **names: What the lines find, beside ``torch``, ``np`` and ``seeded(n)``, a generator.
    """
    found = {"torch": torch, "np": np, **names}
    found["seeded"] = lambda seed: torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(lines.replace("LIB", library.__name__), found)  # noqa: S102
    return found["result"]


def check_same(theirs: Any, ours: Any) -> None:
    """Compare results: arrays of one type, dtype and shape, and close; all else equal."""
    if isinstance(theirs, tuple | list):
        assert len(theirs) == len(ours)
        for one, other in zip(theirs, ours, strict=True):
            check_same(one, other)
    elif isinstance(theirs, torch.Tensor | np.ndarray):
        assert type(theirs) is type(ours)
        assert theirs.dtype == ours.dtype
        assert theirs.shape == ours.shape
        pair = [np.asarray(one, np.float64) for one in (theirs, ours)]
        assert np.abs(pair[0] - pair[1]).max() <= (
            1 if theirs.dtype in (np.uint8, torch.uint8) else CLOSE
        )
    else:
        assert theirs == ours


@dataclass
class Pair:
    """A pipeline of ours and Diffusers' of the same checkpoint."""

    ours: Any
    theirs: Any

    @classmethod
    def open(cls, folder: Path, class_name: str, **settings: Any) -> "Pair":
        theirs = getattr(diffusers, class_name).from_pretrained(folder, **settings)
        theirs.set_progress_bar_config(disable=True)
        return cls(DiffusionPipeline.from_pretrained(folder, backend="torch:cpu"), theirs)

    def like(self, class_name: str, **settings: Any) -> "Pair":
        """The same models in another of Diffusers' classes."""
        theirs = getattr(diffusers, class_name).from_pipe(self.theirs, **settings)
        theirs.set_progress_bar_config(disable=True)
        return Pair(self.ours, theirs)

    def run(
        self, output_type: str, seed: Any = 0, *, own: Any = (), **inputs: Any
    ) -> tuple[Any, Any]:
        """Both results; ``own`` are our inputs that Diffusers calls otherwise."""
        generator = (
            [torch.Generator().manual_seed(one) for one in seed]
            if isinstance(seed, list)
            else torch.Generator().manual_seed(seed)
        )
        inputs = {"num_inference_steps": 4, "output_type": output_type, **inputs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = self.theirs(**inputs, generator=generator).images
            ours = self.ours(**{**inputs, **dict(own)}, seed=seed).images
        return ours, theirs

    def check(self, seed: Any = 0, **inputs: Any) -> Any:
        """The latents agree; return ours."""
        ours, theirs = self.run("latent", seed, **inputs)
        assert isinstance(ours, torch.Tensor)
        ours, theirs = ours.numpy(), theirs.numpy()
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        assert ours.std() > 0.01  # something was drawn
        assert np.abs(theirs).max() < 100  # in a range where the tolerance means something
        assert np.abs(ours - theirs).max() <= LATENTS
        return ours

    def check_pictures(self, seed: Any = 0, **inputs: Any) -> np.ndarray:
        """The pictures agree; return ours."""
        ours, theirs = (stack(images) for images in self.run("pil", seed, **inputs))
        assert ours.shape == theirs.shape
        assert ours.std() > 5
        assert np.abs(ours - theirs).max() <= PICTURES
        return ours


def stack(images: Any) -> np.ndarray:
    """PIL pictures as int16 [B, H, W, C], so that differences do not wrap around."""
    return np.stack([np.asarray(image) for image in images]).astype(np.int16)
