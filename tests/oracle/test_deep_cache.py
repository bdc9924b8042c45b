"""DeepCache against Diffusers' UNet with hooks that put a former state in the place of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.oracle.pairs import Pair, make_gentle

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from perfuse import DiffusionPipeline
from perfuse_conformance.checkpoints import make_checkpoint, randomise, unet_config

pytestmark = pytest.mark.slow


class Hooked:
    """Runs the whole UNet at every step; the state before its last layers is one of an earlier step.

    The state is the first channels of what a residual block of the last block is given.
    """

    def __init__(self, unet: Any, every: int, layers: int) -> None:
        self.every, self.call, self.state = every, -1, None
        resnets = unet.up_blocks[-1].resnets
        self.hooks = [
            unet.register_forward_pre_hook(self.count),
            resnets[len(resnets) - layers].register_forward_pre_hook(self.put),
        ]
        self.width = unet.config.block_out_channels[0]

    def count(self, module: Any, inputs: Any) -> None:
        self.call += 1

    def put(self, module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        joined, *others = inputs
        if self.call % self.every == 0:
            self.state = joined[:, : self.width].clone()
        return (torch.cat([self.state, joined[:, self.width :]], dim=1), *others)

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("kind", "class_name"),
    [("sd1", "StableDiffusionPipeline"), ("sdxl", "StableDiffusionXLPipeline")],
)
def test_a_former_state_takes_the_place(tmp_path: Path, kind: str, class_name: str) -> None:
    folder = make_checkpoint(tmp_path / kind, kind)
    if kind == "sd1":  # three layers in the last block
        unet = diffusers.UNet2DConditionModel(**unet_config(layers_per_block=2))
        randomise(unet).save_pretrained(folder / "unet")
    make_gentle(folder, factor=0.3)
    settings = {"add_watermarker": False} if kind == "sdxl" else {}
    pair = Pair.open(folder, class_name, **settings)
    given = {"prompt": "a red circle", "num_inference_steps": 7}
    plain = pair.check(**given)
    for every, layers in ((2, 1), (3, 2)) if kind == "sd1" else ((3, 1),):
        hooked = Hooked(pair.theirs.unet, every, layers)
        text = f"deepcache:every={every},layers={layers}"
        ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", transforms=[text])
        try:
            cached = Pair(ours, pair.theirs).check(**given)
        finally:
            hooked.remove()
        assert np.abs(cached - plain).max() > 1e-3
