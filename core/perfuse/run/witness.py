"""Which component was the first to give numbers that are none."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.arrays.operations import total
from perfuse.contract.backend import Program
from perfuse.contract.spec import Array

if TYPE_CHECKING:
    from perfuse.run.parts import Parts

__all__ = ["Witness"]


class Witness:
    """Hears what the programs of one run give, and tells afterwards where NaN or infinity came from.

    Of each output the sum alone is kept: on a torch device nobody waits for it.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[str, Array]] = []

    def heard(self, component: str, program: Program) -> Any:
        """A program as it is, but that its outputs are heard."""
        return _Heard(component, program, self)

    def hear(self, component: str, outputs: Mapping[str, Array]) -> None:
        """Take note of the outputs of one call."""
        self._sums += [(component, total(one)) for one in outputs.values()]

    def told(self, pipe: "Parts") -> str:
        """A sentence about the first component whose outputs were not finite; empty if none was."""
        for name, found in self._sums:
            if not np.isfinite(float(found)):
                report = pipe.program(name).report()
                return (
                    f" The first component to return such values was {name}, on "
                    f"{pipe.target(name)} in {report.precision}."
                )
        return ""


class _Heard:
    def __init__(self, component: str, program: Program, witness: Witness) -> None:
        self._component, self._program, self._witness = component, program, witness

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        outputs = self._program(**inputs)
        self._witness.hear(self._component, outputs)
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)
