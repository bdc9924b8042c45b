"""Weights in the blocks of a GGUF file, kept as they are: the same numbers on every engine as when dequantised."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
gguf = pytest.importorskip("gguf")

from safetensors.numpy import save_file
from safetensors.torch import load_file
from tests import loras
from tests.core.sources.test_gguf import write as write_unet
from tests.oracle.test_text_encoder_gguf import KINDS as ENCODERS
from tests.oracle.test_text_encoder_gguf import write as write_encoder
from tests.oracle.test_transformer_files import stored_as
from tests.oracle.test_transformer_gguf import FAMILIES, state_of
from tests.oracle.test_transformer_gguf import write as write_transformer
from tests.single_files import make_folder, original_tensors

import perfuse.models
from perfuse import DiffusionPipeline
from perfuse.contract.original import View
from perfuse.contract.weights import StoredTensor
from perfuse.errors import InputError
from perfuse.sources.block_tensor import BlockTensor
from perfuse.sources.gguf_file import GgufFile

exhaustive = pytest.mark.exhaustive
Make = Callable[[str], Path]
#: Sizes of what programs are given; others are 2.
SIZES = {"latent_height": 8, "latent_width": 8, "sequence": 8, "tokens": 16, "image_tokens": 16}


@pytest.fixture
def opened(
    request: pytest.FixtureRequest, checkpoint: Make, made_once: Any, tmp_path: Path
) -> tuple[str, Callable[..., Any]]:
    """The component that a GGUF file has the weights of, and what opens its pipeline."""
    kind: str = request.param
    if kind == "t5":
        part, arch = ENCODERS["flux"]
        folder = Path(shutil.copytree(checkpoint("flux"), tmp_path / "encoder"))
        write_encoder(folder / part, arch, "Q4_1")
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        return part, lambda **given: DiffusionPipeline.from_pretrained(folder, **given)
    path = tmp_path / "model.gguf"
    if kind == "unet":
        folder = made_once("single-files", "sd1", lambda folder: make_folder(folder, "sd1"))
        write_unet(path, original_tensors(folder, "sd1"), "Q4_1")
        given: dict[str, Any] = {"tokenizer_from": folder}
    else:
        folder = checkpoint(kind)
        write_transformer(path, stored_as(FAMILIES[kind][0], state_of(folder)))
        given = {"config": folder}
    name = "unet" if kind == "unet" else "transformer"
    return name, lambda **more: DiffusionPipeline.from_single_file(path, **given, **more)


def predicted(pipe: Any, name: str) -> np.ndarray:
    """What a component makes of noise and of tokens."""
    rng, signature = np.random.default_rng(0), pipe.component(name).signature
    sizes = {dim: SIZES.get(dim, 2) for dim in signature.dims}
    inputs = {
        one.name: rng.integers(0, 8, shape)
        if one.dtype == "int64"
        else rng.standard_normal(shape).astype(np.float32)
        for one in signature.inputs
        for shape in (one.resolve(sizes),)
    }
    return np.asarray(next(iter(pipe.program(name)(**inputs).values())))


ENGINES = ("torch:cpu", "onnxruntime:cpu", "openvino:CPU")


@pytest.mark.parametrize(
    ("opened", "backend"),
    [
        ("unet", "torch:cpu"),
        *(("t5", backend) for backend in ENGINES),
        *(pytest.param("flux", backend, marks=exhaustive) for backend in ENGINES),
        *(pytest.param("unet", backend, marks=exhaustive) for backend in ENGINES[1:]),
    ],
    indirect=["opened"],
)
def test_as_dequantised(
    opened: tuple[str, Callable[..., Any]], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same predictions, and the numbers of matrices in blocks are never made on the way."""
    pytest.importorskip(backend.partition(":")[0])
    name, opening = opened
    plain = opening(backend=backend, precision="float32")
    expected = predicted(plain, name)
    made, numbers = set[str](), GgufFile.numbers

    def recorded(file: GgufFile, view: View) -> StoredTensor:
        made.add(view.stored)
        return numbers(file, view)

    monkeypatch.setattr(GgufFile, "numbers", recorded)
    kept = opening(backend=backend)
    assert (kept.component(name).storage, plain.component(name).storage) == ("gguf", "")
    found = predicted(kept, name)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    weights = kept.component(name).build.weights
    matrices = {
        view.stored
        for one, view in weights.views.items()
        if len(view.shape) == 2 and weights.shapes[one][0].startswith("q")
    }
    assert len(matrices) > 8
    assert len(matrices & made) <= (name != "unet")  # an embedding, or one that is turned about


@pytest.mark.parametrize("opened", ["unet", "flux"], indirect=True)
@pytest.mark.parametrize(
    ("backend", "half"),
    [
        pytest.param(backend, half, marks=() if backend == "torch:cpu" else exhaustive)
        for backend, half in (
            ("torch:cpu", "bfloat16"),
            ("torch:cpu", "float16"),
            ("onnxruntime:cpu", "float16"),
            ("openvino:CPU", "float16"),
            ("openvino:CPU", "bfloat16"),
        )
    ],
)
def test_computed_in_half_precision(
    opened: tuple[str, Callable[..., Any]], backend: str, half: str
) -> None:
    pytest.importorskip(backend.partition(":")[0])
    name, opening = opened
    expected = predicted(opening(backend="torch:cpu", precision="float32"), name)
    kept = opening(backend=backend, precision=f"{name}=gguf+{half}")
    component = kept.component(name)
    assert (component.storage, component.precision) == ("gguf", half)
    found = predicted(kept, name)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.03 * expected.std()
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize("opened", ["unet"], indirect=True)
@pytest.mark.parametrize(
    "backend",
    ["torch:cpu", *(pytest.param(backend, marks=exhaustive) for backend in ENGINES[1:])],
)
@pytest.mark.parametrize("layout", ["peft", "loha"])
def test_a_lora_is_beside_them(
    opened: tuple[str, Callable[..., Any]],
    made_once: Any,
    tmp_path: Path,
    backend: str,
    layout: str,
) -> None:
    """One of low rank is, and another is in the weights that it changes; all others keep their blocks."""
    pytest.importorskip(backend.partition(":")[0])
    _, opening = opened
    folder = made_once("single-files", "sd1", lambda folder: make_folder(folder, "sd1"))
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    theirs = type("Pipe", (), {"unet": unet})
    given = loras.factors(theirs, pattern=r"to_[qv]$", parts=["unet"])
    file = loras.write(tmp_path / "lora.safetensors", given, "peft")
    if layout == "loha":
        save_file(loha(given), file)
    pipes = [opening(backend=backend), opening(backend=backend, precision="float32")]
    before = predicted(pipes[0], "unet")
    for pipe in pipes:
        pipe.load_lora_weights(file, adapter_name="a")
    found, expected = (predicted(pipe, "unet") for pipe in pipes)
    assert np.abs(found - before).max() > 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    module = pipes[0].component("unet").recipe()
    blocks = sum(isinstance(one, BlockTensor) for one in module.parameters())
    assert blocks > len(given) if layout == "peft" else 0 < blocks
    pipes[0].unload_lora_weights()
    assert np.array_equal(predicted(pipes[0], "unet"), before)


def loha(given: Any) -> dict[str, np.ndarray]:
    """A LoHa of the layers of a LoRA: the product, number by number, of two products."""
    found = {}
    for (_, layer), one in given.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        for place, factor in (("1_a", one["up"]), ("1_b", one["down"])):
            found[f"{name}.hada_w{place}"] = factor
            found[f"{name}.hada_w{place.replace('1', '2')}"] = factor + np.float32(0.1)
        found[f"{name}.alpha"] = np.array(len(one["down"]), np.float32)
    return found


@exhaustive
@pytest.mark.parametrize("opened", ["unet"], indirect=True)
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_export_has_them(
    opened: tuple[str, Callable[..., Any]], tmp_path: Path, format: str
) -> None:
    _, opening = opened
    backend = "onnxruntime:cpu" if format == "onnx" else "openvino:CPU"
    pytest.importorskip(backend.partition(":")[0])
    pipe, folder = opening(backend=backend), tmp_path / "exported"
    pipe.export(folder, to=format)
    again = DiffusionPipeline.from_pretrained(folder)
    assert again.component("unet").storage == "gguf"
    assert again.approximate == ()
    assert np.array_equal(predicted(again, "unet"), predicted(pipe, "unet"))
    opening(backend=backend, precision="float32").export(tmp_path / "plain", to=format)
    sizes = [
        sum(one.stat().st_size for one in (f / "unet").iterdir())
        for f in (folder, tmp_path / "plain")
    ]
    assert sizes[0] < sizes[1]
    with pytest.raises(InputError, match="stored as gguf already"):
        DiffusionPipeline.from_pretrained(folder, precision="int8").plan  # noqa: B018


@pytest.mark.parametrize("opened", ["unet"], indirect=True)
def test_what_is_asked_for(opened: tuple[str, Callable[..., Any]], checkpoint: Make) -> None:
    _, opening = opened

    def stored(**given: Any) -> tuple[str, str]:
        one = opening(backend="torch:cpu", **given).component("unet")
        return one.storage, one.precision

    settings = diffusers.GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    assert stored() == ("gguf", "float32")
    assert stored(precision="bfloat16") == ("", "bfloat16")
    assert stored(precision="vae=bfloat16") == ("gguf", "float32")
    assert stored(precision="gguf+bfloat16") == ("gguf", "bfloat16")
    assert stored(quantization_config=settings) == ("gguf", "bfloat16")
    assert stored(quantization_config=settings, torch_dtype=torch.float16) == ("gguf", "float16")
    pipe = opening(backend="torch:cpu", precision="unet=gguf")
    assert pipe.approximate == ()
    pipe.keep_within("low")  # in pieces, whose numbers are read when their turn comes
    pipe = opening(backend="torch:cpu")
    whole = predicted(pipe, "unet")
    pipe.keep_within("low")
    assert pipe.component("unet").storage == ""
    np.testing.assert_allclose(predicted(pipe, "unet"), whole, atol=1e-5 * np.abs(whole).max())
    pipe.keep_within(None)
    assert pipe.component("unet").storage == "gguf"
    for precision in ("gguf", "unet=gguf"):
        with pytest.raises(InputError, match="in no GGUF file in few bits. Choose a scheme"):
            DiffusionPipeline.from_pretrained(checkpoint("tiny"), precision=precision).plan  # noqa: B018


def test_a_model_with_blocks(checkpoint: Make, tmp_path: Path) -> None:
    """Opened as Diffusers' users open it, changed as torch's modules are, saved as numbers."""
    folder, path = checkpoint("sd3"), tmp_path / "model.gguf"
    write_transformer(path, stored_as(FAMILIES["sd3"][0], state_of(folder)))
    place: dict[str, Any] = {"config": folder, "subfolder": "transformer"}
    settings = diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32)
    kind = perfuse.models.SD3Transformer2DModel
    model, plain = (
        kind.from_single_file(path, **place, **more)
        for more in ({"quantization_config": settings}, {})
    )
    names = [name for name, one in model.named_parameters() if isinstance(one, BlockTensor)]
    assert len(names) > 4
    assert model.get_memory_footprint() < plain.get_memory_footprint()
    state = plain.state_dict()
    for name, one in model.state_dict().items():
        torch.testing.assert_close(one + 0, state[name], rtol=0, atol=1e-6)
    half = copy.deepcopy(model).to(torch.bfloat16)
    weight = half.get_parameter(names[0])
    assert isinstance(weight, BlockTensor)
    assert torch.equal(weight + 0, state[names[0]].to(torch.bfloat16))
    with torch.no_grad(), pytest.raises(InputError, match="in the blocks of a GGUF file. Open"):
        weight.mul_(2)
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "diffusion_pytorch_model.safetensors")
    assert all(torch.allclose(one, state[name], atol=1e-6) for name, one in saved.items())
    pipes = [
        DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", transformer=one)
        for one in (model, plain)
    ]
    assert pipes[0].component("transformer").storage == "gguf"
    found, expected = (predicted(pipe, "transformer") for pipe in pipes)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
