"""A guider of three branches: towards the prompt, and away from the negative one by another scale."""

from dataclasses import dataclass

from perfuse import Branch, Guider, GuiderManifest, hookimpl


@hookimpl
def perfuse_guiders():
    return [GuiderManifest(name="three", impl=f"{__name__}:Three")]


@dataclass(frozen=True, kw_only=True)
class Three(Guider):
    """``e + g (p - e) - a (n - e)``; in the second half of the steps ``a`` is 0."""

    guidance_scale: float = 4.0
    away: float = 1.5

    @property
    def branches(self):
        names = ("empty", "negative", "positive")
        return tuple(Branch(name=name, condition=name) for name in names)

    def running(self, moment):
        return ("empty", "positive") if moment.done >= 0.5 else ("empty", "negative", "positive")

    def combine(self, predictions, moment):
        empty = predictions["empty"]
        guided = empty + self.guidance_scale * (predictions["positive"] - empty)
        if "negative" in predictions:
            guided = guided - self.away * (predictions["negative"] - empty)
        return guided
