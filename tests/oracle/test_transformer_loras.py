"""LoRAs of transformers in the layouts of their trainers, beside Diffusers' own converters."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from diffusers.loaders import lora_conversion_utils
from tests.oracle.pairs import LATENTS, Pair
from tests.oracle.test_klein import normalised

from perfuse.errors import WeightsError
from perfuse.models import registry
from perfuse.sources.adapters import Adapter, Home, read_adapter

exhaustive = pytest.mark.exhaustive
Make = Callable[[str], Path]
State = dict[str, Any]

_QKV, _ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def _flux(ff: tuple[str, str], **single: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The layers of blocks 0 of FLUX.1 and FLUX.2 that both have."""
    double = "transformer_blocks.0"
    return {
        "double_blocks.0.img_attn.qkv": tuple(f"{double}.attn.{one}" for one in _QKV),
        "double_blocks.0.txt_attn.qkv": tuple(f"{double}.attn.{one}" for one in _ADDED),
        "double_blocks.0.img_attn.proj": (f"{double}.attn.to_out.0",),
        "double_blocks.0.txt_attn.proj": (f"{double}.attn.to_add_out",),
        "double_blocks.0.img_mlp.0": (f"{double}.ff.{ff[0]}",),
        "double_blocks.0.img_mlp.2": (f"{double}.ff.{ff[1]}",),
        "double_blocks.0.txt_mlp.0": (f"{double}.ff_context.{ff[0]}",),
        "double_blocks.0.txt_mlp.2": (f"{double}.ff_context.{ff[1]}",),
        **{
            f"single_blocks.0.{other}": tuple(f"single_transformer_blocks.0.{one}" for one in ours)
            for other, ours in single.items()
        },
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
    }


_FUSED = tuple(f"attn.{one}" for one in _QKV)
_TOLD = "time_text_embed"
FLUX = {
    **_flux(
        ("net.0.proj", "net.2"),
        linear1=(*_FUSED, "proj_mlp"),
        linear2=("proj_out",),
        **{"modulation.lin": ("norm.linear",)},
    ),
    "double_blocks.0.img_mod.lin": ("transformer_blocks.0.norm1.linear",),
    "double_blocks.0.txt_mod.lin": ("transformer_blocks.0.norm1_context.linear",),
    "time_in.in_layer": (f"{_TOLD}.timestep_embedder.linear_1",),
    "vector_in.out_layer": (f"{_TOLD}.text_embedder.linear_2",),
    "guidance_in.out_layer": (f"{_TOLD}.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
XLABS = {
    "double_blocks.0.processor.qkv_lora1": FLUX["double_blocks.0.img_attn.qkv"],
    "double_blocks.0.processor.qkv_lora2": FLUX["double_blocks.0.txt_attn.qkv"],
    "double_blocks.0.processor.proj_lora1": FLUX["double_blocks.0.img_attn.proj"],
    "double_blocks.0.processor.proj_lora2": FLUX["double_blocks.0.txt_attn.proj"],
    "single_blocks.0.processor.qkv_lora": FLUX["single_blocks.0.linear1"][:3],
    "single_blocks.0.processor.proj_lora": FLUX["single_blocks.0.linear2"],
}
FLUX2 = _flux(
    ("linear_in", "linear_out"), linear1=("attn.to_qkv_mlp_proj",), linear2=("attn.to_out",)
)
Z_IMAGE = {
    **{
        f"{block}.0.{other}": tuple(f"{block}.0.{one}" for one in ours)
        for block in ("layers", "noise_refiner", "context_refiner")
        for other, ours in {
            "attention.to_q": ("attention.to_q",),
            "attention.to_out.0": ("attention.to_out.0",),
            "feed_forward.w2": ("feed_forward.w2",),
        }.items()
    },
    "layers.0.adaLN_modulation.0": ("layers.0.adaLN_modulation.0",),
    "cap_embedder.1": ("cap_embedder.1",),
    "t_embedder.mlp.0": ("t_embedder.mlp.0",),
}
Z_FUSED = {
    "layers.0.attention.qkv": tuple(f"layers.0.attention.{one}" for one in _QKV),
    "layers.1.attention.out": ("layers.1.attention.to_out.0",),
}
QWEN = {
    one: (one,)
    for one in (
        "img_in",
        "proj_out",
        "norm_out.linear",
        *(f"transformer_blocks.0.attn.{one}" for one in (*_QKV, *_ADDED, "to_out.0", "to_add_out")),
        "transformer_blocks.1.img_mlp.net.0.proj",
        "transformer_blocks.1.txt_mlp.net.2",
        "transformer_blocks.1.img_mod.1",
    )
}

LUMINA = {
    f"{block}.0.{other}": tuple(f"{block}.0.{one}" for one in ours)
    for block in ("layers", "noise_refiner", "context_refiner")
    for other, ours in {
        "attention.qkv": tuple(f"attn.{one}" for one in _QKV),
        "attention.out": ("attn.to_out.0",),
        **{f"feed_forward.w{i}": (f"feed_forward.linear_{i}",) for i in (1, 2, 3)},
        "adaLN_modulation.1": ("norm1.linear",),
    }.items()
    if block != "context_refiner" or "adaLN" not in other
}

#: How a trainer names a layer's factors: what comes before and after, and the sign between words.
KOHYA = ("lora_unet_{}", "lora_down.weight", "lora_up.weight", "_")
COMFY = ("diffusion_model.{}", "lora_down.weight", "lora_up.weight", ".")
TOOLKIT = ("diffusion_model.{}", "lora_A.weight", "lora_B.weight", ".")
PEFT = ("base_model.model.{}", "lora_A.weight", "lora_B.weight", ".")
ONE_TRAINER = ("lora_transformer_{}", "lora_down.weight", "lora_up.weight", "_")
DEFAULT = ("{}", "lora_A.default.weight", "lora_B.default.weight", ".")
PROCESSORS = ("{}", "down.weight", "up.weight", ".")
Style = tuple[str, str, str, str]

SIZES: Mapping[str, Mapping[str, Any]] = {
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True},
    "Flux2Transformer2DModel": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 4},
    "ZImageTransformer2DModel": {"n_layers": 2, "n_refiner_layers": 1, "dim": 256, "n_heads": 2},
    "QwenImageTransformer2DModel": {"num_layers": 2, "num_attention_heads": 4},
}
#: Of a family whose layers have the names of another's.
ALIKE = {"Lumina2Transformer2DModel": {"num_layers": 1, "num_refiner_layers": 1}}


def written(
    shapes: Mapping[str, tuple[int, ...]],
    layers: Mapping[str, tuple[str, ...]],
    style: Style,
    *,
    alpha: bool = True,
    rank: int = 2,
    size: float = 0.2,
) -> State:
    """A random LoRA of these layers, in a trainer's names."""
    start, down, up, sign = style
    generator = torch.Generator().manual_seed(len(layers))

    def draw(*shape: int) -> Any:
        return size * torch.randn(*shape, generator=generator)

    state: State = {}
    for other, ours in layers.items():
        rows = sum(shapes[f"{one}.weight"][0] for one in ours)
        name = start.format(other.replace(".", sign))
        between = "_lora." if down == "down.weight" and not name.endswith(tuple("12a")) else "."
        state[f"{name}{between}{down}"] = draw(rank, *shapes[f"{ours[0]}.weight"][1:])
        state[f"{name}{between}{up}"] = draw(rows, rank)
        if alpha and not other.startswith("final_layer"):  # whose alpha Diffusers leaves out
            state[f"{name}.alpha"] = torch.tensor(rank * 0.75)
    return state


def home(class_name: str) -> Home:
    """The transformer of a family with few blocks, without numbers."""
    with torch.device("meta"):
        model = getattr(diffusers, class_name)(**{**SIZES, **ALIKE}[class_name])
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    (spec,) = registry.describe(class_name, "transformer", "transformer", dict(model.config))
    layers = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
    known = registry.aliases(spec, layers)
    return Home(part="transformer", denoiser=True, shapes=shapes, aliases=known)


def read(state: State, there: Home) -> Adapter:
    return read_adapter(state, {"transformer": there}, name="one", of="a pipeline")


def compared(adapter: Adapter, converted: State) -> None:
    """The first columns of what both add to each weight."""
    theirs: dict[str, dict[str, Any]] = {}
    for name, tensor in converted.items():
        layer, _, factor = name.removeprefix("transformer.").partition(".lora_")
        theirs.setdefault(f"{layer}.weight", {})[factor[0]] = tensor
    ours = adapter.deltas["transformer"]
    assert set(ours) == set(theirs)
    for weight, delta in ours.items():
        one: Any = delta
        added = one.scale * one.up @ one.down[:, :3]
        expected = theirs[weight]["B"] @ theirs[weight]["A"][:, :3]
        np.testing.assert_allclose(added, expected.numpy(), atol=1e-5, err_msg=weight)


@pytest.mark.parametrize(
    ("class_name", "layers", "style", "converter"),
    [
        ("FluxTransformer2DModel", FLUX, KOHYA, "kohya_flux"),
        ("FluxTransformer2DModel", FLUX, COMFY, "kohya_flux"),
        ("FluxTransformer2DModel", XLABS, PROCESSORS, "xlabs_flux"),
        (
            "FluxTransformer2DModel",
            {one: (one,) for one in ("x_embedder", *FLUX["double_blocks.0.img_attn.qkv"])},
            ONE_TRAINER,
            "kohya_flux",
        ),
        ("Flux2Transformer2DModel", FLUX2, KOHYA, "kohya_flux2"),
        ("Flux2Transformer2DModel", FLUX2, TOOLKIT, "non_diffusers_flux2"),
        ("ZImageTransformer2DModel", Z_IMAGE, KOHYA, "non_diffusers_z_image"),
        ("ZImageTransformer2DModel", Z_IMAGE, TOOLKIT, "non_diffusers_z_image"),
        ("ZImageTransformer2DModel", Z_IMAGE, DEFAULT, "non_diffusers_z_image"),
        (
            "ZImageTransformer2DModel",
            Z_FUSED,
            ("diffusion_model.{}", "lora.down.weight", "lora.up.weight", "."),
            "non_diffusers_z_image",
        ),
        ("QwenImageTransformer2DModel", QWEN, KOHYA, "non_diffusers_qwen"),
        ("QwenImageTransformer2DModel", QWEN, TOOLKIT, "non_diffusers_qwen"),
        ("Lumina2Transformer2DModel", LUMINA, TOOLKIT, "non_diffusers_lumina2"),
    ],
)
def test_read_as_diffusers_converts(
    class_name: str, layers: Mapping[str, tuple[str, ...]], style: Style, converter: str
) -> None:
    there = home(class_name)
    # Diffusers reads no alphas of XLabs' and of ai-toolkit's FLUX.2 and Lumina 2.
    alpha = converter not in ("xlabs_flux", "non_diffusers_flux2", "non_diffusers_lumina2")
    state = written(there.shapes, layers, style, alpha=alpha)
    convert = getattr(lora_conversion_utils, f"_convert_{converter}_lora_to_diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = convert(dict(state))
    compared(read(state, there), converted)


def test_a_layer_that_is_several_in_other_kinds() -> None:
    """LoKr and DoRA of a fused layer: the parts are those of the whole."""
    there = home("ZImageTransformer2DModel")
    width = there.shapes["layers.0.attention.to_q.weight"][0]
    random = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    name = "diffusion_model.layers.0.attention.qkv"
    first, second = draw(3, 1), draw(width, width)
    adapter = read({f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}, there)
    for i, one in enumerate(_QKV):
        delta = adapter.deltas["transformer"][f"layers.0.attention.{one}.weight"]
        added = delta.applied(np.zeros((width, width), np.float32), second, 0.5)
        np.testing.assert_allclose(added, 0.5 * first[i, 0] * second, rtol=1e-5, atol=1e-6)
    down, up, magnitude = draw(2, width), draw(3 * width, 2), draw(3 * width, 1)
    factors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude}
    adapter = read({f"{name}.{factor}": array for factor, array in factors.items()}, there)
    value = adapter.deltas["transformer"]["layers.0.attention.to_v.weight"]
    moved = second + up[2 * width :] @ down
    norm = np.linalg.norm(moved, axis=1, keepdims=True)
    changed = value.applied(second, second, 1.0)
    np.testing.assert_allclose(changed, moved * magnitude[2 * width :] / norm, rtol=1e-3, atol=1e-4)
    factors["dora_scale"] = draw(1, width)
    with pytest.raises(WeightsError, match="magnitudes are those of columns"):
        read({f"{name}.{factor}": array for factor, array in factors.items()}, there)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lora_unet_double_blocks_0_img_attn_rope.lora_down.weight": (2, 8)}, "img_attn_rope"),
        ({"double_blocks.0.img_attn.norm.query_norm.diff": (8,)}, "query_norm.diff"),
        ({"transformer_blocks.0.attn.to_q.lora_A.weight": (2, 3072)}, "to_q"),
    ],
)
def test_what_has_no_place_is_named(change: Mapping[str, tuple[int, ...]], says: str) -> None:
    there = home("FluxTransformer2DModel")
    fused = {one: FLUX[one] for one in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")}
    state = written(there.shapes, fused, TOOLKIT)
    extra = {name: torch.ones(shape) for name, shape in change.items()}
    if says == "to_q":
        extra["transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.ones(3072, 2)
    with pytest.raises(WeightsError, match=says):
        read({**state, **extra}, there)
    nothing = {"double_blocks.0.img_attn.norm.query_norm.diff": torch.zeros(8)}
    assert len(read({**state, **nothing}, there).deltas["transformer"]) == 7


@pytest.mark.parametrize(
    ("class_name", "layers", "style", "says"),
    [
        ("FluxTransformer2DModel", FLUX, KOHYA, "FLUX.1"),
        ("Flux2Transformer2DModel", FLUX2, TOOLKIT, "FLUX.2"),
        ("QwenImageTransformer2DModel", QWEN, KOHYA, "Qwen-Image"),
        ("ZImageTransformer2DModel", Z_IMAGE, KOHYA, "Z-Image or Lumina"),
    ],
)
def test_a_lora_of_another_model_says_of_which(
    class_name: str, layers: Mapping[str, tuple[str, ...]], style: Style, says: str
) -> None:
    state = written(home(class_name).shapes, layers, style)
    others = [name for name in SIZES if name != class_name]
    for other in others:
        with pytest.raises(WeightsError, match=f"looks to be made for {says}"):
            read(state, home(other))


@pytest.fixture(scope="module")
def pair(checkpoint: Make) -> Iterator[Callable[[str, str], Pair]]:
    opened: dict[str, Pair] = {}

    def open_once(kind: str, class_name: str) -> Pair:
        if kind not in opened:
            opened[kind] = Pair.open(checkpoint(kind), class_name)
        return opened[kind]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield open_once


CALL = {"prompt": "a red circle", "height": 32, "width": 32, "max_sequence_length": 24}
PLAIN_FLUX = {one: ours for one, ours in FLUX.items() if one != "single_blocks.0.linear1"}


@exhaustive
@pytest.mark.parametrize(
    ("kind", "class_name", "layers", "style"),
    [
        ("flux", "FluxPipeline", PLAIN_FLUX, KOHYA),
        ("flux", "FluxPipeline", XLABS, PROCESSORS),
        ("klein", "Flux2KleinPipeline", FLUX2, KOHYA),
        ("klein", "Flux2KleinPipeline", FLUX2, TOOLKIT),
        ("klein", "Flux2KleinPipeline", FLUX2, PEFT),
        ("z-image", "ZImagePipeline", Z_IMAGE, TOOLKIT),
        ("z-image", "ZImagePipeline", Z_IMAGE, KOHYA),
        ("qwen-image", "QwenImagePipeline", QWEN, KOHYA),
    ],
)
def test_latents(
    pair: Callable[[str, str], Pair],
    kind: str,
    class_name: str,
    layers: Mapping[str, tuple[str, ...]],
    style: Style,
) -> None:
    both = pair(kind, class_name)
    shapes = {name: tuple(one.shape) for name, one in both.theirs.transformer.state_dict().items()}
    # Of what is outside of the blocks Diffusers forgets the part in FLUX.1's names.
    inner = {one: ours for one, ours in layers.items() if "blocks" in one or kind != "flux"}
    state = written(shapes, inner, style, alpha=kind != "klein" and style != PROCESSORS)
    call = {**CALL, "num_inference_steps": 2}
    before, _ = both.run("latent", **call)
    for pipe in (both.ours, both.theirs):
        pipe.load_lora_weights(dict(state), adapter_name="one")
        pipe.set_adapters(["one"], [0.7])
    ours, theirs = both.run("latent", **call)
    for pipe in (both.ours, both.theirs):
        pipe.unload_lora_weights()
    if kind == "klein":
        theirs = normalised(both.theirs, theirs)
    assert float((ours - theirs).abs().max()) <= LATENTS
    assert float((ours - before).abs().max()) > 0.01


@exhaustive
def test_stable_diffusion_3(pair: Callable[[str, str], Pair]) -> None:
    """kohya's layout, which Diffusers cannot read: beside the same change in PEFT's."""
    both = pair("sd3", "StableDiffusion3Pipeline")
    shapes = {name: tuple(one.shape) for name, one in both.theirs.transformer.state_dict().items()}
    block = "transformer_blocks.0"
    layers = {
        "joint_blocks.0.x_block.attn.qkv": tuple(f"{block}.attn.{one}" for one in _QKV),
        "joint_blocks.0.x_block.attn2.qkv": tuple(f"{block}.attn2.{one}" for one in _QKV),
        "joint_blocks.0.context_block.attn.qkv": tuple(f"{block}.attn.{one}" for one in _ADDED),
        "joint_blocks.0.context_block.mlp.fc1": (f"{block}.ff_context.net.0.proj",),
        "joint_blocks.1.x_block.mlp.fc2": ("transformer_blocks.1.ff.net.2",),
        "joint_blocks.2.context_block.adaLN_modulation.1": (
            "transformer_blocks.2.norm1_context.linear",
        ),
        "final_layer.linear": ("proj_out",),
    }
    state = written(shapes, layers, KOHYA)
    split: State = {}
    for other, ours in layers.items():
        name = f"lora_unet_{other.replace('.', '_')}"
        rows = state[f"{name}.lora_up.weight"]
        if "context_block.adaLN" in other:  # its shift and scale are the other way round
            rows = rows.roll(len(rows) // 2, 0)
        scale = float(state.get(f"{name}.alpha", torch.tensor(2.0))) / 2
        for layer, up in zip(ours, rows.chunk(len(ours)), strict=True):
            split[f"transformer.{layer}.lora_A.weight"] = state[f"{name}.lora_down.weight"] * scale
            split[f"transformer.{layer}.lora_B.weight"] = up.clone()
    both.ours.load_lora_weights(state, adapter_name="one")
    both.theirs.load_lora_weights(split, adapter_name="one")
    try:
        both.check(**CALL)
    finally:
        both.ours.unload_lora_weights()
        both.theirs.unload_lora_weights()
