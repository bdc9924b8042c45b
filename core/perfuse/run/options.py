"""Which backend each switch is for, where components run on several."""

from collections.abc import Collection, Mapping

from perfuse.contract.backend import Backend
from perfuse.contract.options import read_options
from perfuse.contract.target import Target
from perfuse.errors import InputError

__all__ = ["check_scopes", "options_for"]


def options_for(
    target: Target,
    given: Mapping[str, object],
    backend: Backend,
    mixed: bool,
    *,
    component: str,
) -> dict[str, str]:
    """The switches of one component, of those that a person gave for a whole pipeline.

    ``threads`` is for every component, ``openvino.threads`` for those on a backend, ``unet.threads``
    for one. The narrower wins; what the target says itself is the narrowest.

    Args:
        target: Where the component runs.
        given: What a person wrote, for all components.
        backend: The target's backend, which says what switches it has.
        mixed: Whether components run on more than one backend.
        component: The component's name.

    Raises:
        InputError: a switch or a value is unknown, or it is not clear for which backend it is.
    """
    everywhere, scopes = _by_scope(given)
    if mixed and everywhere:
        name, value = next(iter(everywhere.items()))
        raise InputError(
            f"The option {name}={value} was given for a pipeline on several backends, which do not "
            f"have the same options. Say for which it is: {target.backend}.{name}={value}, or for "
            f"one component {component}.{name}={value}."
        )
    options = {
        **everywhere,
        **scopes.get(target.backend, {}),
        **scopes.get(component, {}),
        **target.options,
    }
    return read_options(
        _lowered(options, backend), backend.options, of=f"The {target.backend} backend"
    )


def check_scopes(
    given: Mapping[str, object], *, backends: Collection[str], components: Collection[str]
) -> None:
    """Refuse a switch for a backend or a component that a pipeline does not use.

    Args:
        given: What a person wrote, for all components.
        backends: The backends that components run on.
        components: The components' names.

    Raises:
        InputError: ``openvno.threads`` is for none of them.
    """
    known = list(dict.fromkeys((*backends, *components)))
    for scope, options in _by_scope(given)[1].items():
        if scope not in known:
            raise InputError(
                f"The option {scope}.{next(iter(options))} was given; {scope} is neither a backend nor "
                f"a component of this pipeline, which has {', '.join(known)}."
            )


def _by_scope(
    given: Mapping[str, object],
) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """The switches for everything, and those for one scope, by the scope."""
    everywhere: dict[str, object] = {}
    scopes: dict[str, dict[str, object]] = {}
    for name, value in given.items():
        scope, dot, switch = name.partition(".")
        if dot:
            scopes.setdefault(scope, {})[switch] = value
        else:
            everywhere[name] = value
    return everywhere, scopes


def _lowered(options: Mapping[str, object], backend: Backend) -> dict[str, object]:
    """``True`` and ``TRUE`` as ``true``, where that is a value."""
    words = {
        name: values
        for name, values in backend.options.items()
        if values is not None and not isinstance(values, range)
    }
    return {
        name: str(value).lower() if str(value).lower() in words.get(name, ()) else value
        for name, value in options.items()
    }
