"""Backends that leave all the work to torch: one says so, two call themselves an engine."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from perfuse.backend import PRECISIONS, Component, Device, ExecutionReport
from perfuse_mutants.backend import Mutant, Run, Wrapped

__all__ = ["DeclaredFallback", "HiddenFallback", "SecretFallback"]

_DEVICE = Device(name="cpu", description="Acme accelerator", precisions=PRECISIONS)


class _Acme(Wrapped):
    """Torch's program under another name."""

    def report(self) -> ExecutionReport:
        return dataclasses.replace(super().report(), engine="acme 1.0", details={})


class _Honest(_Acme):
    """Says where its component really ran."""

    def report(self) -> ExecutionReport:
        return dataclasses.replace(super().report(), fallbacks=("all nodes on torch:cpu",))


class SecretFallback(Mutant):
    """An accelerator that torch computes for, and that never says so."""

    name = "mutant-secret-fallback"
    program_type = _Acme

    def devices(self) -> Sequence[Device]:
        return [_DEVICE]


class HiddenFallback(Mutant):
    """The same in a thread of its own, where what torch computes cannot be watched from the call."""

    name = "mutant-hidden-fallback"
    roles = ("denoiser", "text", "decoder", "encoder")
    program_type = _Acme

    def devices(self) -> Sequence[Device]:
        return [_DEVICE]

    def spoil(self, component: Component, run: Run) -> Run:
        thread = ThreadPoolExecutor(max_workers=1)
        return lambda inputs: thread.submit(run, inputs).result()


class DeclaredFallback(Mutant):
    """The same in the open."""

    name = "mutant-declared-fallback"
    program_type = _Honest

    def devices(self) -> Sequence[Device]:
        return [_DEVICE]
