"""Finding transforms by name, reading their options, and applying them to a plan."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from perfuse.contract.component import Rewritten
from perfuse.contract.fields import read_fields, split_named
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError, PluginError
from perfuse.plugins import host
from perfuse.plugins.importing import guarded

__all__ = ["Chosen", "applied", "approximate", "find_transforms", "rewriting"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """A transform with its options, and the text that the user asked for it with."""

    transform: Transform
    options: Any
    text: str

    @property
    def mark(self) -> str:
        """The text and the plugin's version, for cache keys: versions may rewrite differently."""
        row = host().brought_by(self.transform.name, "perfuse_transforms")
        version = f"{row.distribution} {row.version}" if row is not None else "?"
        return f"{self.text} {version}"


def find_transforms(texts: Sequence[str]) -> tuple[Chosen, ...]:
    """The transforms that ``NAME`` or ``NAME:key=value,key=value`` name, in order.

    Raises:
        InputError: no plugin offers a transform, or it has no such option.
        PluginError: a transform's class cannot be imported.
    """
    return tuple(_find(text) for text in ([texts] if isinstance(texts, str) else texts))


def _find(text: str) -> Chosen:
    name, given = split_named(text, what="Transform")
    transform = host().transform(name)
    transform.name = name
    options: Any = read_fields(transform.Options, given, of=f"Transform {name!r}")
    return Chosen(transform=transform, options=options, text=text)


def applied(plan: Plan, transforms: Sequence[Chosen], *, exported: Sequence[str] = ()) -> Plan:
    """Apply transforms to a plan.

    Args:
        plan: The pipeline's plan.
        transforms: The transforms, in order.
        exported: The transforms that were applied before the export. These rewrite tasks only: the
            exported components have them already.

    Raises:
        InputError: a transform does not fit the pipeline, or rewrites an exported component.
        PluginError: a transform fails, or does not return a ``Plan``.
    """
    for chosen in transforms:
        after = _applied(plan, chosen)
        is_export = all(component.build is None for component in plan.components.values())
        if is_export and after.components != plan.components:
            if chosen.text not in exported:
                raise InputError(
                    f"Transform {chosen.text!r} was asked for; it rewrites components, and these "
                    "are exported already. Export the checkpoint again with --transform "
                    f"{chosen.text}."
                )
            after = dataclasses.replace(plan, tasks=after.tasks)
        plan = after
    return plan


def rewriting(plan: Plan, transforms: Sequence[Chosen]) -> tuple[str, ...]:
    """The texts of the transforms that change or add components."""
    found = []
    for chosen in transforms:
        after = _applied(plan, chosen)
        if after.components != plan.components:
            found.append(chosen.text)
        plan = after
    return tuple(found)


def approximate(
    plan: Plan, transforms: Sequence[Chosen], *, exported: Sequence[str] = ()
) -> tuple[str, ...]:
    """The texts of the transforms that change pictures by more than rounding.

    Of those that an export was made with, these are the ones that rewrite components alone: what
    others do in a task is done only where they are asked for again.
    """
    known = host().transforms()
    found = find_transforms([text for text in exported if split_named(text, what="")[0] in known])
    inside = [one for one in found if _applied(plan, one).tasks == plan.tasks]
    texts = (
        one.text for one in (*inside, *transforms) if one.transform.is_approximate(one.options)
    )
    return tuple(dict.fromkeys(texts))


def _applied(plan: Plan, chosen: Chosen) -> Plan:
    name = chosen.transform.name
    with guarded(
        lambda why: PluginError(
            f"Transform {name!r} raised {why}. Leave it out, or update or uninstall its plugin."
        )
    ):
        result = chosen.transform.apply(plan, chosen.options)
    if not isinstance(result, Plan):
        raise PluginError(
            f"Transform {name!r} returned {result!r}, not a Plan. Leave it out, or update or "
            "uninstall its plugin."
        )
    return _marked(plan, result, chosen)


def _marked(before: Plan, after: Plan, chosen: Chosen) -> Plan:
    """The plan with the transform's version in what identifies the components (cache keys)."""
    components = {}
    for name, component in after.components.items():
        if component != before.components.get(name) and component.fingerprint is not None:
            mark = f"{component.fingerprint} {chosen.mark}"
            build = component.build
            if isinstance(build, Rewritten) and build.to_graph:
                build = dataclasses.replace(build, to_graph=f"{build.to_graph} {chosen.mark}")
            component = dataclasses.replace(component, fingerprint=mark, build=build)
        components[name] = component
    return dataclasses.replace(after, components=components)
