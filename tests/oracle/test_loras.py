"""LoRAs beside Diffusers with PEFT: every layout, several at once, fused, switched to and fro."""

import itertools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from tests.loras import ATTENTION, EVERYTHING, Factors, factors, write
from tests.oracle.pairs import LATENTS, Pair, make_gentle

from perfuse import DiffusionPipeline

GIVEN: dict[str, Any] = {
    "prompt": "a red circle",
    "height": 32,
    "width": 32,
    "guidance_scale": 3.0,
    "num_inference_steps": 2,
}
CLASSES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
exhaustive = pytest.mark.exhaustive


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Transformers and PEFT warn of what they do themselves."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="session")
def gentle(checkpoint: Callable[[str], Path], made_once: Callable[..., Path]) -> Any:
    def make(kind: str) -> Path:
        def write_gentle(folder: Path) -> None:
            make_gentle(Path(shutil.copytree(checkpoint(kind), folder)))

        return made_once("gentle", kind, write_gentle)

    return make


def opened(folder: Path, kind: str) -> Pair:
    return Pair.open(folder, CLASSES[kind])


def both(pair: Pair, name: str, *given: Any, **named: Any) -> None:
    """Call a method of both pipelines."""
    for pipe in (pair.theirs, pair.ours):
        getattr(pipe, name)(*given, **named)


@pytest.mark.parametrize(
    ("kind", "layout", "pattern"),
    [
        ("sd1", "kohya", EVERYTHING),
        ("sdxl", "kohya-xl", EVERYTHING),
        pytest.param("sd1", "peft", EVERYTHING, marks=exhaustive),
        pytest.param("sdxl", "peft", EVERYTHING, marks=exhaustive),
        pytest.param("sd1", "diffusers", ATTENTION, marks=exhaustive),
        pytest.param("sdxl", "diffusers", ATTENTION, marks=exhaustive),
        pytest.param("sd1", "processors", ATTENTION, marks=exhaustive),
        pytest.param("sdxl", "processors", ATTENTION, marks=exhaustive),
        pytest.param("sdxl", "kohya", ATTENTION, marks=exhaustive),
    ],
    ids=lambda value: "" if value in (ATTENTION, EVERYTHING) else value,
)
def test_every_layout_is_read_as_diffusers_reads_it(
    gentle: Any, tmp_path: Path, kind: str, layout: str, pattern: str
) -> None:
    pair = opened(gentle(kind), kind)
    before = pair.check(**GIVEN)
    size = 0.05 if pattern == EVERYTHING else 0.2
    file = write(
        tmp_path / "style.safetensors", factors(pair.theirs, pattern=pattern, size=size), layout
    )
    both(pair, "load_lora_weights", file, adapter_name="style")
    assert np.abs(pair.check(**GIVEN) - before).max() > 0.01
    pair.check_pictures(**GIVEN)
    both(pair, "unload_lora_weights")
    assert np.array_equal(pair.check(**GIVEN), before)


#: The layers that adapters are made for.
TARGETS = {"unet": ["to_q", "to_v", "conv1", "proj_in"], "text_encoder": ["q_proj", "fc1"]}


def trained(pipe: Any, config: Any, folder: Path, parts: Any) -> Path:
    """A file that Diffusers and PEFT write, of random adapters in a pipeline; they are left out again."""
    layers: dict[str, Any] = {}
    for part, targets in TARGETS.items():
        if part not in parts:
            continue
        module = getattr(pipe, part)
        torch.manual_seed(len(layers))
        module.add_adapter(config(targets), adapter_name="made")
        found = peft.get_peft_model_state_dict(module, adapter_name="made")
        layers[f"{part}_lora_layers"] = found
        layers[f"{part}_lora_adapter_metadata"] = module.peft_config["made"].to_dict()
    pipe.save_lora_weights(folder, **layers)
    pipe.unload_lora_weights()
    return folder


def one_config(**settings: Any) -> Any:
    return lambda targets: peft.LoraConfig(
        init_lora_weights="gaussian", target_modules=targets, **settings
    )


def perturbed(folder: Path) -> None:
    """Give the factors that training starts with zeros some numbers."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = folder / "pytorch_lora_weights.safetensors"
    generator = torch.Generator().manual_seed(0)
    with safe_open(file, "pt") as opened:
        noted = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        tensors[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, file, metadata=noted)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_q": 8}, "rank_pattern": {"conv1": 2}},
        pytest.param({"r": 4, "lora_alpha": 8, "use_rslora": True}, marks=exhaustive),
        pytest.param({"r": 2, "lora_alpha": 3, "use_dora": True}, marks=exhaustive),
    ],
    ids=["patterns", "rslora", "dora"],
)
def test_files_that_diffusers_writes(gentle: Any, tmp_path: Path, settings: Any) -> None:
    pair = opened(gentle("sd1"), "sd1")
    # Transformers reads no magnitudes, so that Diffusers' text encoder has those of its own weights.
    parts = ["unet"] if settings.get("use_dora") else list(TARGETS)
    folder = trained(pair.theirs, one_config(**settings), tmp_path, parts)
    perturbed(folder)
    before = pair.ours(**GIVEN, seed=0, output_type="latent").images.numpy()
    both(pair, "load_lora_weights", folder)
    assert np.abs(pair.check(**GIVEN) - before).max() > 0.01
    both(pair, "set_adapters", "default_0", 0.6)
    pair.check(**GIVEN)


LYCORIS = {
    "loha": lambda targets: peft.LoHaConfig(
        r=2, alpha=3, init_weights=False, use_effective_conv2d=True, target_modules=targets
    ),
    "lokr": lambda targets: peft.LoKrConfig(
        r=2, alpha=3, init_weights=False, use_effective_conv2d=True, target_modules=targets
    ),
    "lokr-both": lambda targets: peft.LoKrConfig(
        r=2,
        alpha=3,
        init_weights=False,
        decompose_both=True,
        decompose_factor=8,
        target_modules=targets,
    ),
}


@exhaustive
@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris_files(gentle: Any, tmp_path: Path, kind: str) -> None:
    """PEFT's own LoHa and LoKr in Diffusers' UNet; for us, written as LyCORIS names them."""
    pair = opened(gentle("sd1"), "sd1")
    before = pair.check(**GIVEN)
    torch.manual_seed(0)
    config = LYCORIS[kind](["to_q", "to_v", "ff.net.2", "conv1", "conv_shortcut"])
    peft.inject_adapter_in_model(config, pair.theirs.unet, "made")
    tensors = {
        name: tensor.detach().mul_(2)
        for name, tensor in pair.theirs.unet.named_parameters()
        if ".made" in name
    }
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        layer, _, factor = name.removesuffix(".made").rpartition(".")
        place = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{place}.{factor}"] = tensor.clone()
        found[f"{place}.alpha"] = torch.tensor(3.0)
    whole = {n.rpartition(".")[0] for n in found if n.endswith(("lokr_w1", "lokr_w2"))}
    for place in whole:  # PEFT scales what is whole, too, and LyCORIS does not
        if {f"{place}.lokr_w1", f"{place}.lokr_w2"} <= found.keys():
            found[f"{place}.lokr_w1"] *= 3 / 2
    pair.ours.load_lora_weights(found, adapter_name="made")
    assert np.abs(pair.check(**GIVEN) - before).max() > 0.01
    pair.check_pictures(**GIVEN)


def test_several_with_weights_fused_and_switched(gentle: Any, tmp_path: Path) -> None:
    pair = opened(gentle("sd1"), "sd1")
    files = {
        name: write(tmp_path / f"{name}.safetensors", factors(pair.theirs, seed=seed), "peft")
        for seed, name in enumerate(("style", "thing"))
    }
    before = pair.check(**GIVEN)
    for name, file in files.items():
        both(pair, "load_lora_weights", file, adapter_name=name)
    assert pair.ours.get_active_adapters() == pair.theirs.get_active_adapters() == ["thing"]
    assert pair.ours.get_list_adapters() == pair.theirs.get_list_adapters()
    drawn = [before, pair.check(**GIVEN)]
    blocks = {"unet": {"down": 0.4, "mid": 0, "up": {"block_1": [0.3, -1.0]}}}
    for change, given in (
        ("set_adapters", (["style", "thing"], [0.7, -0.4])),
        ("set_adapters", (["style", "thing"], [blocks, {"unet": 0.2, "text_encoder": 3.0}])),
        ("set_adapters", ("style", 0.5)),
        ("disable_lora", ()),
        ("enable_lora", ()),
        ("fuse_lora", (["unet", "text_encoder"], 0.7)),
        ("unfuse_lora", (["unet", "text_encoder"],)),
        ("set_adapters", (["thing", "style"],)),
        ("delete_adapters", ("thing",)),
        ("unload_lora_weights", ()),
    ):
        both(pair, change, *given)
        drawn.append(pair.check(**GIVEN))
    different = [np.abs(a - b).max() > 1e-3 for a, b in itertools.pairwise(drawn)]
    # What was fused is in effect as it was; the factor stays with the adapter.
    assert different == [True] * 6 + [True, False, True, True, True]
    assert np.array_equal(drawn[-1], before)


def test_what_is_fused_stays(gentle: Any, tmp_path: Path) -> None:
    pair = opened(gentle("sd1"), "sd1")
    before = pair.check(**GIVEN)
    file = write(tmp_path / "style.safetensors", factors(pair.theirs), "peft")
    both(pair, "load_lora_weights", file, adapter_name="style")
    both(pair, "fuse_lora", ["unet", "text_encoder"], 0.8)
    assert pair.ours.fused_loras == pair.theirs.fused_loras == {"style"}
    both(pair, "unload_lora_weights")
    fused = pair.check(**GIVEN)
    assert np.abs(fused - before).max() > 1e-3
    pair.ours.save_pretrained(tmp_path / "merged")
    merged = DiffusionPipeline.from_pretrained(tmp_path / "merged", backend="torch:cpu")
    again = merged(**GIVEN, seed=0, output_type="latent").images.numpy()
    assert np.abs(again - fused).max() <= LATENTS


def test_the_scale_of_a_call(gentle: Any, tmp_path: Path) -> None:
    pair = opened(gentle("sd1"), "sd1")
    file = write(tmp_path / "style.safetensors", factors(pair.theirs), "peft")
    both(pair, "load_lora_weights", file, adapter_name="style")
    whole = pair.check(**GIVEN)
    half = pair.check(**GIVEN, cross_attention_kwargs={"scale": 0.5})
    assert np.abs(whole - half).max() > 1e-3
    assert np.array_equal(pair.check(**GIVEN), whole)
    ours, theirs = (
        pipe.encode_prompt("a red circle", "cpu", 1, False, lora_scale=0.3)[0].numpy()
        for pipe in (pair.ours, pair.theirs)
    )
    assert np.abs(ours - theirs).max() <= LATENTS


def _decomposed(found: Factors, pipe: Any) -> Factors:
    """DoRA: with magnitudes that differ from the weights' norms."""
    for (part, layer), one in found.items():
        weight = getattr(pipe, part).get_submodule(layer).weight.detach().numpy()
        norm = np.sqrt((weight**2).reshape(len(weight), -1).sum(1))
        one["dora_scale"] = (norm * 1.2).astype(np.float32).reshape(-1, *(1,) * (weight.ndim - 1))
    return found


@exhaustive
def test_dora_of_kohya(gentle: Any, tmp_path: Path) -> None:
    """Diffusers leaves kohya's ``dora_scale`` out, so that it reads the same in PEFT's layout."""
    pair = opened(gentle("sd1"), "sd1")
    found = _decomposed(factors(pair.theirs, pattern=EVERYTHING, parts=["unet"]), pair.theirs)
    pair.ours.load_lora_weights(write(tmp_path / "kohya.safetensors", found, "kohya"))
    tensors = {}
    for (part, layer), one in found.items():
        start, scale = f"{part}.{layer}", float(one["alpha"]) / len(one["down"])
        magnitude = one["dora_scale"]
        if magnitude.ndim == 4:
            magnitude = magnitude.transpose(1, 0, 2, 3)
        tensors |= {
            f"{start}.lora_A.weight": torch.from_numpy(one["down"] * scale),
            f"{start}.lora_B.weight": torch.from_numpy(one["up"]),
            f"{start}.lora_magnitude_vector": torch.from_numpy(
                magnitude if magnitude.ndim == 4 else magnitude.reshape(-1)
            ),
        }
    pair.theirs.load_lora_weights(tensors, adapter_name="a")
    whole = pair.check(**GIVEN)
    pair.ours.set_adapters("default_0", 0.3)
    pair.theirs.set_adapters("a", 0.3)
    assert np.abs(pair.check(**GIVEN) - whole).max() > 1e-3


@exhaustive
@pytest.mark.export
@pytest.mark.parametrize("backend", ["onnxruntime:cpu", "openvino:CPU"])
def test_on_an_engine(gentle: Any, tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend.partition(":")[0])
    pair = opened(gentle("sd1"), "sd1")
    file = write(tmp_path / "style.safetensors", factors(pair.theirs), "kohya")
    pair.ours.to(backend)
    for weight in (None, 1.0, 0.4):
        if weight == 1.0:
            both(pair, "load_lora_weights", file, adapter_name="style")
        elif weight is not None:
            both(pair, "set_adapters", "style", weight)
        ours, theirs = (
            np.stack([np.asarray(one) for one in images]).astype(np.int16)
            for images in pair.run("pil", **GIVEN)
        )
        assert np.abs(ours - theirs).max() <= 2
