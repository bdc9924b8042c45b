"""Backends whose numbers are right and whose manners are not: what the suite must outlive and name."""

import ctypes
import dataclasses
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from perfuse.backend import (
    PRECISIONS,
    Array,
    Component,
    Device,
    ExecutionReport,
    Program,
    Request,
    Support,
    SupportLevel,
    Target,
)
from perfuse.errors import ExecutionError, UnsupportedError
from perfuse.sources import ArtifactStore
from perfuse_mutants.backend import Arrays, Mutant, Run, Wrapped

_EVERY = ("denoiser", "text", "decoder", "encoder")


# What it says of itself


class Overdeclared(Mutant):
    """Declares bfloat16, and refuses it."""

    name = "rude-overdeclared"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if component.precision == "bfloat16":
            raise UnsupportedError(f"{component.name} was to run in bfloat16; there is no kernel.")
        return super().prepare(component, target, store)


class ClaimsAnySize(Mutant):
    """Declares every size, and fails from twice the usual area on."""

    name = "rude-claims-any-size"
    #: Numbers in a sample of the usual size.
    usual = 4 * 16 * 16

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            if inputs["sample"].size > 2 * self.usual:
                raise ExecutionError(f"{component.name} was too large for the scratch memory.")
            return run(inputs)

        return call


class Underdeclared(Mutant):
    """Declares that it has no float16, and has."""

    name = "rude-underdeclared"

    def supports(self, request: Request) -> Support:
        if request.precision == "float16":
            return Support(level=SupportLevel.UNSUPPORTED, reason="there are no kernels for it")
        return super().supports(request)


class Unrefused(Underdeclared):
    """Declares that it has no float16, and returns zeros where it is asked for it."""

    name = "rude-unrefused"
    roles = _EVERY

    def spoil(self, component: Component, run: Run) -> Run:
        if component.precision != "float16":
            return run
        return lambda inputs: {name: np.zeros_like(array) for name, array in run(inputs).items()}


class NoDevices(Mutant):
    """Finds no device."""

    name = "rude-no-devices"

    def devices(self) -> Sequence[Device]:
        return []


class DevicesRaise(Mutant):
    """Raises its driver's error when it is asked what is there."""

    name = "rude-devices-raise"

    def devices(self) -> Sequence[Device]:
        raise OSError("libacme.so.1: cannot open shared object file: No such file or directory")


class SupportsNothing(Mutant):
    """Has no answer to whether it supports something."""

    name = "rude-supports-none"

    def supports(self, request: Request) -> Support:
        return None  # type: ignore[return-value]


class SupportsRaises(Mutant):
    """Raises when it is asked whether it supports something."""

    name = "rude-supports-raises"

    def supports(self, request: Request) -> Support:
        raise KeyError(request.precision)


class AnyDevice(Mutant):
    """Runs on the CPU whatever device was asked for, and does not say so."""

    name = "rude-any-device"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        somewhere = Target(backend=target.backend, options=target.options)
        return super().prepare(component, somewhere, store)


class AnyOption(Mutant):
    """Takes options that it does not have."""

    name = "rude-any-option"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        return super().prepare(
            component, Target(backend=target.backend, device=target.device), store
        )


class AnyPrecision(Mutant):
    """Declares full support for a precision that nobody has heard of, and computes in float32."""

    name = "rude-any-precision"

    def supports(self, request: Request) -> Support:
        return Support(level=SupportLevel.FULL)

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if component.precision not in PRECISIONS:
            component = dataclasses.replace(component, precision="float32")
        return super().prepare_right(component, target, store)


class _Unreported(Wrapped):
    def report(self) -> ExecutionReport:
        raise NotImplementedError


class ReportRaises(Mutant):
    """Cannot say what ran."""

    name = "rude-report-raises"

    program_type = _Unreported


# What it returns


class WrongNames(Mutant):
    """Names its output as another ecosystem does."""

    name = "rude-wrong-names"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: {"noise_pred": run(inputs)["out_sample"]}


class WrongShape(Mutant):
    """Puts channels last."""

    name = "rude-wrong-shape"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: {"out_sample": run(inputs)["out_sample"].transpose(0, 2, 3, 1)}


class Float64(Mutant):
    """Returns float64."""

    name = "rude-float64"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: {"out_sample": run(inputs)["out_sample"].astype(np.float64)}


class Float16(Mutant):
    """Returns float16 where it computed in it."""

    name = "rude-float16"

    def spoil(self, component: Component, run: Run) -> Run:
        if component.precision != "float16":
            return run
        return lambda inputs: {"out_sample": run(inputs)["out_sample"].astype(np.float16)}


class ReturnsList(Mutant):
    """Returns a list of outputs, without their names."""

    name = "rude-list"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: list(run(inputs).values())  # type: ignore[return-value]


class ReturnsTensors(Mutant):
    """Returns torch tensors for numpy arrays."""

    name = "rude-tensors"

    def spoil(self, component: Component, run: Run) -> Run:
        import torch

        return lambda inputs: {name: torch.from_numpy(a) for name, a in run(inputs).items()}


# What it raises and prints


class AcmeError(Exception):
    """An error of a vendor's, which the host knows nothing of."""


class OwnException(Mutant):
    """Lets its vendor's error through."""

    name = "rude-own-exception"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            raise AcmeError("ACME_STATUS_INVALID_GRAPH (0x5f)")

        return call


class UnprintableException(Mutant):
    """Raises a message that is long, is markup, and cannot be encoded."""

    name = "rude-unprintable-exception"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            raise AcmeError("<script>alert(1)</script>\x00\x1b[31m\udcff\n" * 1000)

        return call


class SystemExits(Mutant):
    """Ends the process when its licence is not found."""

    name = "rude-system-exit"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            sys.exit("acme: no licence")

        return call


class Interrupts(Mutant):
    """Raises KeyboardInterrupt without anybody at the keyboard."""

    name = "rude-interrupt"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            raise KeyboardInterrupt

        return call


class PrintsInPrepare(Mutant):
    """Prints its banner to standard output while a component is prepared."""

    name = "rude-print-prepare"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        print("acme 1.0: compiling", component.name)
        return super().prepare(component, target, store)


class PrintsInCall(Mutant):
    """Prints to standard output from native code, past Python's own buffers, on every call."""

    name = "rude-print-call"
    roles = _EVERY

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            os.write(1, b'{"acme": "took 3 ms"}\n')
            return run(inputs)

        return call


class Floods(Mutant):
    """Writes a megabyte to both outputs on every call: more than any pipe holds."""

    name = "rude-flood"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            for descriptor in (1, 2):
                line = b"\xff" * 1023 + b"\n"
                for _ in range(1024):
                    os.write(descriptor, line)
            return run(inputs)

        return call


class ClosesOutput(Mutant):
    """Closes standard output while a component is prepared, as a daemon does."""

    name = "rude-closed-output"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        os.close(1)
        os.open(os.devnull, os.O_WRONLY)  # takes the lowest number that is free
        return super().prepare(component, target, store)


# What it does to the process


class Exits(Mutant):
    """Ends the process, with nothing said."""

    name = "rude-exit"

    def spoil(self, component: Component, run: Run) -> Run:
        return lambda inputs: os._exit(3)


class Segfaults(Mutant):
    """Reads from address 0."""

    name = "rude-segfault"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            _segfault()
            return run(inputs)

        return call


class WritesInputs(Mutant):
    """Scales its inputs where they lie, and puts them back: nobody sees it, if they can be written."""

    name = "rude-writes-inputs"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            for array in inputs.values():
                # An engine writes through the address; it knows nothing of numpy's read-only flag.
                ctypes.memmove(array.ctypes.data, array.ctypes.data, array.itemsize)
            return run(inputs)

        return call


class SegfaultsInPrepare(Mutant):
    """Reads from address 0 while it compiles."""

    name = "rude-segfault-prepare"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        _segfault()
        return super().prepare(component, target, store)


def _segfault() -> None:
    ctypes.string_at(0)


class HangsInCall(Mutant):
    """Never returns, and holds the interpreter's lock meanwhile: no thread can come to help."""

    name = "rude-hang-call"

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            while True:
                ctypes.PyDLL(None).pause()

        return call


class HangsInPrepare(Mutant):
    """Never finishes compiling."""

    name = "rude-hang-prepare"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        while True:
            time.sleep(3600)


class _Unclosable(Wrapped):
    def close(self) -> None:
        while True:
            time.sleep(3600)


class HangsInClose(Mutant):
    """Never finishes releasing a program."""

    name = "rude-hang-close"

    program_type = _Unclosable


class _Open(Wrapped):
    def close(self) -> None:
        pass


class OpenAfterClose(Mutant):
    """Goes on working once it is closed."""

    name = "rude-open-after-close"

    program_type = _Open


class _Freed(Wrapped):
    _closed = False

    def __call__(self, **inputs: Array) -> Arrays:
        if self._closed:
            _segfault()
        return super().__call__(**inputs)

    def close(self) -> None:
        self._closed = True
        super().close()


class CrashesAfterClose(Mutant):
    """Reads freed memory when it is called once closed."""

    name = "rude-crash-after-close"

    program_type = _Freed


class ChangesFolder(Mutant):
    """Changes the working directory to where it compiles."""

    name = "rude-chdir"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        store.root.mkdir(parents=True, exist_ok=True)
        os.chdir(store.root)
        return super().prepare(component, target, store)


class ChangesDefaultDtype(Mutant):
    """Makes float64 torch's default for everyone."""

    name = "rude-default-dtype"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        import torch

        program = super().prepare(component, target, store)
        torch.set_default_dtype(torch.float64)
        return program


class ChangesThreads(Mutant):
    """Gives torch another number of threads."""

    name = "rude-torch-threads"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        import torch

        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().prepare(component, target, store)


class ChangesNumpyErrors(Mutant):
    """Makes numpy raise where it overflows or divides by zero."""

    name = "rude-numpy-errors"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        np.seterr(all="raise")
        return super().prepare(component, target, store)


class Seeds(Mutant):
    """Seeds everyone's random numbers on every call."""

    name = "rude-seeds"

    def spoil(self, component: Component, run: Run) -> Run:
        import torch

        def call(inputs: Arrays) -> Arrays:
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            return run(inputs)

        return call


class LeaksThread(Mutant):
    """Starts a thread that outlives every program and keeps the process from ending."""

    name = "rude-leaked-thread"
    #: Set by nobody but tests.
    release: ClassVar[threading.Event] = threading.Event()

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        threading.Thread(target=self.release.wait, name="acme-poll").start()
        return super().prepare(component, target, store)
