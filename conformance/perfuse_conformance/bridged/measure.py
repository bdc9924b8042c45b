"""Draw with a recipe's pipeline, eager and on an engine, and compare."""

import multiprocessing
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import perfuse
from perfuse import ArtifactStore
from perfuse_conformance.bridged.recipe import Made, Recipe, recipes

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = [
    "LIMIT",
    "Measured",
    "Part",
    "call_of",
    "drawn",
    "measure",
    "pipeline_of",
    "save_pipeline",
]

#: How far a picture may be from eager's: 2 of 255. Latents and sound: 10⁻³ of the largest number.
LIMIT = {"picture": 2 / 255, "numbers": 1e-3}
#: What components that denoise are called in Diffusers' pipelines.
_DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder", "model", "dit", "vqvae")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one method of a component did in the second of two draws."""

    #: ``vae_decode``.
    name: str
    class_name: str
    calls: int
    torch_calls: int
    #: Graphs that were made in the two draws.
    graphs: int
    seconds: float
    torch_seconds: float
    #: Why calls stayed on torch.
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a pipeline did on a target."""

    pipeline: str
    kind: str
    target: str
    #: ``"picture"`` or ``"numbers"``: what was compared.
    compared: str = ""
    #: The largest difference from eager; of numbers, relative to the largest one.
    difference: float | None = None
    parts: tuple[Part, ...] = ()
    #: Why nothing was compared.
    failure: str = ""

    @property
    def agrees(self) -> bool:
        return self.difference is not None and self.difference <= LIMIT[self.compared]

    @property
    def engine_share(self) -> float | None:
        """The part of the denoisers' time that was spent on the engine; ``None`` without one."""
        rows = [one for one in self.parts if one.name in _DENOISERS] or list(self.parts)
        engine = sum(one.seconds for one in rows)
        total = engine + sum(one.torch_seconds for one in rows)
        return engine / total if total else None


def measure(recipe: Recipe, target: str, store: Path) -> Measured:
    """Draw eager and on a target, in a process of its own: an engine may end it.

    Args:
        recipe: The pipeline to draw with.
        target: Where to draw.
        store: The folder where graphs are kept; pipelines that have a model in common share them.

    Returns:
        What came of it; what failed says so.
    """
    # A copy of this process has the libraries loaded already; elsewhere than on Linux it is not safe.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(its, recipe, target, store))
    process.start()
    its.close()
    try:
        found: Measured = ours.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        failure = f"the process ended with code {code}"
        found = Measured(pipeline=recipe.name, kind=recipe.kind, target=target, failure=failure)
    process.join()
    return found


def _send(to: "Connection", recipe: Recipe, target: str, store: Path) -> None:
    to.send(drawn(recipe, target, ArtifactStore(store)))
    to.close()


def drawn(recipe: Recipe, target: str, store: ArtifactStore) -> Measured:
    """Draw eager and on a target, in this process."""
    row = Measured(pipeline=recipe.name, kind=recipe.kind, target=target)
    try:
        made, pipe = pipeline_of(recipe)
        wanted = _draw(pipe, made)
    except Exception as exc:  # noqa: BLE001 - a recipe that fails is a row of the table
        return replace(row, failure=f"in PyTorch: {_said(exc)}")
    return _bridged(row, pipe, made, wanted, store)


def pipeline_of(recipe: Recipe) -> tuple[Made, Any]:
    """A recipe's pipeline, with no weight that is zero, and what it was made of."""
    import diffusers
    import torch

    diffusers.logging.set_verbosity_error()
    torch.manual_seed(0)
    made = recipe.make()
    for one in made.components.values():
        for module in one if isinstance(one, list | tuple) else [one]:
            if isinstance(module, torch.nn.Module):
                _fill(module)
    pipe = getattr(diffusers, recipe.pipeline)(**made.components)
    pipe.set_progress_bar_config(disable=True)
    return made, pipe


def save_pipeline(name: str, folder: Path) -> None:
    """Write the pipeline of the recipe of this name as a checkpoint."""
    pipeline_of(_recipe(name))[1].save_pretrained(folder)


def call_of(name: str) -> dict[str, Any]:
    """The arguments that the pipeline of this name is called with; a generator is the caller's."""
    import torch

    call = _recipe(name).make().call
    return {key: value for key, value in call.items() if value is not torch.Generator}


def _recipe(name: str) -> Recipe:
    return next(one for one in recipes() if one.name == name)


def _fill(module: Any) -> None:
    """Draw what a new model starts with zeros: a zero hides all that it is multiplied with."""
    import torch

    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.05)


def _draw(pipe: Any, made: Made) -> "np.ndarray[Any, Any]":
    import torch

    torch.manual_seed(0)
    given = {name: _fresh(value) for name, value in made.call.items()}
    with torch.no_grad():
        return _array(pipe(**given)[0])


def _fresh(value: Any) -> Any:
    import torch

    # A generator moves on as it is drawn from: each draw gets one of its own.
    return torch.Generator().manual_seed(0) if value is torch.Generator else value


def _array(found: Any) -> "np.ndarray[Any, Any]":
    import torch

    if isinstance(found, torch.Tensor):
        return found.detach().float().numpy()
    if isinstance(found, list | tuple):
        return np.stack([_array(one) for one in found])
    array = np.asarray(found)
    return array / np.float32(255) if array.dtype == np.uint8 else array.astype(np.float32)


def _bridged(
    row: Measured, pipe: Any, made: Made, wanted: "np.ndarray[Any, Any]", store: ArtifactStore
) -> Measured:
    try:
        perfuse.accelerate(pipe, row.target, store=store)
        _draw(pipe, made)  # graphs are made
        first = {one.name: one for one in pipe.perfuse.report()}
        found = _draw(pipe, made)
        rows = pipe.perfuse.report()
        parts = tuple(_part(one, first.get(one.name), f"{store.root}/") for one in rows)
    except Exception as exc:  # noqa: BLE001 - a pipeline that fails is a row of the table
        return replace(row, failure=_said(exc))
    finally:
        if hasattr(pipe, "perfuse"):
            pipe.perfuse.restore()
    compared, difference = _compare(found, wanted)
    return replace(row, compared=compared, difference=difference, parts=parts)


def _part(now: Any, before: Any, folder: str) -> Part:
    def since(field: str) -> Any:
        return getattr(now, field) - (getattr(before, field) if before is not None else 0)

    return Part(
        name=now.name,
        class_name=now.class_name,
        calls=since("calls"),
        torch_calls=since("torch_calls"),
        graphs=now.graphs,
        seconds=since("seconds"),
        torch_seconds=since("torch_seconds"),
        reasons=tuple(reason.replace(folder, "") for reason in now.reasons),
    )


def _compare(
    found: "np.ndarray[Any, Any]", wanted: "np.ndarray[Any, Any]"
) -> tuple[str, float | None]:
    """What was compared, and the largest difference; none where something is not a number."""
    is_picture = (
        wanted.ndim >= 4 and wanted.shape[-1] == 3 and 0 <= wanted.min() <= wanted.max() <= 1
    )
    compared = "picture" if is_picture else "numbers"
    if found.shape != wanted.shape or not np.isfinite(wanted).all():
        return compared, None
    scale = 1.0 if is_picture else max(float(np.abs(wanted).max()), 1e-6)
    difference = float(np.abs(found - wanted).max()) / scale
    return compared, difference if np.isfinite(difference) else None


def _said(exc: Exception) -> str:
    return f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"[:300]
