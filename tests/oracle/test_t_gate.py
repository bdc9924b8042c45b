"""T-GATE against Diffusers' pipelines with attention processors that keep what they gave.

The pipelines predict with and without the prompt to the end. After the gate both are alike, so that
guidance changes nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.oracle.pairs import Pair, make_gentle

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.models.attention_processor import AttnProcessor2_0

from perfuse import DiffusionPipeline
from perfuse_conformance.checkpoints import make_checkpoint

pytestmark = pytest.mark.slow


class Keeping:
    """Cross-attention at the first steps; then the mean of what it gave with the prompt and without."""

    def __init__(self, gate: int) -> None:
        self.gate, self.call, self.usual = gate, 0, AttnProcessor2_0()
        self.kept: Any = None

    def __call__(self, attention: Any, *given: Any, **named: Any) -> Any:
        self.call += 1
        if self.call <= self.gate:
            found = self.usual(attention, *given, **named)
            self.kept = found.unflatten(0, (2, -1)).mean(dim=0).repeat(2, 1, 1)
            return found
        return self.kept


def keep(unet: Any, gate: int) -> None:
    """Put such processors into all cross-attentions, and the prompt's own vector into all branches."""
    processors = {
        name: Keeping(gate) if ".attn2." in name else AttnProcessor2_0()
        for name in unet.attn_processors
    }
    unet.set_attn_processor(dict(processors))  # which is emptied
    first = next(one for one in processors.values() if isinstance(one, Keeping))

    def same(module: Any, given: Any, named: dict[str, Any]) -> Any:
        more = named.get("added_cond_kwargs") or {}
        if first.call >= gate and "text_embeds" in more:
            own = more["text_embeds"].unflatten(0, (2, -1))[1].repeat(2, 1)
            named = {**named, "added_cond_kwargs": {**more, "text_embeds": own}}
        return given, named

    unet.register_forward_pre_hook(same, with_kwargs=True)


@pytest.mark.parametrize(
    ("kind", "class_name"),
    [("sd1", "StableDiffusionPipeline"), ("sdxl", "StableDiffusionXLPipeline")],
)
def test_attention_is_kept(tmp_path: Path, kind: str, class_name: str) -> None:
    folder = make_gentle(make_checkpoint(tmp_path / kind, kind), factor=0.3)
    settings = {"add_watermarker": False} if kind == "sdxl" else {}
    pair = Pair.open(folder, class_name, **settings)
    given = {"prompt": ["a red circle", "a square"], "num_inference_steps": 6}
    plain = pair.check(**given)
    ours = DiffusionPipeline.from_pretrained(
        folder, backend="torch:cpu", transforms=["t-gate:gate=3"]
    )
    keep(pair.theirs.unet, 3)
    gated = Pair(ours, pair.theirs).check(**given)
    assert np.abs(gated - plain).max() > 1e-3
