"""Pipelines whose models are others' code, asked for other sizes, counts and lengths after a first draw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import perfuse
from perfuse import ArtifactStore
from perfuse_conformance.bridged.measure import call_of, pipeline_of
from perfuse_conformance.bridged.parts import SIDE
from perfuse_conformance.bridged.recipe import recipes

pytestmark = pytest.mark.export

WIDER, TWO, WORDS = {"width": 2 * SIDE}, {"num_images_per_prompt": 2}, {"prompt": "a circle"}
TWO_SOUNDS = {"num_waveforms_per_prompt": 2}
BOTH = {"prompt": ["a red circle", "a circle"]}
#: What is asked for next, by pipeline.
OTHERS: dict[str, tuple[dict[str, Any], ...]] = {
    "AnimateDiffPipeline": ({"num_frames": 2}, WIDER, BOTH),
    "AudioLDMPipeline": ({"audio_length_in_s": 0.01}, TWO_SOUNDS),
    "AudioLDM2Pipeline": ({"audio_length_in_s": 0.01},),
    "AuraFlowPipeline": (WIDER, TWO),
    "CogVideoXPipeline": ({"num_frames": 12}, WIDER, BOTH),
    "CogView3PlusPipeline": (WIDER, TWO),
    "HunyuanVideoPipeline": ({"num_frames": 5}, WIDER, WORDS),
    "Kandinsky5T2VPipeline": ({"num_frames": 9}, WIDER),
    "KandinskyV22Pipeline": (WIDER,),
    "LTXPipeline": ({"num_frames": 17}, WIDER, BOTH),
    "LuminaPipeline": (WIDER, TWO),
    "MochiPipeline": ({"num_frames": 13}, WIDER),
    "QwenImagePipeline": (WIDER, WORDS),
    "StableAudioPipeline": ({"audio_end_in_s": 1.0}, TWO_SOUNDS),
    "WanPipeline": ({"num_frames": 9}, WIDER),
}


def draw(pipe: Any, call: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    found = pipe(**call, generator=torch.Generator().manual_seed(0))[0]
    return np.asarray(found, dtype=np.float32)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_sizes_than_at_first(name: str, engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    pipe = pipeline_of(next(one for one in recipes() if one.name == name))[1]
    first = {**call_of(name), "num_inference_steps": 2}
    calls = [first, *(first | changes for changes in OTHERS[name]), first]
    expected = [draw(pipe, call) for call in calls]
    for found, changes in zip(expected[1:-1], OTHERS[name], strict=True):
        assert found.shape != expected[0].shape or changes is WORDS
    perfuse.accelerate(pipe, engine, store=ArtifactStore(tmp_path))
    for call, wanted in zip(calls, expected, strict=True):
        found = draw(pipe, call)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max()
    assert not [str(row) for row in pipe.perfuse.report() if row.torch_calls]
