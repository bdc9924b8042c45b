"""Attention rewritten for the Neural Engine: the numbers of the original, whose module is left alone."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perfuse import PipelineSpec, PixelLatents, Plan
from perfuse.backend import Component
from perfuse.capture import capture
from perfuse.errors import ExportError, InputError
from perfuse.models import UNet2DConditionModel
from perfuse.models.attention import Transformer2DModel
from perfuse.models.building import wrap
from perfuse.models.registry import describe
from perfuse.run.transforms import find_transforms
from perfuse_conformance.checkpoints import ddpm_config, randomise, unet_config
from perfuse_exporters.coreml.split_einsum import SplitEinsum, SplitEinsumV2, split

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


def test_a_mask_hides_what_it_hid() -> None:
    original = make()
    rewritten = split(original)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
    with torch.no_grad():
        want = original(*inputs(), encoder_attention_mask=mask).sample
        got = rewritten(*inputs(), encoder_attention_mask=mask).sample
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_the_weights_are_shared_and_the_original_is_as_it_was() -> None:
    original = make()
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    rewritten = split(original)
    rewritten.half()
    assert sum(p.numel() for p in rewritten.parameters()) == sum(
        p.numel() for p in original.parameters()
    )
    for name, tensor in original.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    places = {p.untyped_storage().data_ptr() for p in original.parameters()}
    assert {p.untyped_storage().data_ptr() for p in split(original).parameters()} == places


def component(module: Any, class_name: str = "UNet2DConditionModel") -> Component:
    (spec,) = describe(class_name, "unet", "unet", unet_config())
    static = {"batch": 1, "latent_height": 8, "latent_width": 6, "sequence": 7}
    return Component(spec=spec, static=static, build=lambda: wrap(spec, module))


@pytest.mark.export
def test_the_transforms_are_found_and_rewrite_the_unet_alone() -> None:
    transforms = [one.transform for one in find_transforms(["split_einsum", "split_einsum_v2"])]
    assert [type(one) for one in transforms] == [SplitEinsum, SplitEinsumV2]
    assert transforms[1].queries == 512
    unet = component(make())
    (spec,) = describe("UNet2DModel", "other", "other", ddpm_config())
    other = Component(spec=spec, build=lambda: pytest.fail("it was built"))
    before = Plan(
        spec=PipelineSpec(
            class_name="SomePipeline",
            tasks=(),
            components={"unet": unet.spec, "other": spec},
            scheduler={},
            latents=PixelLatents(),
        ),
        components={"unet": unet, "other": other},
        tasks={},
    )
    after = transforms[0].apply(before, None)
    build = after.components["unet"].build
    assert build is not None
    with torch.no_grad():
        (got,), (want,) = build()(*inputs()), unet.build()(*inputs())  # type: ignore[misc]
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert after.components["other"] is other


def test_a_module_without_transformers_is_refused() -> None:
    with pytest.raises(InputError, match="none of perfuse's own"):
        split(torch.nn.Linear(2, 2))


@pytest.mark.export
def test_parts_need_a_fixed_size() -> None:
    rewritten = component(split(make(), queries=16))
    with pytest.raises(ExportError, match="split_einsum_v2 was to be captured for any size"):
        capture(dataclasses.replace(rewritten, static={}))


@pytest.mark.export
def test_core_ml_has_one_product_a_head_and_part(tmp_path: Path) -> None:
    """And layer normalisation over channels in one operation, with hardly a transposition."""
    pytest.importorskip("coremltools")
    from perfuse_exporters.coreml.exporter import CoreMLExporter
    from perfuse_exporters.coreml.mlpackage import read_model
    from perfuse_interpreters.mil.interpreter import MilPredictor

    config = {
        "block_out_channels": [32],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "mid_block_type": None,
        "attention_head_dim": 2,
    }
    original = make(**config)
    one = dataclasses.replace(component(split(original, queries=20)), precision="float16")
    main = CoreMLExporter().export(one, tmp_path)
    function = read_model(main)[0].mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    kinds = Counter(op.type for op in block.operations)
    # Two heads; 48 queries in parts of 20, 20 and 8; pixels and then text; two products each.
    assert kinds["einsum"] == 2 * 3 * 2 * 2
    assert kinds["layer_norm"] == 3
    assert kinds["transpose"] == 3  # the text, once, and the keys of each attention
    sample, timestep, text = inputs(1, 8, 6)
    arrays = {"sample": sample, "timestep": timestep, "encoder_hidden_states": text}
    got = MilPredictor(main)({name: tensor.numpy() for name, tensor in arrays.items()})[
        "out_sample"
    ]
    with torch.no_grad():
        want = original(sample, timestep, text).sample.numpy()
    assert abs(got - want).max() < 5e-3 * abs(want).max()
