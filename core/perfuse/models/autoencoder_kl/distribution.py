"""The distribution of the latents that a picture is encoded to."""

import math
from collections.abc import Sequence
from typing import Self

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

    def kl(self, other: Self | None = None) -> Tensor:
        """The divergence from another distribution, or from the unit one: summed, [B], in nats."""
        var = 1.0 if other is None else other.var
        logvar = 0.0 if other is None else other.logvar
        apart = (self.mean if other is None else self.mean - other.mean).square()
        terms: Tensor = (apart + self.var) / var - 1.0 + logvar - self.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """The negative log-likelihood of latents, summed over ``dims``, in nats."""
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=tuple(dims))
