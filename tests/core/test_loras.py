"""LoRAs: their arithmetic, what is refused, and that switching leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.loras import Factors, factors, write

from perfuse import DiffusionPipeline
from perfuse.arrays.metadata import of
from perfuse.cli import main
from perfuse.errors import InputError, WeightsError
from perfuse.plugins import host
from perfuse.sources.adapters.bases import looks_like
from perfuse.sources.adapters.delta import Delta
from perfuse.sources.adapters.dora import DoRA
from perfuse.sources.adapters.loha import LoHa
from perfuse.sources.adapters.lokr import LoKr
from perfuse.sources.adapters.lora import LoRA
from perfuse.sources.adapters.tags import read_tags

Make = Callable[[str], Path]
GIVEN: dict[str, Any] = {
    "prompt": "a red circle",
    "num_inference_steps": 1,
    "height": 16,
    "width": 16,
    "seed": 0,
}
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def added(delta: Delta, *shape: int) -> Any:
    """What it adds to a weight of zeros."""
    assert delta.fits(shape)
    zeros = np.zeros(shape, np.float32)
    return delta.applied(zeros, zeros, 1.0)


# ── Arithmetic ──────────────────────────────────────────────────────────────────────────────────


def test_a_convolution_between_two_is_one() -> None:
    down, mid, up = numbers(3, 6, 1, 1), numbers(3, 3, 3, 3), numbers(8, 3, 1, 1)
    weight = added(LoRA(down=down, mid=mid, up=up, scale=0.5), 8, 6, 3, 3)
    image = x = torch.from_numpy(numbers(1, 6, 5, 5))
    for kernel in (down, mid, up):
        x = torch.nn.functional.conv2d(x, torch.from_numpy(kernel), padding=kernel.shape[-1] // 2)
    once = torch.nn.functional.conv2d(image, torch.from_numpy(weight), padding=1)
    assert torch.allclose(once, 0.5 * x, atol=1e-4)


def test_products_of_matrices() -> None:
    a, b, c, d = numbers(8, 2), numbers(2, 6), numbers(8, 2), numbers(2, 6)
    assert np.allclose(added(LoHa(first=(a, b), second=(c, d)), 8, 6), (a @ b) * (c @ d))
    one, left, right = numbers(4, 2), numbers(2, 2), numbers(2, 3)
    kron = added(LoKr(first=(one,), second=(left, right), scale=2.0), 8, 6)
    assert np.allclose(kron, 2 * np.kron(one, left @ right), atol=1e-6)
    kernel = numbers(2, 3, 3, 3)
    whole = added(LoKr(first=(one,), second=(kernel,)), 8, 6, 3, 3)
    assert np.allclose(whole[2:4, 3:6], one[1, 1] * kernel)


def test_a_magnitude_by_rows_or_by_columns() -> None:
    inner, weight = LoRA(down=numbers(2, 6), up=numbers(8, 2)), numbers(8, 6)
    changed = weight + inner.up @ inner.down * 0.5
    rows, columns = np.abs(numbers(8, 1)), np.abs(numbers(1, 6))
    for magnitude, axis in ((rows, 1), (columns, 0)):
        found = DoRA(inner=inner, magnitude=magnitude).applied(weight, weight, 0.5)
        assert np.allclose(np.linalg.norm(found, axis=axis), magnitude.ravel(), atol=1e-5)
        assert np.allclose(
            found, changed * magnitude / np.linalg.norm(changed, axis=axis, keepdims=True)
        )


# ── In a pipeline ───────────────────────────────────────────────────────────────────────────────


def opened(checkpoint: Make) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")


def made(checkpoint: Make, **settings: Any) -> Factors:
    pipe = opened(checkpoint)
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return factors(SimpleNamespace(**parts), **settings)


def draw(pipe: DiffusionPipeline) -> Any:
    return np.asarray(pipe(**GIVEN, output_type="latent").images)


def test_switching_leaves_nothing_behind(checkpoint: Make, tmp_path: Path) -> None:
    pipe = opened(checkpoint)
    file = write(tmp_path / "a.safetensors", made(checkpoint), "kohya")
    before, program = draw(pipe), pipe.program("unet")
    pipe.load_lora_weights(file, adapter_name="a")
    whole = draw(pipe)
    pipe.set_adapters("a", 0.5)
    half = draw(pipe)
    assert np.abs(whole - before).max() > 1e-3 and np.abs(half - whole).max() > 1e-3
    for _ in range(3):
        pipe.disable_lora()
        assert np.array_equal(draw(pipe), before)
        pipe.enable_lora()
        assert np.array_equal(draw(pipe), half)
        pipe.set_adapters("a")
        assert np.array_equal(draw(pipe), whole)
        pipe.fuse_lora(adapter_names=["a"])  # which counts once, although it is active, too
        assert np.array_equal(draw(pipe), whole)
        pipe.unfuse_lora()
        pipe.set_adapters("a", 0.5)
    assert pipe.program("unet") is program  # it took other weights
    again = opened(checkpoint)
    again.load_lora_weights(file)
    assert np.array_equal(draw(again), whole)
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), before)


def test_pipelines_of_the_same_models_have_adapters_of_their_own(
    checkpoint: Make, tmp_path: Path
) -> None:
    pipe = opened(checkpoint)
    other = DiffusionPipeline.from_pipe(pipe)
    before = draw(pipe)
    assert np.array_equal(draw(other), before)
    pipe.load_lora_weights(write(tmp_path / "a.safetensors", made(checkpoint), "peft"))
    assert np.abs(draw(pipe) - before).max() > 1e-3
    assert np.array_equal(draw(other), before)
    assert np.array_equal(draw(DiffusionPipeline.from_pipe(pipe)), draw(pipe))


def test_the_users_own_module_has_adapters_and_stays_as_it_is(
    checkpoint: Make, tmp_path: Path
) -> None:
    pipe = opened(checkpoint)
    file = write(tmp_path / "a.safetensors", made(checkpoint), "diffusers")
    pipe.load_lora_weights(file)
    expected = draw(pipe)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    stored = pipe.unet.state_dict()[name].clone()
    assert np.array_equal(draw(pipe), expected)
    assert torch.equal(pipe.unet.state_dict()[name], stored)


def test_every_entry_of_a_denoiser_has_them(checkpoint: Make, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"), backend="torch:cpu")
    found = factors(SimpleNamespace(unet=pipe.unet))
    pipe.load_lora_weights(write(tmp_path / "a.safetensors", found, "kohya"))
    given = {**GIVEN, "output_type": "latent", "guider": "pag"}
    whole = pipe(**given).images.numpy()
    (entry,) = (one for one in pipe.spec.components.values() if one.entry_of == "unet")
    assert pipe.component(entry.name).changes == pipe.component("unet").changes
    pipe.disable_lora()
    assert np.abs(pipe(**given).images.numpy() - whole).max() > 1e-3


def test_where_a_file_is_and_what_it_may_hold(checkpoint: Make, tmp_path: Path) -> None:
    found = made(checkpoint, parts=["unet"])
    tensors = {
        f"diffusion_model.{layer}.lora_{factor}.weight": one[factor]
        for (_, layer), one in found.items()
        for factor in ("up", "down")
    }
    pipe = opened(checkpoint)
    pipe.load_lora_weights(tensors)
    expected = draw(pipe)
    save_file(tensors, tmp_path / "one.safetensors")
    (tmp_path / "inner").mkdir()
    save_file(tensors, tmp_path / "inner" / "pytorch_lora_weights.safetensors")
    save_file({"a": numbers(1)}, tmp_path / "inner" / "other.safetensors")
    in_torch = {name: torch.from_numpy(one).bfloat16() for name, one in tensors.items()}
    for given, where in (
        (tmp_path / "one.safetensors", {}),
        (tmp_path, {}),
        (tmp_path, {"weight_name": "one.safetensors"}),
        (tmp_path, {"subfolder": "inner"}),
    ):
        other = opened(checkpoint)
        other.load_lora_weights(given, **where)
        assert np.array_equal(draw(other), expected)
    pipe.load_lora_weights(in_torch, adapter_name="default_0", hotswap=True)
    rounded = draw(pipe)
    assert 0 < np.abs(rounded - expected).max() < 0.1
    from safetensors.torch import save_file as save_torch

    save_torch(in_torch, tmp_path / "inner" / "half.safetensors")
    pipe.load_lora_weights(tmp_path / "inner", weight_name="half.safetensors")
    assert np.array_equal(draw(pipe), rounded)


# ── What is refused ─────────────────────────────────────────────────────────────────────────────

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"


def pair(rank: int = 2) -> dict[str, Any]:
    return {DOWN: numbers(rank, 16), UP: numbers(16, rank)}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "holds no tensors"),
    "no home": ({**pair(), "unet.other.lora_A.weight": numbers(2, 2)}, r"1 of 3 .* unet\.other"),
    "no kind": ({**pair(), f"{LAYER}.oft_blocks": numbers(2, 2)}, r"1 of 3 .*oft_blocks"),
    "another base": (
        {
            f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_{one}.weight": array
            for one, array in (("down", numbers(2, 2048)), ("up", numbers(640, 2)))
        },
        "looks to be made for Stable Diffusion XL",
    ),
    "another width": (
        {**pair(), DOWN: numbers(2, 20)},
        "16 by 20, rank 2, for unet.* which is 16 by 16",
    ),
    "ranks": ({DOWN: numbers(2, 16), UP: numbers(16, 3)}, "16 by 16, rank 2, for unet"),
    "a vector": ({**pair(), DOWN: numbers(16)}, "which is no factor of a weight"),
    "cores": (
        {f"{LAYER}.hada_w{i}_{side}": numbers(2, 16) for i in (1, 2) for side in "ab"},
        "2 by 16, rank 2, for unet",
    ),
    "half": ({DOWN: numbers(2, 16)}, "has no up for unet"),
    "twice": ({**pair(), f"{LAYER}.lora.up.weight": numbers(16, 2)}, "has the up of .* twice"),
    "rank 0": (pair(0), "of rank 0"),
    "large rank": (pair(40), "rank 40 .* 16 by 16: the rank is larger than the layer"),
    "NaN": ({**pair(), UP: numbers(16, 2) * np.nan}, "holds NaN or infinity"),
    "alpha": ({**pair(), f"{LAYER}.alpha": numbers(2)}, "it is one number"),
    "text": ({"a": "b"}, "was given as str"),
}


def test_files_that_are_refused(checkpoint: Make, tmp_path: Path) -> None:
    pipe = opened(checkpoint)
    for name, (tensors, said) in REFUSED.items():
        with pytest.raises((WeightsError, InputError), match=said):
            pipe.load_lora_weights(tensors)
        assert pipe.get_list_adapters() == {}, name
    (tmp_path / "a.bin").write_bytes(b"never read")
    (tmp_path / "b.safetensors").write_bytes(b"PK\x03\x04 and so on, as torch.save writes it")
    (tmp_path / "c.safetensors").write_bytes(b"")
    for file, said in (
        ("a.bin", "reading such a file can run code"),
        ("b.safetensors", "it is a pickle under another name"),
        ("c.safetensors", "at least 8 bytes were expected"),
        ("d.safetensors", "which is no file"),
        (".", r"holds b.safetensors, c.safetensors. Name its file: weight_name="),
    ):
        with pytest.raises(WeightsError, match=said):
            pipe.load_lora_weights(tmp_path / file)
    settings = json.dumps({"unet.lora_alpha": "all"})
    save_file(pair(), tmp_path / "e.safetensors", metadata={"lora_adapter_metadata": settings})
    with pytest.raises(WeightsError, match="which is no number"):
        pipe.load_lora_weights(tmp_path / "e.safetensors")


def test_names_and_weights_that_are_refused(checkpoint: Make) -> None:
    pipe = opened(checkpoint)
    pipe.load_lora_weights(pair(), adapter_name="a")
    before = pipe.loras
    nan = float("nan")
    for call, said in (
        (lambda: pipe.load_lora_weights(pair(), adapter_name="a"), "one of this name is loaded"),
        (lambda: pipe.load_lora_weights(pair(), "b", hotswap=True), "none of this name to replace"),
        (lambda: pipe.load_lora_weights(pair(), scale=1), "was given scale"),
        (lambda: pipe.load_lora_weights(pair(), use_safetensors=False), "safetensors alone"),
        (lambda: pipe.load_lora_weights(3), "was given as a int"),
        (lambda: pipe.set_adapters("b"), "'b' were named; loaded are 'a'"),
        (lambda: pipe.set_adapters(["a", "a"]), "named twice"),
        (lambda: pipe.set_adapters("a", nan), "is nan; a finite number"),
        (lambda: pipe.set_adapters("a", "1"), "is '1'; a finite number"),
        (lambda: pipe.set_adapters("a", [1, 2]), "1 adapters and 2 weights"),
        (lambda: pipe.set_adapters("a", {"down": 1}), "adapters change unet, text_encoder"),
        (lambda: pipe.set_adapters("a", {"unet": {"mid": 1}}), "the denoiser has down block_0"),
        (lambda: pipe.set_adapters("a", {"unet": {"down": {"block_0": [1, 2, 3]}}}), "3 numbers"),
        (lambda: pipe.delete_adapters("b"), "loaded are 'a'"),
        (lambda: pipe.fuse_lora(["vae"]), "components=vae was given"),
        (lambda: pipe.fuse_lora(lora_scale=nan), "lora_scale is nan"),
        (lambda: pipe(**GIVEN, cross_attention_kwargs={"scale": nan}), "adapters is nan"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    assert pipe.loras == before


def test_bases_by_names_and_widths() -> None:
    def read(name: str, width: int) -> str | None:
        return looks_like({f"{name}.lora_down.weight": (4, width)})

    assert read("lora_unet_down_blocks_0_attentions_0_attn2_to_k", 768) == "Stable Diffusion 1"
    assert read("unet.down_blocks.0.attn2.to_v", 1024) == "Stable Diffusion 2"
    assert read("lora_unet_double_blocks_0_img_attn_qkv", 3072) == "FLUX"
    assert read("lora_te_text_model_encoder_layers_0_mlp_fc1", 768) is None


# ── On the command line ─────────────────────────────────────────────────────────────────────────


def test_tags_in_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "pixels.safetensors").touch()
    file = tmp_path / "pixels.safetensors"
    assert read_tags("a cat <lora:pixels:0.8>, red", tmp_path) == ("a cat, red", ((file, 0.8),))
    assert read_tags("<lora:pixels> a cat", tmp_path) == ("a cat", ((file, 1.0),))
    for prompt, said in (
        ("<lora:../pixels>", "holds pixels"),
        ("<lora:none:1>", "names the LoRA 'none'"),
        ("<lora:pixels:much>", "'much' is no number"),
    ):
        with pytest.raises(InputError, match=said):
            read_tags(prompt, tmp_path)


def test_pictures_are_drawn_again_with_their_loras(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.safetensors", made(checkpoint), "kohya")

    def perfuse(*arguments: object) -> Any:
        result = CliRunner().invoke(main, ["generate", *map(str, arguments), "--quiet"])
        assert result.exit_code == 0, result.stderr
        return result

    model = ("--model", checkpoint("words"), "--backend", "torch:cpu", "--steps", 1, "--seed", 0)
    perfuse("a red circle", *model, "--lora", "a.safetensors:0.5", "--output", "one.png")
    perfuse("a red circle <lora:a:0.5>", *model, "--lora-folder", ".", "--output", "two.png")
    perfuse("--from", "one.png", "--output", "three.png")
    perfuse("a red circle", *model, "--output", "plain.png")
    pictures = {name: (tmp_path / f"{name}.png") for name in ("one", "two", "three", "plain")}
    from PIL import Image

    pixels = {name: np.asarray(Image.open(file)) for name, file in pictures.items()}
    assert np.array_equal(pixels["one"], pixels["two"])
    assert np.array_equal(pixels["one"], pixels["three"])
    assert not np.array_equal(pixels["one"], pixels["plain"])
    (noted,) = of(Image.open(pictures["one"])).loras
    assert noted["file"] == "a.safetensors" and noted["weight"] == 0.5
    write(tmp_path / "a.safetensors", made(checkpoint, seed=1), "kohya")
    warned = perfuse("--from", "one.png", "--output", "four.png").stderr
    assert "a.safetensors is not the LoRA that the picture was drawn with" in warned


def test_merging(checkpoint: Make, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", made(checkpoint), "kohya")
    given = ["merge", "--model", checkpoint("words"), "--output", tmp_path / "merged", "--quiet"]

    def perfuse(*more: object) -> Any:
        return CliRunner().invoke(main, [str(one) for one in (*given, *more)])

    assert "Nothing was given to merge" in perfuse().stderr
    assert "no number" in perfuse("--lora", f"{file}:much").stderr
    assert not (tmp_path / "merged").exists()
    assert perfuse("--lora", f"{file}:0.5").exit_code == 0
    assert "holds other files" in perfuse("--lora", file).stderr
    pipe = opened(checkpoint)
    pipe.load_lora_weights(file, adapter_name="a")
    pipe.set_adapters("a", 0.5)
    merged = DiffusionPipeline.from_pretrained(tmp_path / "merged", backend="torch:cpu")
    assert np.array_equal(draw(merged), draw(pipe))


UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def fine_tuned(folder: Path, of: Path, seed: int) -> Path:
    """A copy of a checkpoint whose denoiser and text encoder have other weights."""
    shutil.copytree(of, folder)
    random = np.random.default_rng(seed)
    for file in (UNET, TEXT):
        tensors = load_file(folder / file)
        moved = {
            name: one + 0.02 * random.standard_normal(one.shape).astype(one.dtype)
            for name, one in tensors.items()
            if one.dtype.kind == "f"
        }
        save_file({**tensors, **moved}, folder / file, metadata={"format": "pt"})
    return folder


def test_merging_fine_tunes(checkpoint: Make, tmp_path: Path) -> None:
    a = checkpoint("words")
    b, c = (fine_tuned(tmp_path / name, a, seed) for seed, name in enumerate("bc"))

    def merged(name: str, *more: object) -> Path:
        given = ("merge", "--model", a, "--output", tmp_path / name, "--quiet", *more)
        done = CliRunner().invoke(main, [str(one) for one in given])
        assert done.exit_code == 0, done.stderr
        return tmp_path / name

    def check(folder: Path, expected: Callable[[Any, Any, Any], Any]) -> None:
        for file in (UNET, TEXT):
            found, *given = (load_file(one / file) for one in (folder, a, b, c))
            for name, array in found.items():
                if array.dtype.kind == "f":
                    right = expected(*(one[name].astype(np.float64) for one in given))
                    assert np.abs(array - right).max() < 1e-6, name

    check(merged("whole", "--with", f"{b}:1"), lambda a, b, c: b)
    several = ("--with", f"{b}:0.3", "--with", f"{c}:0.2")
    check(merged("several", *several), lambda a, b, c: 0.5 * a + 0.3 * b + 0.2 * c)
    learned = merged("learned", "--with", f"{b}:0.5", "--minus", c)
    check(learned, lambda a, b, c: a + 0.5 * (b - c))
    as_it_is = DiffusionPipeline.from_pretrained(b, backend="torch:cpu")
    whole = DiffusionPipeline.from_pretrained(tmp_path / "whole", backend="torch:cpu")
    assert np.abs(draw(whole) - draw(as_it_is)).max() < 1e-4


def test_what_cannot_be_merged(checkpoint: Make, tmp_path: Path) -> None:
    def refused(*more: object) -> str:
        given = ("merge", "--model", checkpoint("words"), "--output", tmp_path / "no", *more)
        done = CliRunner().invoke(main, [str(one) for one in given])
        assert done.exit_code == 2 and not (tmp_path / "no").exists()
        return str(done.stderr)

    assert "without its share" in refused("--with", checkpoint("sd1"))
    assert "is no number" in refused("--with", f"{checkpoint('sd1')}:much")
    assert "without --with" in refused("--minus", checkpoint("sd1"))
    assert "Fine-tunes of one model" in refused("--with", f"{checkpoint('sd1')}:0.5")
    assert "it has no text_encoder" in refused("--with", f"{checkpoint('tiny')}:0.5")


def check_folder(
    pipe: DiffusionPipeline, folder: Path, file: Path, backend: str | None = None
) -> None:
    """An exported folder takes a LoRA as its checkpoint does, and stays as it is."""
    of_folder = DiffusionPipeline.from_pretrained(folder, backend=backend)
    before = draw(of_folder)
    for one in (pipe, of_folder):
        one.load_lora_weights(file, adapter_name="a")
    for weight in (1.0, 0.3):
        for one in (pipe, of_folder):
            one.set_adapters("a", weight)
        now = draw(of_folder)
        assert np.abs(now - draw(pipe)).max() < 1e-3
        assert np.abs(now - before).max() > 1e-3
    of_folder.unload_lora_weights()
    assert np.array_equal(draw(of_folder), before)
    DiffusionPipeline.from_pretrained(folder, backend=backend).source.verify()


@pytest.mark.export
def test_in_an_exported_folder(checkpoint: Make, exported: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = write(tmp_path / "a.safetensors", made(checkpoint), "kohya")
    check_folder(opened(checkpoint), exported("words", "onnx"), file)


@pytest.mark.export
@pytest.mark.parametrize(
    ("backend", "format"),
    [
        ("neuron-interpreter", "stablehlo"),
        pytest.param("coreml-interpreter", "coreml", marks=pytest.mark.exhaustive),
    ],
)
def test_in_a_folder_of_one_size(
    checkpoint: Make, exported: Any, tmp_path: Path, backend: str, format: str
) -> None:
    for one in host().backends()[backend].requires:
        pytest.importorskip(one)
    file = write(tmp_path / "a.safetensors", made(checkpoint), "kohya")
    check_folder(opened(checkpoint), exported("words", format), file, backend)


@pytest.mark.export
@pytest.mark.exhaustive
def test_in_a_folder_for_openvino(checkpoint: Make, exported: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    file = write(tmp_path / "a.safetensors", made(checkpoint), "kohya")
    check_folder(opened(checkpoint), exported("words", "openvino"), file)
    older = shutil.copytree(exported("words", "openvino"), tmp_path / "older")
    for path in older.rglob("weights.json"):
        path.unlink()
    manifest = json.loads((older / "perfuse.json").read_text("utf-8"))
    files = {n: one for n, one in manifest["files"].items() if not n.endswith("weights.json")}
    (older / "perfuse.json").write_text(json.dumps({**manifest, "files": files}))
    without_names = DiffusionPipeline.from_pretrained(older)
    with pytest.raises(InputError, match="takes the weights of its unet as they are"):
        without_names.load_lora_weights(file)
