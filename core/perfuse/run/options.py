"""Which option is for which component, where components run on several backends."""

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
    """The options of one component, out of those that were given for a whole pipeline.

    ``threads`` is for every component, ``openvino.threads`` for those on a backend,
    ``unet.threads`` for one component. The narrower one wins; options of the target win over all.

    Args:
        target: Where the component runs.
        given: The options for the whole pipeline.
        backend: The target's backend.
        mixed: Whether components run on more than one backend.
        component: The component's name.

    Raises:
        InputError: an option or its value is unknown, or ``mixed`` and it names no backend.
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
    """Refuse an option for a backend or a component that a pipeline does not use.

    Args:
        given: The options for the whole pipeline.
        backends: The backends that components run on.
        components: The components' names.

    Raises:
        InputError: an option, such as ``openvno.threads``, is for none of these.
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
    """The options for all components, and those for one backend or component, by its name."""
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
    """Options with ``True`` and ``TRUE`` written ``true``, if the backend takes that value."""
    words = {
        name: values
        for name, values in backend.options.items()
        if values is not None and not isinstance(values, range)
    }
    return {
        name: str(value).lower() if str(value).lower() in words.get(name, ()) else value
        for name, value in options.items()
    }
