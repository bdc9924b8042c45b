"""Each transformer family exported to Core ML, component by component, and interpreted."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools")

from perfuse.backend import Component, Target
from perfuse.capture import build
from perfuse.sources import ArtifactStore
from perfuse.sources.checkpoint import Checkpoint
from perfuse_conformance.cases.probes import inputs_of, probes_of
from perfuse_interpreters.mil.backend import CoreMLInterpreter

pytestmark = pytest.mark.export

Arrays = Mapping[str, Any]

#: What each family has that the ones above it have not.
_COMPONENTS = {
    "klein": ("vae_decoder", "vae_encoder", "transformer", "text_encoder"),
    "flux": ("text_encoder", "text_encoder_2", "transformer"),
    "chroma": ("transformer",),
    "sd3": ("transformer",),
    "pixart-sigma": ("transformer",),
    "aura-flow": ("text_encoder", "transformer"),
    "dit": ("transformer",),
    "hunyuan-dit": ("text_encoder", "transformer"),
    "z-image": ("transformer",),
    "qwen-image": ("text_encoder", "transformer", "vae_encoder", "vae_decoder"),
    "qwen-edit-plus": ("text_encoder_vision",),
    "qwen-image-21": ("text_encoder", "text_encoder_vision", "transformer", "vae_encoder"),
    "sana": ("text_encoder", "transformer", "vae_encoder", "vae_decoder"),
    "lumina2": ("transformer",),
    "cogview4": ("text_encoder", "transformer"),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("klein", "vae_decoder"),
        *(
            pytest.param(kind, name, marks=pytest.mark.exhaustive)
            for kind, names in _COMPONENTS.items()
            for name in names
            if (kind, name) != ("klein", "vae_decoder")
        ),
    ],
)
def test_a_component_is_as_right_as_pytorch_in_float32(
    kind: str, name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of the truth, float64, it is at most three times as far as PyTorch, or a millionth."""
    source = Checkpoint.open(checkpoint(kind))
    probe = next(one for one in probes_of(source.spec).values() if one.component == name)
    component = dataclasses.replace(source.component(name), static=dict(probe.dims))
    inputs = inputs_of(source.spec.components[name], probe)[0]
    exact, plain = (_asked(component, inputs, dtype) for dtype in (torch.float64, torch.float32))
    target, store = Target.parse("coreml-interpreter"), ArtifactStore(tmp_path)
    found = CoreMLInterpreter().prepare(component, target, store)(**inputs)
    for output, right in exact.items():
        own = max(_distance(plain[output], right), 1e-6 * right.std())
        assert _distance(found[output], right) < 3 * own


def _asked(component: Component, inputs: Arrays, dtype: torch.dtype) -> dict[str, Any]:
    tensors = [torch.from_numpy(inputs[name]) for name in component.signature.input_names]
    given = [one.to(dtype) if one.is_floating_point() else one for one in tensors]
    with torch.no_grad():
        outputs = build(component).to(dtype)(*given)
    names = component.signature.output_names
    return {name: one.double().numpy() for name, one in zip(names, outputs, strict=True)}


def _distance(found: Any, right: Any) -> float:
    return float(np.sqrt(np.mean((found - right) ** 2)))
