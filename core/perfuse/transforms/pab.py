"""Pyramid Attention Broadcast (Zhao et al. 2024, https://arxiv.org/abs/2408.12588): attentions used again."""

from dataclasses import dataclass
from math import isfinite, lcm
from typing import Any

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError
from perfuse.models.broadcast import giving, recalling
from perfuse.models.registry import attentions
from perfuse.tasks.forecast import check_counts
from perfuse.tasks.reusing import Look, Reuse, in_parts

__all__ = ["TRANSFORMS", "PyramidAttentionBroadcast"]

TRANSFORMS = (
    TransformManifest(
        name="pab",
        impl=f"{__name__}:PyramidAttentionBroadcast",
        summary="what a transformer's attentions gave, used again at some steps: pab:spatial=2,cross=4",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Reuse):
    """How often attentions are computed, by kind; the names are those of Diffusers' config."""

    #: Attention among the picture's tokens is computed once in so many steps; 0 for at each.
    spatial: int = 2
    #: Attention to the text, the same.
    cross: int = 0
    #: Timesteps between which attentions are used again: from here …
    start: float = 100.0
    #: … to here.
    stop: float = 800.0

    def __post_init__(self) -> None:
        for name, every in (("spatial", self.spatial), ("cross", self.cross)):
            if every != 0 and every < 2:
                raise InputError(
                    f"{name}={every} was given; it must be 2 or more, or 0 to compute at each step."
                )
        if not self.every:
            raise InputError("pab was asked for with spatial=0,cross=0, which leaves nothing out.")
        if not (isfinite(self.start) and isfinite(self.stop) and self.start < self.stop):
            raise InputError(
                f"start={self.start},stop={self.stop} was given; they are timesteps, start below stop."
            )

    @property
    def every(self) -> dict[str, int]:
        """For each kind that is used again, once in how many steps it is computed."""
        given = {"spatial": self.spatial, "cross": self.cross}
        return {kind: every for kind, every in given.items() if every}

    @property
    def together(self) -> tuple[tuple[str, ...], ...]:
        """The kinds that are used again at one step: each set of them that there is."""
        found = (self._kept(index) for index in range(lcm(*self.every.values())))
        return tuple(dict.fromkeys(kinds for kinds in found if kinds))

    def check(self, total: int) -> None:
        check_counts(total, **self.every)

    def reuses(self, look: Look, memory: Any) -> tuple[bool, Any]:
        within = self.start < look.timestep < self.stop
        return within and bool(self._kept(look.index)), memory

    def which(self, look: Look) -> int:
        return self.together.index(self._kept(look.index))

    def _kept(self, index: int) -> tuple[str, ...]:
        return tuple(kind for kind, every in self.every.items() if index % every)


class PyramidAttentionBroadcast(Transform):
    """Adds entries of a transformer without some attentions, which take what those gave before."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        if not plan.tasks:
            raise self.refuse("the loop is not perfuse's, and keeps nothing of an earlier step.")
        denoiser = plan.components[plan.spec.denoiser.name]
        found = attentions(denoiser.spec)
        if found is None:
            raise self.refuse(
                f"{denoiser.name} is a {denoiser.spec.class_name}, whose attentions perfuse does not "
                "keep. Use one that works on whole steps, such as easycache, or on blocks."
            )
        kinds = tuple(options.every)
        missing = set(kinds) - {one.kind for one in found.each}
        if missing:
            raise self.refuse(
                f"{denoiser.name} is a {denoiser.spec.class_name}, which has no {missing.pop()} "
                "attention of its own. Leave that out."
            )
        entries = [recalling(denoiser, found, kinds, kept) for kept in options.together]
        return in_parts(plan, giving(denoiser, found, kinds), *entries, rule=options)
