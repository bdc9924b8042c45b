"""Sparse linear combinations of the arrays that a sampling step can see.

A step sees the slots of its state, the raw model output, the converted output and the noise.
``Linear`` lets a solver's update be written as in its paper, with arrays left as symbols:

>>> x, m = slot(0), M
>>> (0.5 * x - 2.0 * (m - x)).terms
((0, 2.5), (-2, -2.0))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["NOISE", "OUT", "Linear", "M", "X", "combine", "slot"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A sum of coefficient times operand; operands are named by index, see ``combine``."""

    terms: tuple[tuple[int, float], ...]

    # Makes numpy's scalars hand over to ``__rmul__`` instead of building an object array.
    __array_ufunc__ = None

    def __add__(self, other: Linear) -> Linear:
        total = dict(self.terms)
        for operand, coefficient in other.terms:
            total[operand] = total.get(operand, 0.0) + coefficient
        return _linear(total)

    def __mul__(self, factor: float) -> Linear:
        return _linear({operand: c * float(factor) for operand, c in self.terms})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Linear:
        if divisor == 0:  # kept as infinity, for the schedule to refuse
            return self * math.inf
        return _linear({operand: c / float(divisor) for operand, c in self.terms})

    def __neg__(self) -> Linear:
        return self * -1.0

    def __sub__(self, other: Linear) -> Linear:
        return self + -other

    def substitute(self, meanings: Mapping[int, Linear]) -> Linear:
        """The same sum, with some of its operands given as sums themselves."""
        total = Linear(())
        for operand, c in self.terms:
            total += c * meanings.get(operand, Linear(((operand, 1.0),)))
        return total

    @property
    def finite(self) -> bool:
        return all(math.isfinite(c) for _, c in self.terms)


def _linear(total: Mapping[int, float]) -> Linear:
    # A zero coefficient is no term: nothing is computed, and 0 * inf cannot make a NaN.
    return Linear(tuple((operand, c) for operand, c in total.items() if c != 0.0))


def slot(index: int) -> Linear:
    """Slot ``index`` of the state, as it is before the step."""
    return Linear(((index, 1.0),))


X = slot(0)
OUT = slot(-3)
M = slot(-2)
NOISE = slot(-1)


def combine(linear: Linear, operands: Sequence[Any]) -> Any:
    """The combination's value over ``operands = [*state, out, m, noise]``, never in place.

    A single operand with coefficient one is returned as it is: an alias, without arithmetic.
    """
    terms = linear.terms
    if not terms:
        return operands[0] * 0.0
    lead, factor = terms[0]
    if len(terms) == 1:
        return operands[lead] if factor == 1.0 else operands[lead] * factor
    # Where two large terms nearly cancel, as in (x - sigma * epsilon) / alpha, subtract first.
    first = factor == 1.0 or (len(terms) == 2 and abs(factor) > 1.0)
    rest = [(operands[operand], c / factor if first else c) for operand, c in terms[1:]]
    total = operands[lead] if first else operands[lead] * factor
    if hasattr(total, "add_"):  # torch: one kernel a term, and coefficients stay on the host
        (array, c), *rest = rest
        total = total.add(array, alpha=c)
        for array, c in rest:
            total.add_(array, alpha=c)
    else:
        (array, c), *rest = rest
        term = array * c
        term += total
        total = term
        for array, c in rest:
            total += array * c
    if first and factor != 1.0:
        total *= factor
    return total
