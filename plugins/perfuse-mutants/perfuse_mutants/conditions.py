"""Denoisers that do not heed what they are told besides the text, or which of them was asked."""

import dataclasses

import numpy as np

from perfuse.backend import Component, Program, Target
from perfuse.sources import ArtifactStore
from perfuse_mutants.backend import Array, Mutant, Run

__all__ = ["NoMask", "NoResiduals", "Unperturbed"]


class NoResiduals(Mutant):
    """Takes a ControlNet's residuals, and adds nothing."""

    name = "mutant-no-residuals"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: run(
            {
                name: np.zeros_like(array) if "_residual" in name else array
                for name, array in inputs.items()
            }
        )


class NoMask(Mutant):
    """Of the five channels that inpainting adds, the first is one everywhere."""

    name = "mutant-no-mask"

    def spoil(self, component: Component, run: Run) -> Run:
        def unmasked(sample: Array) -> Array:
            if sample.shape[1] != 9:
                return sample
            return np.concatenate([sample[:, :4], np.ones_like(sample[:, :1]), sample[:, 5:]], 1)

        return lambda inputs: run({**inputs, "sample": unmasked(inputs["sample"])})


class Unperturbed(Mutant):
    """Prepares the denoiser where another entry over its weights was asked for."""

    name = "mutant-unperturbed"

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if component.spec.entry_of is not None:
            component = dataclasses.replace(component, build=component.build.before)  # type: ignore[union-attr]
        return super().prepare_right(component, target, store)
