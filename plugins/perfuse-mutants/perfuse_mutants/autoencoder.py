"""Autoencoders that disagree about the range or the scale of what they are given."""

import numpy as np

from perfuse.backend import Component
from perfuse_mutants.backend import Arrays, Mutant, Run, scaling_factor

__all__ = ["ConstantScale", "DoubledScale", "EncoderRange", "Saturated", "Tiled"]


class ConstantScale(Mutant):
    """Scales latents by Stable Diffusion 1's 0.18215, whatever the config says."""

    name = "mutant-constant-scale"
    roles = ("decoder",)

    def spoil(self, component: Component, run: Run) -> Run:
        factor = np.float32(scaling_factor(component) / 0.18215)
        return lambda inputs: run({"latent_sample": inputs["latent_sample"] * factor})


class DoubledScale(Mutant):
    """Divides latents by the scaling factor that the host has divided them by."""

    name = "mutant-doubled-scale"
    roles = ("decoder",)

    def spoil(self, component: Component, run: Run) -> Run:
        factor = np.float32(1 / scaling_factor(component))
        return lambda inputs: run({"latent_sample": inputs["latent_sample"] * factor})


class Saturated(Mutant):
    """Cuts pictures off at black and white, which is the host's to do."""

    name = "mutant-saturated"
    roles = ("decoder",)

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: {"sample": run(inputs)["sample"].clip(-1.0, 1.0)}


class Tiled(Mutant):
    """Decodes what is wider than usual in two halves, each of which ends where the other begins."""

    name = "mutant-tiled"
    roles = ("decoder",)

    def spoil(self, component: Component, run: Run) -> Run:
        levels = len(component.spec.config.get("block_out_channels", ()))
        usual = int(component.spec.config.get("sample_size") or 64) >> max(levels - 1, 0)

        def call(inputs: Arrays) -> Arrays:
            latent = inputs["latent_sample"]
            if latent.shape[3] <= usual:
                return run(inputs)
            halves = np.array_split(latent, 2, axis=3)
            pictures = [run({"latent_sample": half})["sample"] for half in halves]
            return {"sample": np.concatenate(pictures, axis=3)}

        return call


class EncoderRange(Mutant):
    """Takes pictures for [0, 1] and maps them to [-1, 1] a second time."""

    name = "mutant-encoder-range"
    roles = ("encoder",)

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: run({"sample": inputs["sample"] * 2 - 1})
