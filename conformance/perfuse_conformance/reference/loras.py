"""A LoRA of the suite's own: its tensors, and what it makes of a component, computed here alone.

Backends get it as any LoRA, through the pipeline that reads it. What is right is worked out beside
that, from the same numbers, so that a layer, a rank or an ``alpha`` that is lost on the way is seen.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfuse.backend import Component
from perfuse.spec import ComponentSpec, Role
from perfuse_conformance.cases.probes import Arrays

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OwnLora", "truth"]

_RANK, _ALPHA = 4, 1.0
#: How kohya's files begin the names of a text encoder's layers.
_TEXT_ENCODERS = {"text_encoder": "te1", "text_encoder_2": "te2", "text_encoder_3": "te3"}


@dataclass(frozen=True, kw_only=True)
class OwnLora:
    """A LoRA for one component: random factors for its matrices and convolutions.

    What it adds is about a quarter of a weight that was drawn as layers are, ``alpha`` counted;
    without ``alpha`` it were four times as much.
    """

    component: ComponentSpec
    #: Every weight of the component's model, by its name in the state dict.
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that it changes. Tables of words and positions are not among them."""
        return tuple(
            name
            for name, shape in self.shapes.items()
            if len(shape) in (2, 4) and name.endswith(".weight") and "embed" not in name
        )

    def tensors(self) -> dict[str, "NDArray[np.float32]"]:
        """Its file, in kohya's layout."""
        import numpy as np

        denoiser = self.component.role == Role.DENOISER
        part = "unet" if denoiser else _TEXT_ENCODERS[self.component.part]
        found: dict[str, NDArray[np.float32]] = {}
        for name in self.names:
            layer = f"lora_{part}_{name.removesuffix('.weight').replace('.', '_')}"
            down, up = self._factors(name)
            found[f"{layer}.lora_down.weight"], found[f"{layer}.lora_up.weight"] = down, up
            found[f"{layer}.alpha"] = np.array(_ALPHA, np.float32)
        return found

    def added(self, name: str, scale: float) -> "NDArray[np.float64]":
        """What it adds to a weight: ``scale · alpha / rank · B A`` (arXiv:2106.09685, section 4.1)."""
        down, up = (one.reshape(len(one), -1).astype("float64") for one in self._factors(name))
        product: NDArray[np.float64] = scale * _ALPHA / _RANK * (up @ down)
        return product.reshape(self.shapes[name])

    def _factors(self, name: str) -> "tuple[NDArray[np.float32], NDArray[np.float32]]":
        """``A`` [r, in, …], and ``B`` [out, r, …]."""
        import numpy as np

        numbers = np.random.default_rng(zlib.crc32(name.encode()))
        out, *rest = self.shapes[name]
        down = numbers.standard_normal((_RANK, *rest), np.float32)
        up = numbers.standard_normal((out, _RANK, *(1 for _ in rest[1:])), np.float32)
        return down, up * np.float32(0.5 / np.prod(rest) ** 0.5)


def truth(
    component: Component, inputs: Arrays, lora: OwnLora | None = None, scale: float = 0.0
) -> Arrays:
    """What PyTorch computes of the component's module in float32, with so much of a LoRA in it."""
    import torch
    from torch.func import functional_call

    from perfuse.capture import build, cast, named_weights

    module, signature = cast(build(component), torch.float32), component.spec.signature
    full = {id(tensor): name for name, tensor in module.named_parameters()}
    changed: dict[str, Any] = {}
    if lora is not None and scale != 0:
        weights = named_weights(module)
        for name in lora.names:
            added = torch.from_numpy(lora.added(name, scale))
            weight = weights[name]
            changed[full[id(weight)]] = (weight.detach().double() + added).float()
    with torch.no_grad():
        given = tuple(torch.from_numpy(inputs[name]) for name in signature.input_names)
        outputs = functional_call(module, changed, given)
    arrays = (tensor.numpy() for tensor in outputs)
    return dict(zip(signature.output_names, arrays, strict=True))
