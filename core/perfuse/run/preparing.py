"""From a component and a target to a program that takes any size and any batch."""

import dataclasses
from collections.abc import Mapping

from perfuse.contract.backend import Program, Request, Support
from perfuse.contract.component import Component
from perfuse.contract.target import Target
from perfuse.errors import UnsupportedError
from perfuse.plugins import host
from perfuse.run.fixed_batch import FixedBatch, fixed_batch
from perfuse.run.per_size import PerSize
from perfuse.sources.store import ArtifactStore

__all__ = ["prepare"]


def prepare(
    component: Component,
    target: Target,
    store: ArtifactStore,
    *,
    usual: Mapping[str, int],
    model: str,
) -> Program:
    """Make a component ready to run on a target.

    Args:
        component: What to run.
        target: Where, with the switches that are for it.
        store: Where exports made on the way are kept.
        usual: A size for every dimension, for a target that takes one size a program.
        model: What to call the model in an error.

    Raises:
        BackendError: the target cannot run it.
        ExportError: it could not be lowered to the target's format.
    """
    backend = host().backend(target.backend)
    support = backend.supports(Request.of(component, target))
    if support.works:
        program = backend.prepare(component, target, store)
        size = fixed_batch(program.signature.inputs)
        return FixedBatch(program, size) if size is not None else program
    fixed = dataclasses.replace(component, static={**usual, **component.static})
    support_fixed = backend.supports(Request.of(fixed, target))
    if not support_fixed.works:
        raise UnsupportedError(_refusal(component, target, support, support_fixed))
    if component.build is None:
        raise UnsupportedError(
            f"{component.name} was to run on {target}; {model} does not fix its sizes, and "
            f"{support.reason} Export the checkpoint again with --height H --width W --batch "
            f"B, or run the checkpoint itself on {target}."
        )

    def make(dims: Mapping[str, int]) -> Program:
        sized = dataclasses.replace(component, static=dims)
        return backend.prepare(sized, target, store)

    return PerSize(component.spec, make, usual=usual)


def _refusal(component: Component, target: Target, symbolic: Support, fixed: Support) -> str:
    """Why a component cannot run: for any size, and for one size where that is another reason."""
    text = (
        f"{component.name} was to run on {target} in {component.precision}: "
        f"{symbolic.level.value}; {symbolic.reason}"
    )
    if fixed == symbolic:
        return text
    return f"{text} For one size alone: {fixed.level.value}; {fixed.reason}"
