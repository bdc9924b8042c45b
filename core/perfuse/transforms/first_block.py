"""First-Block Cache (https://github.com/chengzeyi/ParaAttention): a transformer's first block alone.

With more first blocks, last ones and a warm-up it is DBCache (https://github.com/vipshop/cache-dit).
"""

from dataclasses import dataclass

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.forecast import check_counts, check_positive
from perfuse.tasks.reusing import Look
from perfuse.transforms.block_cache import BlockCache, BlockRule

__all__ = ["TRANSFORMS", "FirstBlock"]

TRANSFORMS = (
    TransformManifest(
        name="first-block",
        impl=f"{__name__}:FirstBlock",
        summary="a transformer's first block alone while it changes little: first-block:threshold=0.05",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(BlockRule):
    """How much the first blocks' work may change before the others run again."""

    #: The largest change of what they add, relative to it when all blocks ran last.
    threshold: float = 0.05
    #: How many blocks are the first ones: DBCache's ``Fn``.
    blocks: int = 1
    #: How many blocks are the last ones, which run at every step, too: its ``Bn``.
    last: int = 0
    #: At how many steps all blocks run before any is left out.
    warmup: int = 1

    looks = True

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)
        check_counts(warmup=self.warmup)
        if self.blocks < 1:
            raise InputError(f"blocks={self.blocks} was given; it must be at least 1.")
        if self.last < 0:
            raise InputError(f"last={self.last} was given; it must be at least 0.")

    @property
    def first(self) -> int:
        return self.blocks

    def check(self, total: int) -> None:
        check_counts(total, warmup=self.warmup)

    def reuses(self, look: Look, memory: Array) -> tuple[bool, Array]:
        from perfuse.arrays.operations import mean_size

        little = mean_size(look.sign - memory) <= self.threshold * mean_size(memory)
        return little and look.index >= self.warmup, memory

    def keep(self, look: Look, memory: Array | None) -> Array:
        return look.sign


class FirstBlock(BlockCache):
    """Leaves the middle blocks out while what the first ones add changes little."""

    Options = Options
