"""Weights stored in another scheme than the precision that is computed in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perfuse.contract.component import Component, Recipe
from perfuse.contract.hooks import TransformManifest
from perfuse.contract.quantized import SCHEMES, Calibration
from perfuse.contract.transform import Plan, Transform
from perfuse.sources.calibrations import read_calibrations

__all__ = ["TRANSFORMS", "Storage"]

TRANSFORMS = (
    TransformManifest(
        name="storage",
        impl=f"{__name__}:Storage",
        summary="weights stored in fewer bits: storage:scheme=int8,component=unet",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to store, and how."""

    #: A scheme of the backend or the exporter; one that has it not refuses it by name.
    scheme: str = "float16"
    #: One component; all of them by default.
    component: str = ""
    #: A file of ``perfuse calibrate``: which weights stay as they are, and ranges for ``w8a8``.
    calibration: str = ""


class Storage(Transform):
    """Has weights stored in a scheme, as Diffusers' layerwise casting does."""

    Options = Options
    approximate = True

    def is_approximate(self, options: object) -> bool:
        assert isinstance(options, Options)
        scheme = SCHEMES.get(options.scheme)
        return scheme is None or not scheme.kept

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        chosen = [
            one
            for one in plan.components.values()
            if options.component in ("", one.name, one.spec.part)
        ]
        if not chosen:
            raise self.refuse(
                f"component={options.component} was given, and the pipeline has "
                f"{', '.join(plan.components)}."
            )
        scheme = SCHEMES.get(options.scheme)
        if scheme is not None and scheme.kept:
            return self._kept(plan, chosen, options.scheme)
        for one in chosen:
            before = _quantized(one)
            before = before if options.component else before or one.storage
            if before not in ("", options.scheme) and options.scheme in SCHEMES:
                raise self.refuse(
                    f"the weights of {one.name} are stored as {before} already. Leave them so, or use "
                    "the checkpoint that has them in float16, bfloat16 or float32."
                )
            found = self._measured(one, options.scheme, options.calibration)
            plan = plan.with_component(replace(one, storage=options.scheme, calibration=found))
        return plan

    def _kept(self, plan: Plan, chosen: Sequence[Component], scheme: str) -> Plan:
        """The plan with the components that come in blocks of integers left so."""
        if not (found := [one for one in chosen if one.build is None or _quantized(one)]):
            raise self.refuse(
                f"the weights of {', '.join(one.name for one in chosen)} are in no GGUF file in few bits. "
                "Choose a scheme that makes integers of them, such as int8."
            )
        for one in found:
            plan = plan.with_component(replace(one, storage=scheme))
        return plan

    def _measured(self, component: Component, scheme: str, file: str) -> Calibration | None:
        """What was measured of a component.

        Raises:
            InputError: the scheme needs it, and there is none.
        """
        if component.build is None:  # of an export: it has it
            return component.calibration
        found = read_calibrations(file) if file else {}
        if component.name in found:
            return found[component.name]
        known = SCHEMES.get(scheme)
        if file or (known is not None and known.activations):
            raise self.refuse(
                f"{scheme} for {component.name} needs a calibration of it, and "
                f"{file or 'no file'} has one. Measure it: perfuse calibrate "
                f"--precision {component.name}={scheme} --output FILE, and give "
                "calibration=FILE."
            )
        return None


def _quantized(component: Component) -> str:
    """The scheme of few bits that a component's file has its weights in; empty for none."""
    return component.build.quantized if isinstance(component.build, Recipe) else ""
