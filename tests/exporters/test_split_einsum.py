"""Attention rewritten for the Neural Engine: the numbers of the original, the user's left alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfuse.backend import Component
from perfuse.errors import ExportError, InputError
from perfuse.models import UNet2DConditionModel
from perfuse.models.attention import Transformer2DModel
from perfuse.models.components import wrap
from perfuse.spec import ComponentSpec
from perfuse.transforms import find_transforms
from perfuse_conformance.checkpoints import randomise, unet_config
from perfuse_exporters.split_einsum import SplitEinsum, SplitEinsumV2, split

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "as Stable Diffusion 1": {},
    "one head": {"attention_head_dim": 1},
    "linear projections, as 2": {"use_linear_projection": True, "attention_head_dim": [2, 4]},
    "layers, as XL": {
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
    },
    "text alone": {"only_cross_attention": True},
    "upcast": {"upcast_attention": True},
}


def make(**fields: Any) -> Any:
    return randomise(UNet2DConditionModel(**unet_config(**fields))).eval()


def inputs(batch: int = 2, height: int = 8, width: int = 12) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, 4, height, width, generator=generator),
        torch.full((batch,), 481.7),
        torch.randn(batch, 7, 32, generator=generator),
    )


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("queries", [None, 40], ids=["whole", "parts"])
def test_it_computes_what_the_original_computes(
    fields: Mapping[str, Any], queries: int | None
) -> None:
    original = make(**fields)
    rewritten = split(original, queries=queries)
    assert not any(isinstance(part, Transformer2DModel) for part in rewritten.modules())
    with torch.no_grad():
        want, got = original(*inputs()).sample, rewritten(*inputs()).sample
        # It is no matter of the last layers only: without the text it is another picture.
        other = rewritten(*inputs()[:2], torch.zeros(2, 7, 32)).sample
    # Sums in another order: measured 1e-6 of the largest value.
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert (other - want).abs().max() > 1e-3 * want.abs().max()
