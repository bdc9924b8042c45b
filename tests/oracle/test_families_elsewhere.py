"""Each transformer family draws on engines of one size a program as it draws on PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from perfuse import DiffusionPipeline
from perfuse.errors import BackendNotFoundError
from perfuse.plugins import host

pytestmark = pytest.mark.export

Checkpoint = Callable[[str], Path]

_KINDS = (
    "z-image",
    "klein",
    "qwen-image",
    "qwen-image-21",
    "qwen-edit",
    "flux",
    "sd3",
    "pixart-sigma",
    "sana",
    "sana-sprint",
    "lumina2",
    "chroma",
    "dit",
    "aura-flow",
    "hunyuan-dit",
    "cogview4",
)
_TARGETS = ("coreml-interpreter:cpu", "neuron-interpreter:cpu", "xla:cpu", "executorch:cpu")
#: This runs each time; the others take half an hour, most of it on ExecuTorch.
_QUICK = ("pixart-sigma", "neuron-interpreter:cpu")
_GIVEN: dict[str, dict[str, Any]] = {
    "dit": {"class_labels": [3]},
    "qwen-edit": {
        "prompt": "a red circle",
        "image": Image.fromarray(
            np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        ),
    },
}


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        pytest.param(
            kind, target, marks=[] if (kind, target) == _QUICK else [pytest.mark.exhaustive]
        )
        for kind in _KINDS
        for target in _TARGETS
    ],
)
def test_a_family_draws_what_pytorch_draws(kind: str, target: str, checkpoint: Checkpoint) -> None:
    try:
        host().backend(target.partition(":")[0])
    except BackendNotFoundError as exc:
        pytest.skip(str(exc))
    drawn = [_drawn(checkpoint(kind), one, kind) for one in ("torch:cpu", target)]
    # Not a flat picture, in which any two engines agree; Qwen-Image-Edit's is the quietest, with 0.099.
    assert drawn[0].std() > 0.05
    assert np.abs(drawn[1] - drawn[0]).max() <= 1 / 255


def _drawn(folder: Path, backend: str, kind: str) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, backend=backend)
    given = _GIVEN.get(kind, {"prompt": "a red circle", "height": 64, "width": 64})
    return pipe(**given, num_inference_steps=2, seed=0, output_type="np").images
