"""The sizes that a captured graph is right for: torch.export's own guards, as plain data.

Engines do not check them, and answer wrongly outside of them without an error.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfuse.bridge.calls import Shapes
from perfuse.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Guards"]

_SIZE = re.compile(r"L\['\w+'\]\[(\d+)\]\.size\(\)\[(\d+)\]")
#: A size that is a multiple of one that no input has itself.
_MULTIPLE = re.compile(r"(\d+)\*(\w+)")
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Div: operator.truediv,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
}


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What the sizes of a graph's inputs must fulfil."""

    #: For each input, each axis: its size, or the name of a symbol.
    shapes: tuple[tuple[int | str, ...], ...]
    #: Symbol to the least and the greatest size; ``None`` for no limit.
    ranges: Mapping[str, tuple[int, int | None]]
    #: Conditions over ``t0_2``, the third axis of the first input.
    conditions: tuple[str, ...] = ()

    @classmethod
    def exactly(cls, shapes: Shapes) -> "Guards":
        """Those of a graph that was captured for one size."""
        return cls(shapes=shapes, ranges={})

    @classmethod
    def of(cls, program: "ExportedProgram") -> "Guards":
        """Those of a captured graph.

        Raises:
            UnsupportedError: a guard says something that cannot be checked here.
        """
        inputs = set(program.graph_signature.user_inputs)
        found = [
            n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs
        ]
        shapes = tuple(
            tuple(int(size) if _whole(size) else str(size) for size in value.shape)
            for value in found
        )
        ranges = {
            str(symbol): (max(int(known.lower), 1), _finite(known.upper))
            for symbol, known in program.range_constraints.items()
        }
        texts = [_SIZE.sub(r"t\1_\2", code) for code in getattr(program, "_guards_code", ())]
        conditions = tuple(dict.fromkeys(texts))
        guards = cls(shapes=shapes, ranges=ranges, conditions=conditions)
        example = program.example_inputs
        if example is not None and not guards.fit(tuple(tuple(one.shape) for one in example[0])):
            raise UnsupportedError("its graph's own conditions refuse the sizes it was made of")
        return guards

    def fit(self, shapes: Shapes) -> bool:
        """Whether the graph is right for inputs of these shapes.

        Raises:
            UnsupportedError: a condition holds something else than arithmetic.
        """
        if [len(one) for one in shapes] != [len(one) for one in self.shapes]:
            return False
        known: dict[str, int] = {}
        derived: list[tuple[str, int]] = []
        for want, size in _pairs(self.shapes, shapes):
            times = _MULTIPLE.fullmatch(want) if isinstance(want, str) else None
            if times is not None and times[2] not in known:
                if size % int(times[1]):
                    return False
                known[times[2]] = size // int(times[1])
            elif isinstance(want, int) or want.isidentifier():
                if (want if isinstance(want, int) else known.setdefault(want, size)) != size:
                    return False
            else:
                derived.append((want, size))
        for symbol, (least, greatest) in self.ranges.items():
            size = known.get(symbol, least)
            if size < least or (greatest is not None and size > greatest):
                return False
        axes = {f"t{i}_{n}": size for i, one in enumerate(shapes) for n, size in enumerate(one)}
        names = {**axes, **known}
        return all(_value(want, names) == size for want, size in derived) and all(
            bool(_value(text, names)) for text in self.conditions
        )


def _pairs(
    wanted: tuple[tuple[int | str, ...], ...], shapes: Shapes
) -> Iterator[tuple[int | str, int]]:
    """What each axis is to be, and its size."""
    for want, shape in zip(wanted, shapes, strict=True):
        yield from zip(want, shape, strict=True)


def _whole(size: Any) -> bool:
    return isinstance(size, int) or str(size).isdecimal()


def _finite(bound: Any) -> int | None:
    """A greatest size; ``None`` for torch's infinities."""
    return int(bound) if getattr(bound, "is_finite", True) and bound < 2**62 else None


def _value(text: str, names: Mapping[str, int]) -> Any:
    """Compute an expression of sizes: arithmetic and comparisons, nothing else."""

    def compute(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() | bool() as number):
                return number
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](compute(left), compute(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -compute(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not compute(operand)
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(compute(part) for part in parts)
            case ast.BoolOp(op=ast.Or(), values=parts):
                return any(compute(part) for part in parts)
            case ast.Compare(left=left, ops=ops, comparators=others):
                values = [compute(left), *(compute(one) for one in others)]
                return all(
                    _COMPARE[type(op)](a, b)
                    for op, a, b in zip(ops, values, values[1:], strict=False)
                )
            case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*(compute(arg) for arg in args))
        raise UnsupportedError(f"a condition of its graph cannot be checked: {text}")

    try:
        return compute(ast.parse(text, mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError) as exc:
        raise UnsupportedError(f"a condition of its graph cannot be checked: {text}") from exc
