"""Prepares a component on a target as a program that takes any size and any batch."""

import dataclasses
from collections.abc import Mapping

from perfuse.contract.backend import Backend, Program, Request, Support
from perfuse.contract.component import Component
from perfuse.contract.target import Target
from perfuse.errors import UnsupportedError
from perfuse.plugins import host
from perfuse.run.fixed_batch import FixedBatch, fixed_batch, whole_inputs
from perfuse.run.guarded import GuardedProgram, guarding
from perfuse.run.per_size import PerSize
from perfuse.sources.store import ArtifactStore

__all__ = ["prepare", "runs"]


def prepare(
    component: Component,
    target: Target,
    store: ArtifactStore,
    *,
    usual: Mapping[str, int],
    model: str,
    room: int | None = None,
) -> Program:
    """Make a component ready to run on a target.

    Args:
        component: What to run.
        target: Where to run it, with its options.
        store: The cache for exports.
        usual: A size for every dimension, for a target whose programs take one fixed size.
        model: The model's name in an error.
        room: The bytes of its weights that may be loaded at a time; ``None`` for all.

    Raises:
        BackendError: the target cannot run the component.
        ExportError: the component could not be exported to the target's format.
    """
    backend = host().backend(target.backend)
    exported = component.build is None and component.changes is not None
    if exported and backend.weights(component) is None:
        raise UnsupportedError(
            f"{component.name} was to run on {target} with a LoRA; {model} is an export whose "
            "weights that loads as they are. Export the checkpoint with it: perfuse export --lora "
            "FILE."
        )

    def made(one: Component) -> Program:
        with guarding(one.name, str(target)):
            if room is None:
                program = backend.prepare(one, target, store)
            else:
                program = backend.prepare_in_pieces(one, target, store, room)
        return GuardedProgram(program, component=one.name, target=str(target))

    support = _support(backend, component, target)
    if support.works:
        program = made(component)
        size = fixed_batch(program.signature.inputs)
        if size is None:
            return program
        return FixedBatch(program, size, whole=whole_inputs(component.spec.signature.inputs))
    fixed = dataclasses.replace(component, static={**usual, **component.static})
    support_fixed = _support(backend, fixed, target)
    if not support_fixed.works:
        raise UnsupportedError(_refusal(component, target, support, support_fixed))
    if component.build is None:
        raise UnsupportedError(
            f"{component.name} was to run on {target}; {model} was exported for any size, and "
            f"{support.reason} Export the checkpoint again with --height H --width W --batch "
            f"B, or run the checkpoint itself on {target}."
        )

    return PerSize(component, made, usual=usual)


def runs(component: Component, target: Target) -> bool:
    """Whether a target says that it can run a component, at any size or at one."""
    backend = host().backend(target.backend)
    sizes = dict.fromkeys(component.spec.signature.dims, 1)
    fixed = dataclasses.replace(component, static={**sizes, **component.static})
    return any(_support(backend, one, target).works for one in (component, fixed))


def _support(backend: Backend, component: Component, target: Target) -> Support:
    with guarding(component.name, str(target)):
        found = backend.supports(Request.of(component, target))
        if not isinstance(found, Support):
            raise TypeError(f"it answered with a {type(found).__name__}, which says no support")
    return found


def _refusal(component: Component, target: Target, symbolic: Support, fixed: Support) -> str:
    """Why a component cannot run with any size, and, if the reason differs, with one size."""
    text = (
        f"{component.name} was to run on {target} in {component.precision}: "
        f"{symbolic.level.value}; {symbolic.reason}"
    )
    if fixed == symbolic:
        return text
    return f"{text} For one size alone: {fixed.level.value}; {fixed.reason}"
