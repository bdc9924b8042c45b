"""Transforms that leave out a transformer's middle blocks at some steps: what they share."""

from abc import abstractmethod

from perfuse.contract.transform import Plan, Transform
from perfuse.models.registry import first_blocks
from perfuse.tasks.reusing import Reuse, in_parts

__all__ = ["BlockCache", "BlockRule"]


class BlockRule(Reuse):
    """Says at which steps the outer blocks run alone. The options of a transform are one."""

    @property
    @abstractmethod
    def first(self) -> int:
        """How many blocks are the first ones."""

    @property
    def last(self) -> int:
        """How many blocks are the last ones."""
        return 0


class BlockCache(Transform):
    """Adds an entry of the outer blocks and the end, which some steps run with what is kept."""

    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, BlockRule)
        denoiser = plan.components[plan.spec.denoiser.name]
        found = first_blocks(denoiser, options.first, options.last)
        if found is None:
            raise self.refuse(
                f"{denoiser.name} is a {denoiser.spec.class_name}, which is not of blocks in a row. "
                "Use one that works on whole steps, such as easycache, or for a UNet deepcache."
            )
        if not plan.tasks:
            raise self.refuse("the loop is not perfuse's, and runs the whole denoiser alone.")
        return in_parts(plan, *found, rule=options)
