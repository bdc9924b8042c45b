"""``patch_diffusers``: Diffusers' own ``from_pretrained`` takes a backend."""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Self

from perfuse.bridge.accelerate import Acceleration, accelerate, accelerate_like, fitting
from perfuse.contract.target import PRECISIONS, Placement
from perfuse.errors import InputError
from perfuse.plugins import host

__all__ = ["Patch", "patch_diffusers"]

#: The classes of Diffusers that open pipelines and models, and by which methods.
_DOORS = {
    "DiffusionPipeline": ("from_pretrained", "from_pipe"),
    "AutoPipelineForText2Image": ("from_pretrained", "from_pipe"),
    "AutoPipelineForImage2Image": ("from_pretrained", "from_pipe"),
    "AutoPipelineForInpainting": ("from_pretrained", "from_pipe"),
    "AutoPipelineForText2Audio": ("from_pretrained", "from_pipe"),
    "ModularPipeline": ("from_pretrained",),
    "ModularPipelineBlocks": ("init_pipeline",),
    "loaders.FromSingleFileMixin": ("from_single_file",),
    "ModelMixin": ("from_pretrained",),
    "models.modeling_utils.LegacyModelMixin": ("from_pretrained",),
    "loaders.FromOriginalModelMixin": ("from_single_file",),
    "AutoModel": ("from_pretrained",),
}
#: The patches that are on; the last one's backend is for calls that name none.
_on: list["Patch"] = []
#: What they replaced: a class's own attribute, as it was.
_originals: dict[tuple[type, str], Any] = {}
#: Whether a call that a patch answers is within another: a pipeline opens its models.
_within: ContextVar[bool] = ContextVar("perfuse_patch_within", default=False)


def patch_diffusers(backend: str | None = None, *, precision: str | None = None) -> "Patch":
    """Let Diffusers' ``from_pretrained`` take ``backend=`` and ``precision=``, and accelerate by them.

    Until ``undo()``, or for the length of a ``with`` block, ``from_pretrained``, ``from_single_file``
    and ``from_pipe`` of Diffusers' pipelines, ``AutoPipelineFor…`` and models return what
    ``perfuse.accelerate`` made of their result. What was opened stays accelerated afterwards.

    Args:
        backend: For calls that name none; without it these stay as they are. Targets of components
            that a pipeline does not have are passed over.
        precision: Likewise.

    Raises:
        InputError: Diffusers is not installed, ``backend`` is no placement, or ``precision`` unknown.
        BackendError: a backend is unknown, or its engine is not installed.
    """
    return Patch(backend, precision)


class Patch:
    """Diffusers patched: ``undo()``, or the end of a ``with`` block, takes it back."""

    def __init__(
        self,
        backend: str | None,
        precision: str | None,
        opened: Callable[[Any], None] = lambda made: None,
    ) -> None:
        """As for ``patch_diffusers``; ``opened`` is told of everything that was accelerated."""
        self.placement = Placement.parse(backend) if backend is not None else None
        self.precision, self._opened = precision, opened
        if precision is not None and precision not in PRECISIONS:
            raise InputError(f"Precision {precision!r} was asked for; use {', '.join(PRECISIONS)}.")
        if self.placement is not None:
            for target in (self.placement.default, *self.placement.components.values()):
                host().backend(target.backend)
        if not _on:
            _install()
        _on.append(self)

    def undo(self) -> None:
        """Take the patch back; a second time does nothing."""
        if self in _on:
            _on.remove(self)
            if not _on:
                _uninstall()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def accelerated(
        self, made: Any, source: Any, backend: str | None, precision: str | None
    ) -> None:
        """Accelerate what a call returned: as it asked, as its source is, or as the patch says.

        Raises:
            InputError: a precision was asked for, and no backend; or a target does not fit.
            BackendError: a backend is unknown, or its engine is not installed.
        """
        former = getattr(source, "perfuse", None)
        if isinstance(former, Acceleration) and backend is None:
            accelerate_like(former, made, **({} if precision is None else {"precision": precision}))
            self._opened(made)
            return
        if backend is None and self.placement is not None and _has_modules(made):
            backend = str(fitting(self.placement, made))
        if backend is not None:
            own = precision if precision is not None else self.precision
            accelerate(made, backend, precision=own)
            self._opened(made)
        elif precision is not None:
            raise InputError(
                f"precision={precision!r} was given without a backend. Give one: backend='TARGET'; "
                "torch_dtype= is for Diffusers itself."
            )


def _has_modules(made: Any) -> bool:
    """Whether it is a pipeline or a model; ``AutoModel`` opens other things, too."""
    from torch import nn

    return isinstance(made, nn.Module) or isinstance(getattr(made, "components", None), dict)


def _install() -> None:
    for kind, method in _doors():
        _originals[kind, method] = vars(kind)[method]
        setattr(kind, method, _patched(vars(kind)[method]))


def _uninstall() -> None:
    for (kind, method), original in _originals.items():
        setattr(kind, method, original)
    _originals.clear()


def _doors() -> list[tuple[type, str]]:
    """The methods that this version of Diffusers has, each with the class that has it."""
    try:
        import diffusers
    except ImportError as exc:
        raise InputError(
            "Diffusers was to be patched, which is not installed. Install it: pip install "
            "diffusers transformers."
        ) from exc
    found = []
    for path, methods in _DOORS.items():
        kind: Any = diffusers
        for name in path.split("."):
            kind = getattr(kind, name, object)
        found += [(kind, method) for method in methods if method in vars(kind)]
    return found


def _patched(original: Any) -> Any:
    """A method that opens something, and accelerates it: a class's method, or an object's."""
    if isinstance(original, classmethod):
        return classmethod(_opening(original.__func__))
    return _opening(original)


def _opening(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def opened(
        owner: Any,
        *args: Any,
        backend: str | None = None,
        precision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        if _within.get():
            return method(owner, *args, **kwargs)
        token = _within.set(True)
        try:
            made = method(owner, *args, **kwargs)
        finally:
            _within.reset(token)
        source = args[0] if args else kwargs.get("pipeline")
        one = made[0] if isinstance(made, tuple) else made  # with output_loading_info
        _on[-1].accelerated(one, source, backend, precision)
        return made

    return opened
