"""What is right of trials and of drawn pictures: asked when they are, one at a time."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from perfuse.errors import InputError
from perfuse.run import DiffusionPipeline
from perfuse.sources import to_plain
from perfuse_conformance import SUITE_VERSION
from perfuse_conformance.cases.bundle import Bundle, write_bundle
from perfuse_conformance.cases.draws import Draw
from perfuse_conformance.cases.opening import open_pipeline
from perfuse_conformance.cases.trials import Trial
from perfuse_conformance.reference.asking import REFERENCE, ask_draw, ask_trial, keep
from perfuse_conformance.reference.pipeline import ReferencePipeline

__all__ = ["TrialReference"]


class TrialReference:
    """PyTorch in float64 and as it is, held open for trials of one model."""

    def __init__(self, model: str | None, transforms: Sequence[str], folder: Path) -> None:
        """Of a model.

        Args:
            model: A checkpoint; the bundled ``shapes`` without one.
            transforms: To put on.
            folder: Where bundles of one call each are written.
        """
        self._model, self._transforms, self._folder = model, tuple(transforms), folder
        self._own: dict[str, DiffusionPipeline] = {}
        self._written = 0

    @cached_property
    def _truth(self) -> ReferencePipeline:
        return open_pipeline(
            ReferencePipeline, self._model, backend=REFERENCE, transforms=self._transforms
        )

    def _as_it_is(self, precision: str) -> Mapping[str, DiffusionPipeline]:
        if precision not in self._own:
            self._own[precision] = open_pipeline(
                DiffusionPipeline,
                self._model,
                backend=REFERENCE,
                precision=precision,
                transforms=self._transforms,
            )
        return {precision: self._own[precision]}

    def trial(self, trial: Trial, component: str, id: str, precision: str) -> tuple[Trial, Bundle]:
        """Ask a trial; returned as it was asked, with a bundle that holds it as the probe ``id``.

        Raises:
            InputError: the model does not take it.
        """
        own = self._as_it_is(precision)
        try:
            trial, calls, exact, meta = ask_trial(trial, component, id, self._truth, own)
        except (RuntimeError, ValueError) as exc:
            raise InputError(
                f"{component} was to be asked with {trial}; PyTorch answers: "
                f"{str(exc).splitlines()[0]}. Ask for other sizes."
            ) from exc
        tensors: dict[str, Any] = {}
        keep(tensors, id, calls, exact)
        return trial, self._bundle({"probes": {id: meta}}, {component: tensors}, trial.numbers)

    def draw(self, draw: Draw, precision: str, seed: int) -> Bundle:
        """Draw a picture; a bundle that holds it."""
        drawn, _, meta = ask_draw(draw, self._truth, self._as_it_is(precision))
        tensors = {f"draw/{draw.id}/{name}": array for name, array in drawn.items()}
        return self._bundle({"draws": {draw.id: meta}}, {"draws": tensors}, seed)

    def _bundle(
        self, index: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]], seed: int
    ) -> Bundle:
        self._written += 1
        folder = self._folder / f"trial-{self._written}"
        folder.mkdir()
        common = {
            "suite": SUITE_VERSION,
            "model": str(self._model) if self._model is not None else "shapes",
            "seed": seed,
            "reference": {"target": REFERENCE},
            "spec": to_plain(self._truth.spec),
            "probes": {},
            "draws": {},
        }
        write_bundle(folder, {**common, **index}, tensors)
        return Bundle.open(folder)

    def close(self) -> None:
        """Free the models."""
        for pipe in self._own.values():
            pipe.close()
        if "_truth" in self.__dict__:
            self._truth.close()
