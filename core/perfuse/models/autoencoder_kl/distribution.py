"""The distribution of the latents that a picture is encoded to."""

import torch
from torch import Tensor

__all__ = ["DiagonalGaussian"]


class DiagonalGaussian:
    """A normal distribution for each latent (Kingma and Welling 2013, arXiv:1312.6114)."""

    def __init__(self, parameters: Tensor) -> None:
        """Of means and log-variances [B, 2L, h, w]."""
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Latents drawn from it [B, L, h, w], on the generator's device first."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """The likeliest latents: their means."""
        return self.mean
