"""FreeU (Si et al. 2023, https://arxiv.org/abs/2309.11497): better pictures of a UNet, untrained."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TRANSFORMS", "FreeU"]

TRANSFORMS = (
    TransformManifest(
        name="freeu",
        impl=f"{__name__}:FreeU",
        summary="a UNet's backbone strengthened, its skips weakened: freeu:s1=0.9,s2=0.2,b1=1.2,b2=1.4",
    ),
)

#: The blocks that Diffusers applies it to.
_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The authors' numbers for Stable Diffusion 1; for XL they use 0.6, 0.4, 1.1 and 1.2."""

    #: Scale of the lowest frequencies of the skip connections, in the first block and the second.
    s1: float = 0.9
    s2: float = 0.2
    #: Scale of half of the backbone's channels, in the first block and the second.
    b1: float = 1.2
    b2: float = 1.4

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{one.name}={value} was given; FreeU takes numbers above 0.")


class FreeU(Transform):
    """Rescales backbone and skip connections in the first two up blocks of the denoiser."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        denoiser = plan.spec.denoiser
        kinds = denoiser.config.get("up_block_types") or ()
        if not kinds:
            raise self.refuse(f"{denoiser.name} is a {denoiser.class_name}, no UNet.")
        each = ((options.s1, options.b1), (options.s2, options.b2))
        scales = tuple(
            (i, *pair)
            for i, (kind, pair) in enumerate(zip(kinds, each, strict=False))
            if kind in _BLOCKS
        )
        for name, component in plan.components.items():
            if denoiser.name in (name, component.spec.entry_of):
                plan = plan.with_component(component.rebuilt(_rewrite, scales, graph=f"{scales}"))
        return plan


def _rewrite(module: "nn.Module", scales: tuple[tuple[int, float, float], ...]) -> "nn.Module":
    from torch.nn import Identity

    from perfuse.models.freeu import FreeUJoin

    model: Any = getattr(module, "model", module)
    for i, skip, backbone in scales:
        block = model.up_blocks[i]
        if isinstance(block, Identity):  # an entry that runs without it
            continue
        if not hasattr(block, "join"):
            raise InputError(
                f"FreeU was asked for; the denoiser that was set is a {type(model).__module__} "
                "module that perfuse cannot rewrite. Call its own enable_freeu, or use the "
                "checkpoint's."
            )
        block.join = FreeUJoin(skip=skip, backbone=backbone)
    return module
