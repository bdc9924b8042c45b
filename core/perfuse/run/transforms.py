"""Accelerations that rewrite a component or the loop: what a plugin implements, how they are put on."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from perfuse.contract.backend import Component
from perfuse.errors import PerfuseError, PluginError
from perfuse.plugins.host import host, said
from perfuse.tasks.steps import Task

__all__ = ["Transform", "find_transforms", "transformed", "transformed_task"]

_T = TypeVar("_T")


class Transform:
    """An acceleration, or anything else that rewrites a pipeline. Both methods may be left out."""

    #: The name that its manifest gives it; the host sets it.
    name: str = ""

    def component(self, component: Component) -> Component:
        """A component with another ``build``, and where needed another ``spec``.

        It is called before a component is prepared or exported, and does no work itself: what
        ``build`` returns may be the user's own module, so rewrite a copy of it. The host marks the
        fingerprint, so that the cache keeps both. Return the component as it is to leave it.
        """
        return component

    def task(self, task: Task) -> Task:
        """The task with steps inserted, replaced or taken out."""
        return task

    @property
    def rewrites_components(self) -> bool:
        """Whether it does more than change the task."""
        return type(self).component is not Transform.component


def find_transforms(names: Sequence[str]) -> tuple[Transform, ...]:
    """The transforms of these names, in order.

    Raises:
        InputError: no plugin offers one of them.
        PluginError: the class of one cannot be imported.
    """
    found = []
    for name in [names] if isinstance(names, str) else names:
        transform = host().transform(name)
        transform.name = name
        found.append(transform)
    return tuple(found)


def transformed_task(task: Task, transforms: Sequence[Transform]) -> Task:
    """A task as the transforms leave it.

    Raises:
        PluginError: one of them fails, or returns something else.
    """
    for transform in transforms:
        task = _applied(transform, transform.task, task)
    return task


def transformed(component: Component, transforms: Sequence[Transform]) -> Component:
    """A component as the transforms leave it; the fingerprint tells of those that changed it.

    Raises:
        PluginError: one of them fails, or returns something else.
    """
    for transform in transforms:
        before, component = component, _applied(transform, transform.component, component)
        # Where there is no fingerprint, one is taken of the module itself, rewritten as it is.
        if component is not before and before.fingerprint is not None:
            mark = f"{component.fingerprint} {transform.name} {_version(transform)}"
            mark = hashlib.sha256(mark.encode()).hexdigest()
            component = replace(component, fingerprint=mark)
    return component


def _applied(transform: Transform, rewrite: Callable[[_T], _T], value: _T) -> _T:
    try:
        result = rewrite(value)
    except PerfuseError:
        raise
    except Exception as exc:
        raise PluginError(
            f"Transform {transform.name!r} raised {said(exc)}. Leave it out, or update or "
            "uninstall its plugin."
        ) from exc
    if not isinstance(result, type(value)):
        raise PluginError(
            f"Transform {transform.name!r} returned {result!r}, not a {type(value).__name__}. "
            "Leave it out, or update or uninstall its plugin."
        )
    return result


def _version(transform: Transform) -> str:
    """Of the distribution that brings it: another one may rewrite differently."""
    row = host().brought_by(transform.name, "perfuse_transforms")
    return f"{row.distribution} {row.version}" if row is not None else "?"
