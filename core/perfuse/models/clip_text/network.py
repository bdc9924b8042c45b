"""Transformers' CLIP text encoders as flat modules."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.errors import CheckpointError
from perfuse.models.clip_text.description import ONE, PLAIN, PROJECTED, UNNORMED, current
from perfuse.models.loading import load_state
from perfuse.sources.fitting import Rename
from perfuse.sources.plain import to_plain
from perfuse.sources.weights import Weights

__all__ = ["ClipText", "build", "load_text_encoder", "wrap"]


class ClipText(nn.Module):
    """``input_ids -> (last_hidden_state, penultimate_hidden_state, …, pooled)``, by the names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        return self.read(self.model(input_ids=input_ids, output_hidden_states=True))

    def read(self, output: Any) -> tuple[Tensor, ...]:
        """The outputs of the signature, from Transformers'."""
        states = {"penultimate_hidden_state": -2, UNNORMED: -1}
        states |= {f"{ONE}{i}": i for i in range(len(output.hidden_states))}
        return tuple(
            output.hidden_states[states[name]] if name in states else getattr(output, name)
            for name in self.names
        )


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return wrap(spec, load_text_encoder(spec.class_name, spec.config, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one of Transformers' models."""
    return ClipText(model, spec.signature.output_names)


def load_text_encoder(
    class_name: str, config: Mapping[str, Any], weights: Weights, dtype: torch.dtype | None
) -> nn.Module:
    """Transformers' CLIP text encoder; weights already in ``dtype`` stay memory-mapped.

    Raises:
        CheckpointError: perfuse does not load the class, or Transformers refuses its config.
        WeightsError: tensors are missing, unexpected or of another shape.
    """
    if class_name not in (PLAIN, PROJECTED):
        raise CheckpointError(
            f"A text encoder of class {class_name} was asked for; perfuse loads "
            f"{PLAIN} and {PROJECTED}. Use a checkpoint with one of these."
        )
    import transformers

    # A config records the dtype of the weights that it was saved with, not the one asked for.
    fields = {k: to_plain(v) for k, v in config.items() if k not in ("dtype", "torch_dtype")}
    try:
        settings = transformers.CLIPTextConfig.from_dict({**fields, "attn_implementation": "sdpa"})
        with torch.device("meta"):
            model: nn.Module = getattr(transformers, class_name)(settings)
    except Exception as exc:  # Transformers' versions raise different classes
        raise CheckpointError(
            f"The config.json in {weights.folder} was read as a {class_name}'s; Transformers "
            f"{transformers.__version__} said: {' '.join(str(exc).split())}. Take the file from "
            "the checkpoint again."
        ) from exc
    load_state(
        model, weights, where=class_name, rename=_clip_names(model.state_dict()), dtype=dtype
    )
    return model.eval()


def _clip_names(expected: Iterable[str]) -> Rename:
    """Accept names with and without ``text_model.``: Transformers 5 saves CLIPTextModel without.

    ``position_ids`` are dropped: Transformers saved them before 4.31, and they are only a range.
    """
    known = {current(name): name for name in expected}

    def rename(name: str) -> str | None:
        plain = current(name)
        return known.get(plain, name) if plain is not None else None

    return rename
