"""Fine-tunes of one model in each other's weights: weighted sums, and added differences."""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from perfuse.contract.source import Source
from perfuse.errors import InputError
from perfuse.run.loras import adaptable
from perfuse.sources.adapters import Adapter
from perfuse.sources.adapters.fine_tune import Difference

if TYPE_CHECKING:
    from torch import Tensor

    from perfuse.run.pipeline import DiffusionPipeline

__all__ = ["load_fine_tune"]

Weights = Mapping[str, Mapping[str, "Tensor"]]


def load_fine_tune(
    pipe: "DiffusionPipeline", model: Source, *, name: str, minus: Source | None = None
) -> None:
    """Load a fine-tune into a pipeline as an adapter of its denoiser and its text encoders.

    ``set_adapters`` says how much it counts, ``fuse_lora`` makes it part of the weights.

    Args:
        pipe: The pipeline of the model that it is to change.
        model: The fine-tune.
        name: What to call it.
        minus: What it was tuned from: only the difference counts then.

    Raises:
        InputError: its weights are not those of the pipeline's model.
    """
    own = _weights(pipe.source, pipe)
    after = _weights(model, pipe)
    before = _weights(minus, pipe) if minus is not None else None
    for source, found in ((model, after), (minus, before)):
        if source is not None and found is not None:
            _check(source, found, pipe.source, own)
    deltas = {
        part: {
            key: Difference(
                shape=tuple(weight.shape),
                after=partial(_array, after[part][key]),
                before=partial(_array, before[part][key]) if before is not None else None,
            )
            for key, weight in weights.items()
        }
        for part, weights in own.items()
    }
    said = [_fingerprint(one, pipe) for one in (model, minus) if one is not None]
    digest = hashlib.sha256(repr(said).encode()).hexdigest()
    adapter = Adapter(name=name, file=model.model, fingerprint=digest, deltas=deltas)
    pipe._use(pipe.loras.with_loaded(adapter))


def _weights(source: Source, pipe: "DiffusionPipeline") -> Weights:
    """By part, the weights of a source's denoiser and text encoders, mapped from its files."""
    from perfuse.models.changed_weights import named_weights

    found = {}
    for spec in adaptable(pipe.spec):
        if spec.name not in source.spec.components:
            raise InputError(
                f"{source.model} was to be merged; it has no {spec.name}, which "
                f"{pipe.source.model} has. Fine-tunes of one model are merged."
            )
        build = source.component(spec.name).build
        if build is None:
            raise InputError(
                f"{source.model} was to be merged; it is an export. Merge the checkpoint that it "
                "was made from."
            )
        found[spec.part] = named_weights(build())
    return found


def _check(source: Source, found: Weights, of: Source, own: Weights) -> None:
    """Raise ``InputError`` unless a source has the weights that another has."""
    for part, weights in own.items():
        shapes, wanted = _shapes(found[part]), _shapes(weights)
        for name in sorted(shapes.keys() | wanted.keys()):
            if shapes.get(name) != wanted.get(name):
                raise InputError(
                    f"{source.model} was to be merged; its {part} has {name} as "
                    f"{shapes.get(name, 'nothing')}, and {of.model} as {wanted.get(name, 'nothing')}. "
                    "Fine-tunes of one model are merged."
                )


def _shapes(weights: Mapping[str, "Tensor"]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _fingerprint(source: Source, pipe: "DiffusionPipeline") -> list[str | None]:
    return [source.component(spec.name).fingerprint for spec in adaptable(pipe.spec)]


def _array(weight: "Tensor") -> Any:
    """A weight in float32."""
    import torch

    return weight.detach().to("cpu", torch.float32).numpy()
