"""TeaCache (Liu et al. 2024, https://arxiv.org/abs/2411.19108): blocks left out while their input changes little."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.forecast import check_positive
from perfuse.tasks.reusing import Look
from perfuse.transforms.block_cache import BlockCache, BlockRule

__all__ = ["TRANSFORMS", "TeaCache"]

TRANSFORMS = (
    TransformManifest(
        name="teacache",
        impl=f"{__name__}:TeaCache",
        summary="a transformer's blocks left out while their input changes little: teacache:threshold=0.2",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What TeaCache knows of the step before."""

    #: What the first block's attention took there.
    sign: Array
    #: The changes since the blocks ran last, rescaled and added up.
    change: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Options(BlockRule):
    """How much change may add up before the blocks run again."""

    #: ``δ``, of changes relative to the size of what changed.
    threshold: float = 0.2
    #: The polynomial that makes the output's change of the input's, its highest power first: each
    #: model has its own. By default they are taken to be equal.
    coefficients: tuple[float, ...] = (1.0, 0.0)

    first = 0
    looks = True

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)
        if not self.coefficients or not all(map(isfinite, self.coefficients)):
            given = "+".join(map(str, self.coefficients))
            raise InputError(f"coefficients={given} was given; finite numbers were expected.")

    def check(self, total: int) -> None:
        pass  # it fits every loop

    def reuses(self, look: Look, memory: Memory) -> tuple[bool, Memory]:
        from perfuse.arrays.operations import mean_size

        moved = mean_size(look.sign - memory.sign)
        size = mean_size(memory.sign)
        change = memory.change + _polynomial(self.coefficients, moved / size if size else 0.0)
        little = change < self.threshold and look.index < look.total - 1
        return little, Memory(sign=look.sign, change=change)

    def keep(self, look: Look, memory: Memory | None) -> Memory:
        return Memory(sign=look.sign)


class TeaCache(BlockCache):
    """Leaves all blocks out while what they are given changes little."""

    Options = Options


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    found = 0.0
    for one in coefficients:
        found = found * x + one
    return found
