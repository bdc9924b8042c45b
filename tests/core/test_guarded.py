"""A backend's faults are named, whatever its program returns or raises."""

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perfuse.backend import ExecutionReport, Program
from perfuse.errors import ExecutionError, InputError
from perfuse.plugins.importing import Stopped
from perfuse.run.guarded import GuardedProgram
from perfuse.spec import Signature, TensorSpec

_X = TensorSpec(name="x", dtype="float", shape=("batch", 2))
SIGNATURE = Signature(
    inputs=(_X,),
    outputs=(
        TensorSpec(name="y", dtype="float", shape=("batch", 4)),
        TensorSpec(name="n", dtype="int64", shape=("other",)),
    ),
)
GOOD = {"y": np.zeros((3, 4), np.float32), "n": np.zeros(7, np.int64)}


class Hostile(Program):
    """Does what it was told to."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.signature = SIGNATURE
        self._act = act

    def __call__(self, **inputs: Any) -> Any:
        return self._act()

    def report(self) -> ExecutionReport:
        found: ExecutionReport = self._act()
        return found

    def close(self) -> None:
        self._act()


def guarded(act: Callable[[], Any]) -> GuardedProgram:
    return GuardedProgram(Hostile(act), component="unet", target="acme:0")


def call(act: Callable[[], Any]) -> Any:
    return guarded(act)(x=np.zeros((3, 2), np.float32))


def raising(exc: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise exc

    return act


def test_what_is_right_is_passed_on() -> None:
    assert call(lambda: GOOD) is GOOD


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned a NoneType"),
        ([], "returned a list"),
        (np.zeros(3), "returned a ndarray"),
        ({}, "returned nothing; y was expected"),
        ({**GOOD, "y": 1.0}, "its y is a float"),
        ({**GOOD, "y": np.zeros((3, 4))}, "its y is of float64; float32"),
        ({**GOOD, "y": np.zeros((4, 3), np.float32)}, "shape .4, 3.; .3, 4. was"),
        ({**GOOD, "y": np.zeros((3, 4, 1), np.float32)}, "shape .3, 4, 1."),
        ({**GOOD, "n": np.zeros(7, np.int32)}, "its n is of int32; int64"),
        ({"z": GOOD["y"]}, "returned z; y was expected"),
    ],
)
def test_what_is_wrong_is_named(returned: Any, said: str) -> None:
    with pytest.raises(ExecutionError, match=f"unet was to run on acme:0.*{said}"):
        call(lambda: returned)


@pytest.mark.parametrize(
    "exc", [KeyError("x"), SystemExit(0), GeneratorExit(), MemoryError("all"), RecursionError()]
)
def test_what_it_raises_is_named(exc: BaseException) -> None:
    with pytest.raises(ExecutionError, match="acme:0"):
        call(raising(exc))
    for method in ("report", "close"):
        with pytest.raises(ExecutionError, match="acme:0"):
            getattr(guarded(raising(exc)), method)()


def test_an_error_of_the_tree_is_passed_on() -> None:
    with pytest.raises(InputError, match="no such size"):
        call(raising(InputError("no such size")))


def test_a_report_that_is_none() -> None:
    with pytest.raises(ExecutionError, match="reported a dict"):
        guarded(dict).report()


def test_what_is_no_program() -> None:
    with pytest.raises(ExecutionError, match="prepared a dict"):
        GuardedProgram({}, component="unet", target="acme")  # type: ignore[arg-type]


def test_whose_interrupt_it_is() -> None:
    """Where the command line heeds Ctrl-C itself, a program cannot pretend it."""
    with pytest.raises(KeyboardInterrupt):
        call(raising(KeyboardInterrupt()))
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with pytest.raises(ExecutionError, match="KeyboardInterrupt"):
            call(raising(KeyboardInterrupt()))
        with pytest.raises(Stopped):
            call(raising(Stopped(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, before)
