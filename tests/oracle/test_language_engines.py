"""Transformer families, most with a language model as text encoder, on other engines, without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from perfuse import DiffusionPipeline
from perfuse_conformance.checkpoints import make_checkpoint

LONG = "a blue square on the white background " * 9
#: Each with two prompts of different lengths; klein's are filled up.
CALLS: dict[str, dict[str, Any]] = {
    "z-image": {"prompt": ["a red circle", LONG]},
    "qwen-image-21": {
        "prompt": ["a red circle", LONG],
        "negative_prompt": "x",
        "true_cfg_scale": 3.0,
    },
    "qwen-image": {"prompt": ["a red circle", LONG], "negative_prompt": "x"},
    "klein": {"prompt": ["a red circle", LONG], "max_sequence_length": 64},
    "sana": {"prompt": ["a red circle", LONG], "complex_human_instruction": ["Say more:"]},
    "sana-sprint": {"prompt": ["a red circle", LONG], "complex_human_instruction": ["Say more:"]},
    "lumina2": {"prompt": ["a red circle", LONG], "max_sequence_length": 256},
    "chroma": {"prompt": ["a red circle", LONG], "max_sequence_length": 64},
    "aura-flow": {"prompt": ["a red circle", LONG], "max_sequence_length": 64},
    "cogview4": {"prompt": ["a red circle", LONG]},
    "dit": {"class_labels": [1, 7]},
    "hunyuan-dit": {"prompt": ["a red circle", LONG], "height": 32, "width": 48},
}
SHARED = {
    "height": 16,
    "width": 24,
    "num_inference_steps": 3,
    "seed": [1, 2],
    "output_type": "np",
}
DRAW = """
import json, sys
import numpy as np
from perfuse import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
np.save(sys.argv[2], pipe(**json.loads(sys.argv[3])).images)
assert not {"torch", "transformers", "jinja2"} & set(sys.modules)
"""


@pytest.mark.exhaustive
@pytest.mark.export
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize(
    ("target", "format"), [("onnxruntime:cpu", "onnx"), ("openvino:CPU", "openvino")]
)
def test_engines_agree(kind: str, target: str, format: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", kind)
    call = {**SHARED, **CALLS[kind]}
    expected = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")(**call).images
    pipe = DiffusionPipeline.from_pretrained(folder, backend=target)
    assert np.abs(pipe(**call).images - expected).max() * 255 <= 2
    pipe.export(tmp_path / "export", to=format)
    drawn = tmp_path / "drawn.npy"
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path / "export"), str(drawn), json.dumps(call)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(drawn) - expected).max() * 255 <= 2


@pytest.mark.exhaustive
@pytest.mark.export
@pytest.mark.parametrize(
    ("kind", "height", "width"),
    [
        *(
            (kind, 16, 24)
            for kind in ("z-image", "qwen-image", "qwen-image-21", "lumina2", "cogview4", "sana")
        ),
        ("hunyuan-dit", 32, 48),
    ],
)
def test_one_size(kind: str, height: int, width: int, tmp_path: Path) -> None:
    """Captions are filled up to the length that the graph has, and hidden there."""
    folder = make_checkpoint(tmp_path / "checkpoint", kind)
    call = {**SHARED, "prompt": "a red circle", "negative_prompt": "x", "seed": 1}
    call |= {"height": height, "width": width}
    pipe = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    pipe.export(tmp_path / "export", to="onnx", height=height, width=width, batch=1)
    drawn = DiffusionPipeline.from_pretrained(tmp_path / "export")(**call).images
    assert np.abs(drawn - pipe(**call).images).max() * 255 <= 2
