"""Every family of transformers with LoRAs in every layout that is written for it, beside Diffusers with PEFT.

What each layer is given is drawn once; PEFT takes it by the model's own names, and a layout's names and
fused layers are made of it here. Which original layer is which is what the converters of
``test_transformer_files`` are compared with.
"""

import copy
import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from safetensors.torch import save_file
from tests.oracle.pairs import Pair
from tests.oracle.test_qwen_image_21 import processor
from tests.oracle.test_transformer_gguf import SCALES

from perfuse import DiffusionPipeline
from perfuse.contract.original import Stacked
from perfuse.errors import WeightsError

exhaustive = pytest.mark.exhaustive
Make = Callable[[str], Path]
State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family, and its small checkpoint."""

    #: As ``docs/adapters.md`` calls it.
    name: str
    class_name: str
    #: The folder of its architecture, where that knows the names of its authors' files.
    room: str = ""
    inputs: Mapping[str, Any] = ()


_SHORT = {"max_sequence_length": 24}
FAMILIES: Mapping[str, Family] = {
    "flux": Family(
        name="FLUX.1", class_name="FluxPipeline", room="flux_transformer", inputs=_SHORT
    ),
    "klein": Family(
        name="FLUX.2 klein",
        class_name="Flux2KleinPipeline",
        room="flux2_transformer",
        inputs={"max_sequence_length": 48},
    ),
    "chroma": Family(
        name="Chroma", class_name="ChromaPipeline", room="chroma_transformer", inputs=_SHORT
    ),
    "sd3": Family(
        name="Stable Diffusion 3",
        class_name="StableDiffusion3Pipeline",
        room="sd3_transformer",
        inputs=_SHORT,
    ),
    "z-image": Family(name="Z-Image", class_name="ZImagePipeline", room="z_image_transformer"),
    "qwen-image": Family(name="Qwen-Image", class_name="QwenImagePipeline"),
    "qwen-image-21": Family(
        name="Qwen-Image 2.1", class_name="QwenImage21Pipeline", room="qwen_image_21_transformer"
    ),
    "lumina2": Family(
        name="Lumina 2",
        class_name="Lumina2Pipeline",
        room="lumina2_transformer",
        inputs={"max_sequence_length": 60},
    ),
    "aura-flow": Family(
        name="AuraFlow",
        class_name="AuraFlowPipeline",
        room="aura_flow_transformer",
        inputs={"max_sequence_length": 40},
    ),
    "hunyuan-dit": Family(
        name="Hunyuan-DiT",
        class_name="HunyuanDiTPipeline",
        room="hunyuan_transformer",
        inputs={"use_resolution_binning": False},
    ),
    "sana": Family(
        name="Sana",
        class_name="SanaPipeline",
        inputs={**_SHORT, "use_resolution_binning": False, "complex_human_instruction": None},
    ),
    "cogview4": Family(name="CogView 4", class_name="CogView4Pipeline"),
    "pixart-sigma": Family(
        name="PixArt",
        class_name="PixArtSigmaPipeline",
        inputs={**_SHORT, "use_resolution_binning": False},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a trainer names what it writes."""

    #: As ``docs/adapters.md`` calls it.
    name: str
    #: A layer's place in a name.
    before: str
    down: str = "lora_A.weight"
    up: str = "lora_B.weight"
    #: What stands between the words of a layer's name.
    sign: str = "."
    alpha: bool = False
    #: Whether layers have the names of the authors' files, where the family has such.
    original: bool = False


_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": True}
LAYOUTS: Mapping[str, Layout] = {
    "diffusers": Layout(name="Diffusers", before="transformer.{}"),
    "peft": Layout(name="PEFT's folder", before="base_model.model.{}"),
    "one-trainer": Layout(name="OneTrainer", before="lora_transformer_{}", sign="_", **_KOHYA),
    "kohya": Layout(name="kohya", before="lora_unet_{}", sign="_", original=True, **_KOHYA),
    "toolkit": Layout(name="ai-toolkit", before="diffusion_model.{}", original=True),
    "authors": Layout(name="the authors' names", before="{}", original=True),
    "comfy": Layout(name="ComfyUI", before="diffusion_model.{}", original=True, **_KOHYA),
}
#: How far pictures may be from Diffusers'. The limit of the project is 1/255.
LIMIT = 1e-3


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is added to one layer of a file: ``scale * up @ down``, or DoRA's of that."""

    #: The model's layers that it is, from the first row on, and whether halves change places.
    place: Stacked
    down: Any
    up: Any
    alpha: float
    magnitude: Any = None

    def parts(self, rows: Mapping[str, int]) -> Iterator[tuple[str, "Change"]]:
        """The same for each of the model's layers."""
        start = 0
        for layer in self.place.layers:
            chosen = torch.arange(self.up.shape[0])
            if self.place.swapped:
                chosen = chosen.roll(len(chosen) // 2)
            chosen = chosen[start : start + rows[layer]]
            start += rows[layer]
            yield (
                layer,
                Change(
                    place=Stacked(layers=(layer,)),
                    down=self.down,
                    up=self.up[chosen],
                    alpha=self.alpha,
                    magnitude=None if self.magnitude is None else self.magnitude[chosen],
                ),
            )


def linear(model: Any) -> dict[str, Any]:
    return {n: one for n, one in model.named_modules() if isinstance(one, torch.nn.Linear)}


def drawn(kind: str, model: Any, layout: Layout, *, dora: bool = False) -> dict[str, Change]:
    """By the name that a file has for a layer, a random change of rank 1 to 4, with an alpha of its own."""
    layers, room = linear(model), FAMILIES[kind].room
    places: dict[str, Stacked] = {}
    left = set(layers)
    if layout.original and room:
        known = importlib.import_module(f"perfuse.models.{room}.original").aliases(layers)
        for other, place in known.items():
            one = place if isinstance(place, Stacked) else Stacked(layers=(place,))
            if left.issuperset(one.layers):  # XLabs' names are those of layers that have one
                places[other] = one
                left.difference_update(one.layers)
    places |= {layer: Stacked(layers=(layer,)) for layer in layers if layer in left}
    random = torch.Generator().manual_seed(len(places))
    changes = {}
    for i, (other, place) in enumerate(places.items()):
        rank, rows = 1 + i % 4, sum(layers[one].out_features for one in place.layers)
        first = layers[place.layers[0]]
        rank = min(rank, rows, first.in_features)
        weight = torch.cat([layers[one].weight for one in place.layers])
        noise = 1 + 0.1 * torch.rand(rows, generator=random)
        changes[other] = Change(
            place=place,
            down=0.1 * torch.randn(rank, first.in_features, generator=random),
            up=0.1 * torch.randn(rows, rank, generator=random),
            alpha=rank * (0.5, 1.0, 2.0)[i % 3]
            if layout.alpha or layout.name.startswith("PEFT")
            else rank,
            magnitude=weight.detach().norm(dim=1) * noise if dora else None,
        )
        if i % 7 == 0:
            changes[other].up.zero_()  # as training begins
    return changes


def by_layer(model: Any, changes: Mapping[str, Change]) -> dict[str, Change]:
    rows = {name: one.out_features for name, one in linear(model).items()}
    return {layer: part for one in changes.values() for layer, part in one.parts(rows)}


def with_peft(model: Any, changes: Mapping[str, Change], *, dora: bool = False) -> Any:
    """A copy of a model in which PEFT computes the changes."""
    config = peft.LoraConfig(
        r=1,
        lora_alpha=1,
        use_dora=dora,
        target_modules="|".join(map(re.escape, changes)),
        rank_pattern={f"^{re.escape(one)}": len(change.down) for one, change in changes.items()},
        alpha_pattern={f"^{re.escape(one)}": change.alpha for one, change in changes.items()},
    )
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    for name, change in changes.items():
        layer = adapted.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data = change.down.clone()
        layer.lora_B["default"].weight.data = change.up.clone()
        if dora:
            layer.lora_magnitude_vector["default"].weight.data = change.magnitude.clone()
    return adapted


def write(path: Path, layout: Layout, changes: Mapping[str, Change]) -> Path:
    """A file of a layout."""
    state: State = {}
    for other, one in changes.items():
        name = layout.before.format(other.replace(".", layout.sign))
        state[f"{name}.{layout.down}"], state[f"{name}.{layout.up}"] = one.down, one.up
        if layout.alpha:
            state[f"{name}.alpha"] = torch.tensor(float(one.alpha))
        if one.magnitude is not None:
            state[f"{name}.dora_scale"] = one.magnitude[:, None]
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def pair(checkpoint: Make) -> Iterator[Callable[[str], Pair]]:
    opened: dict[str, Pair] = {}

    def open_once(kind: str) -> Pair:
        if kind not in opened:
            folder, settings = checkpoint(kind), {}
            if kind == "qwen-image-21":
                settings["processor"] = processor(folder / "processor")
            opened[kind] = Pair.open(folder, FAMILIES[kind].class_name, **settings)
            if kind in SCALES:
                opened[kind].theirs.vae_scale_factor = SCALES[kind]
        return opened[kind]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield open_once


def compared(both: Pair, kind: str, given: Any, adapted: Any, *, limit: float = LIMIT) -> None:
    """Draw with a file on our side and PEFT's model on theirs, and without again."""
    call = {"prompt": "a red circle", "height": 32, "width": 32, "num_inference_steps": 2}
    call |= dict(FAMILIES[kind].inputs)
    before, plain = both.run("np", **call)
    assert np.abs(before - plain).max() <= limit
    model = both.theirs.transformer
    # Hunyuan-DiT's pooling reads weights past PEFT's layers: merged, the changes count there, too.
    merged = kind == "hunyuan-dit"
    both.theirs.transformer = adapted.merge_and_unload() if merged else adapted.base_model.model
    both.ours.load_lora_weights(given, adapter_name="one")
    try:
        ours, theirs = both.run("np", **call)
    finally:
        both.theirs.transformer = model
        both.ours.unload_lora_weights()
    assert np.abs(ours - theirs).max() <= limit
    assert np.abs(ours - before).max() > 20 * LIMIT
    assert np.array_equal(both.run("np", **call)[0], before)


EVERY = [(kind, layout) for kind in FAMILIES for layout in LAYOUTS]
QUICK = {("flux", "comfy"), ("z-image", "peft"), ("sd3", "kohya"), ("hunyuan-dit", "authors")}


@pytest.mark.parametrize(
    ("kind", "layout"),
    [pytest.param(*one, marks=() if one in QUICK else exhaustive) for one in EVERY],
)
def test_every_layout(pair: Callable[[str], Pair], tmp_path: Path, kind: str, layout: str) -> None:
    both, how = pair(kind), LAYOUTS[layout]
    changes = drawn(kind, both.theirs.transformer, how)
    adapted = with_peft(both.theirs.transformer, by_layer(both.theirs.transformer, changes))
    if layout == "peft":
        adapted.save_pretrained(tmp_path)  # alphas are in adapter_config.json
        compared(both, kind, tmp_path, adapted)
    else:
        compared(both, kind, write(tmp_path / "one.safetensors", how, changes), adapted)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        pytest.param(kind, layout, marks=() if (kind, layout) == ("klein", "comfy") else exhaustive)
        for kind in FAMILIES
        for layout in ("comfy", "peft")
    ],
)
def test_dora(pair: Callable[[str], Pair], tmp_path: Path, kind: str, layout: str) -> None:
    both, how = pair(kind), LAYOUTS[layout]
    model = both.theirs.transformer
    changes = drawn(kind, model, how, dora=True)
    adapted = with_peft(model, by_layer(model, changes), dora=True)
    if layout == "peft":
        adapted.save_pretrained(tmp_path)
        compared(both, kind, tmp_path, adapted)
    else:
        compared(both, kind, write(tmp_path / "one.safetensors", how, changes), adapted)


@exhaustive
@pytest.mark.export
@pytest.mark.parametrize("backend", ["onnxruntime:cpu", "openvino:CPU"])
@pytest.mark.parametrize(("kind", "layout"), [("klein", "comfy"), ("z-image", "peft")])
def test_engines(
    pair: Callable[[str], Pair],
    checkpoint: Make,
    tmp_path: Path,
    kind: str,
    layout: str,
    backend: str,
) -> None:
    pytest.importorskip(backend.partition(":")[0])
    both, how = pair(kind), LAYOUTS[layout]
    changes = drawn(kind, both.theirs.transformer, how)
    adapted = with_peft(both.theirs.transformer, by_layer(both.theirs.transformer, changes))
    given: Path = tmp_path
    if layout == "peft":
        adapted.save_pretrained(tmp_path)
    else:
        given = write(tmp_path / "one.safetensors", how, changes)
    on = Pair(DiffusionPipeline.from_pretrained(checkpoint(kind), backend=backend), both.theirs)
    compared(on, kind, given, adapted, limit=2 / 255)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "kind",
    [kind if kind == "lumina2" else pytest.param(kind, marks=exhaustive) for kind in FAMILIES],
)
def test_a_layer_that_the_model_has_not_is_named(
    pair: Callable[[str], Pair], tmp_path: Path, kind: str, layout: str
) -> None:
    both, how = pair(kind), LAYOUTS[layout]
    changes = drawn(kind, both.theirs.transformer, how)
    changes["blocks.0.nowhere"] = next(iter(changes.values()))
    stray = how.before.format(f"blocks{how.sign}0{how.sign}nowhere")
    with pytest.raises(WeightsError, match=rf"no place for: {re.escape(stray)}\.(lora|alpha)"):
        both.ours.load_lora_weights(write(tmp_path / "one.safetensors", how, changes))
    assert both.ours.get_list_adapters() == {}


#: Text encoders of each family, and how a layout's names of their layers begin.
ENCODERS = [
    ("flux", {"text_encoder": "text_encoder.{}", "text_encoder_2": "text_encoder_2.{}"}),
    ("flux", {"text_encoder": "lora_te1_{}", "text_encoder_2": "lora_te3_{}"}),
    ("z-image", {"text_encoder": "text_encoder.{}"}),
    (
        "flux",
        {
            "text_encoder": "text_encoders.clip_l.transformer.{}",
            "text_encoder_2": "text_encoders.t5xxl.transformer.{}",
        },
    ),
    (
        "sd3",
        {
            "text_encoder": "text_encoder.{}",
            "text_encoder_2": "text_encoder_2.{}",
            "text_encoder_3": "text_encoder_3.{}",
        },
    ),
    (
        "sd3",
        {
            "text_encoder": "lora_te1_{}",
            "text_encoder_2": "lora_te2_{}",
            "text_encoder_3": "lora_te3_{}",
        },
    ),
    ("chroma", {"text_encoder": "text_encoder.{}"}),
    ("qwen-image", {"text_encoder": "text_encoder.{}"}),
    ("lumina2", {"text_encoder": "text_encoder.{}"}),
    ("sana", {"text_encoder": "text_encoder.{}"}),
    ("aura-flow", {"text_encoder": "text_encoder.{}"}),
    ("cogview4", {"text_encoder": "text_encoder.{}"}),
]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        pytest.param(*one, marks=() if i in (1, 2) else exhaustive, id=f"{one[0]}-{i}")
        for i, one in enumerate(ENCODERS)
    ],
)
def test_text_encoders(
    pair: Callable[[str], Pair], tmp_path: Path, kind: str, parts: Mapping[str, str]
) -> None:
    """Layers that no states are read from included, as a trainer writes them."""
    both, state = pair(kind), State()
    models, adapted = {}, {}
    for part, before in parts.items():
        models[part] = getattr(both.theirs, part)
        layers = drawn(kind, models[part], LAYOUTS["diffusers"])
        changes = {n: one for n, one in layers.items() if re.search(r"layers?\.\d|block\.\d", n)}
        assert changes
        adapted[part] = with_peft(models[part], changes).base_model.model
        sign = "_" if before.endswith("_{}") else "."
        for name, one in changes.items():
            start = before.format(name.replace(".", sign))
            state[f"{start}.lora_down.weight"] = one.down.clone()
            state[f"{start}.lora_up.weight"] = one.up.clone()
    save_file(state, tmp_path / "one.safetensors")
    call = {"prompt": "a red circle", "height": 32, "width": 32, "num_inference_steps": 2}
    call |= dict(FAMILIES[kind].inputs)
    before_it, _ = both.run("np", **call)
    both.ours.load_lora_weights(tmp_path / "one.safetensors")
    try:
        for part, model in adapted.items():
            setattr(both.theirs, part, model)
        ours, theirs = both.run("np", **call)
    finally:
        both.ours.unload_lora_weights()
        for part, model in models.items():
            setattr(both.theirs, part, model)
    assert np.abs(ours - theirs).max() <= LIMIT
    assert np.abs(ours - before_it).max() > LIMIT


def table() -> str:
    """Family by layout: whose names the layers of a file have."""
    lines = [
        "| family | " + " | ".join(one.name for one in LAYOUTS.values()) + " |",
        "| --- |" + " --- |" * len(LAYOUTS),
    ]
    for family in FAMILIES.values():
        cells = ["authors'" if one.original and family.room else "own" for one in LAYOUTS.values()]
        lines.append(f"| {family.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_page_has_what_is_tested() -> None:
    page = Path(__file__).parents[2] / "docs" / "adapters.md"
    assert table() in page.read_text("utf-8"), f"docs/adapters.md is to have:\n{table()}"


def test_zeros_change_nothing(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    both, how = pair("flux"), LAYOUTS["toolkit"]
    changes = drawn("flux", both.theirs.transformer, how)
    for one in changes.values():
        one.up.zero_()
    call = {"prompt": "a red circle", "height": 32, "width": 32, "num_inference_steps": 1}
    call |= {**_SHORT, "seed": 0, "output_type": "np"}
    before = both.ours(**call).images
    both.ours.load_lora_weights(write(tmp_path / "one.safetensors", how, changes))
    assert np.array_equal(both.ours(**call).images, before)
    both.ours.unload_lora_weights()


@pytest.mark.parametrize(
    ("noted", "says"),
    [
        ('{"peft_type": "LOKR", "r": 8, "alpha": 8}', "of the kind 'LOKR'"),
        ('{"peft_type": "LORA", "lora_alpha": "much"}', "is 'much', which is no number"),
        ("[]", "adapter_config.json"),
    ],
)
def test_settings_of_peft_that_cannot_be_used(
    pair: Callable[[str], Pair], tmp_path: Path, noted: str, says: str
) -> None:
    both, how = pair("z-image"), LAYOUTS["peft"]
    write(
        tmp_path / "adapter_model.safetensors", how, drawn("z-image", both.theirs.transformer, how)
    )
    (tmp_path / "adapter_config.json").write_text(noted)
    with pytest.raises(WeightsError, match=says):
        both.ours.load_lora_weights(tmp_path)
