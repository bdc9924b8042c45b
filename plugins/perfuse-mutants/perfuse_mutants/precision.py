"""Programs that compute in less than they report."""

import dataclasses
from typing import ClassVar

from perfuse.backend import Component, ExecutionReport, Program, Target
from perfuse.sources import ArtifactStore
from perfuse_mutants.backend import Mutant, Wrapped

__all__ = ["Bfloat16AsFloat16", "Float16AsFloat32"]


class _Posed(Wrapped):
    """Reports the precision that was asked for."""

    def report(self) -> ExecutionReport:
        return dataclasses.replace(super().report(), precision=self._component.precision)


class Posing(Mutant):
    """Computes components of one precision in another."""

    asked: ClassVar[str]
    executed: ClassVar[str]
    program_type = _Posed

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if component.precision == self.asked:
            component = dataclasses.replace(component, precision=self.executed)
        return super().prepare_right(component, target, store)


class Float16AsFloat32(Posing):
    """Computes in float16 where float32 was asked for."""

    name = "mutant-float16-as-float32"
    asked = "float32"
    executed = "float16"


class Bfloat16AsFloat16(Posing):
    """Computes in bfloat16 where float16 was asked for."""

    name = "mutant-bfloat16-as-float16"
    asked = "float16"
    executed = "bfloat16"
