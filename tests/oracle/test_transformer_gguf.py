"""GGUF files of transformers as llama.cpp's tools leave them: read as Diffusers reads them, and drawn with."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from tests.oracle.test_qwen_image_21 import processor
from tests.oracle.test_transformer_files import stored_as

import perfuse.models
from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.sources.single_file import SingleFile

exhaustive = pytest.mark.exhaustive
Make = Callable[[str], Path]
State = dict[str, Any]

#: Checkpoint to the class of its transformer, and what a file of it is recognised as.
FAMILIES: Mapping[str, tuple[str, str]] = {
    "flux": ("FluxTransformer2DModel", "FLUX.1 dev"),
    "chroma": ("ChromaTransformer2DModel", "Chroma"),
    "sd3": ("SD3Transformer2DModel", "Stable Diffusion 3.5 medium"),
    "klein": ("Flux2Transformer2DModel", "FLUX.2 klein 4B"),
    "z-image": ("ZImageTransformer2DModel", "Z-Image-Turbo"),
    "qwen-image": ("QwenImageTransformer2DModel", "Qwen-Image"),
    "qwen-image-21": ("QwenImage21Transformer2DModel", "Qwen-Image 2.1"),
    "lumina2": ("Lumina2Transformer2DModel", "Lumina 2"),
    "aura-flow": ("AuraFlowTransformer2DModel", "AuraFlow 0.3"),
}
#: Diffusers' converters of these know one width alone.
ONE_WIDTH = ("flux", "chroma", "lumina2")
#: Of the small autoencoders, where Diffusers takes that of the published one, whatever it is.
SCALES = {"qwen-image-21": 4, "lumina2": 2}
#: One after the other, as the mixtures Q4_K_M and others change from tensor to tensor.
KINDS = ("Q8_0", "Q5_1", "Q4_0", "BF16", "Q5_0", "F16", "Q8_0", "Q4_1")
#: A tensor of no more numbers stays in float32.
SMALL = 256
CALL = {
    "prompt": "a red circle",
    "height": 16,
    "width": 32,
    "num_inference_steps": 2,
    "output_type": "np",
}


def call_of(kind: str) -> dict[str, Any]:
    return CALL if kind == "qwen-image-21" else {**CALL, "max_sequence_length": 24}


def state_of(folder: Path) -> State:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def write(path: Path, stored: Mapping[str, Any], *, whole: bool = False) -> State:
    """A GGUF file; return the tensors that are expected to be read.

    As llama.cpp's ``quantize`` writes it: vectors and small tensors in float32, the others of several
    kinds, and without first axes of one, unless the file is to be ``whole``.
    """
    writer, expected, count = gguf.GGUFWriter(path, "of-no-matter"), State(), 0
    for name, tensor in stored.items():
        values = tensor.contiguous().float().numpy()
        kept = values if whole or values.ndim < 2 or len(values) > 1 else values[0]
        if kept.ndim < 2 or kept.size <= SMALL:
            writer.add_tensor(name, kept)
            expected[name] = torch.from_numpy(values)
            continue
        code = gguf.GGMLQuantizationType[KINDS[count % len(KINDS)]]
        if kept.ndim > 2 or kept.shape[-1] % 32:
            code = gguf.GGMLQuantizationType.F16
        count += 1
        packed = quantize(kept, code)
        writer.add_tensor(name, packed, raw_dtype=code)
        expected[name] = torch.from_numpy(dequantize(packed, code)).reshape(values.shape)
    assert count > len(KINDS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture
def file(
    request: pytest.FixtureRequest, checkpoint: Make, tmp_path: Path
) -> tuple[str, Path, Path, State]:
    """A kind, its folder, its transformer as a GGUF file, and the tensors of that."""
    kind: str = request.param
    folder = checkpoint(kind)
    stored = stored_as(FAMILIES[kind][0], state_of(folder))
    path = tmp_path / "model-Q4_K_M.gguf"
    return kind, folder, path, write(path, stored)


@pytest.mark.parametrize("file", FAMILIES, indirect=True)
def test_recognised_and_read(file: tuple[str, Path, Path, State], tmp_path: Path) -> None:
    kind, folder, path, expected = file
    class_name, layout = FAMILIES[kind]
    assert SingleFile.open(path, config=folder).layout == layout
    save_file({name: one.clone() for name, one in expected.items()}, tmp_path / "plain.safetensors")
    ours = getattr(perfuse.models, class_name)
    place: dict[str, Any] = {"config": folder, "subfolder": "transformer"}
    plain = ours.from_single_file(tmp_path / "plain.safetensors", **place).state_dict()
    read = ours.from_single_file(path, **place).state_dict()
    assert read.keys() == plain.keys() == state_of(folder).keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in plain.items())


def theirs(kind: str, folder: Path, path: Path) -> Any:
    """Diffusers' pipeline with the transformer of a file, which is the one of the folder's names."""
    class_name, _ = FAMILIES[kind]
    model = getattr(diffusers, class_name)
    if kind in ONE_WIDTH:
        rebuilt = getattr(perfuse.models, class_name).from_single_file(
            path, config=folder, subfolder="transformer"
        )
        transformer = model.from_pretrained(folder, subfolder="transformer")
        transformer.load_state_dict(rebuilt.state_dict())
    else:
        transformer = model.from_single_file(
            str(path),
            config=str(folder),
            subfolder="transformer",
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
            torch_dtype=torch.float32,
        )
    given: dict[str, Any] = {"transformer": transformer}
    if kind == "qwen-image-21":
        given["processor"] = processor(folder / "processor")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **given)
    pipe.vae_scale_factor = SCALES.get(kind, pipe.vae_scale_factor)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "file",
    [kind if kind == "sd3" else pytest.param(kind, marks=exhaustive) for kind in FAMILIES],
    indirect=True,
)
@pytest.mark.parametrize(
    ("backend", "limit"),
    [
        ("torch:cpu", 1),
        pytest.param("onnxruntime:cpu", 2, marks=[exhaustive, pytest.mark.export]),
        pytest.param("openvino:CPU", 2, marks=[exhaustive, pytest.mark.export]),
    ],
)
def test_drawn_as_diffusers_draws(
    file: tuple[str, Path, Path, State], tmp_path: Path, backend: str, limit: int
) -> None:
    kind, folder, path, _ = file
    call = call_of(kind)
    pytest.importorskip(backend.partition(":")[0])
    whole = tmp_path / "whole.gguf"  # Diffusers gives no axes back
    write(whole, stored_as(FAMILIES[kind][0], state_of(folder)), whole=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = theirs(kind, folder, path if kind in ONE_WIDTH else whole)
        expected = drawn(**call, generator=torch.Generator().manual_seed(0)).images
    pipe = DiffusionPipeline.from_single_file(path, config=folder, backend=backend)
    found = pipe(**call, seed=0).images
    assert np.abs(found - expected).max() <= limit / 255
    plain = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")(**call, seed=0).images
    assert np.abs(plain - expected).max() > 0


@pytest.mark.parametrize("file", ["sd3"], indirect=True)
def test_as_diffusers_users_load_it(file: tuple[str, Path, Path, State]) -> None:
    _, folder, path, _ = file
    model = perfuse.models.SD3Transformer2DModel
    settings: dict[str, Any] = {"config": folder, "subfolder": "transformer"}
    asked = diffusers.GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    assert (
        model.from_single_file(path, **settings, quantization_config=asked).dtype == torch.bfloat16
    )
    transformer = model.from_single_file(
        path, **settings, quantization_config=asked, torch_dtype=torch.float32
    )
    pipes = [
        DiffusionPipeline.from_pretrained(folder, transformer=transformer, backend="torch:cpu"),
        DiffusionPipeline.from_single_file(path, config=folder, backend="torch:cpu"),
    ]
    assert np.array_equal(*(pipe(**call_of("sd3"), seed=0).images for pipe in pipes))
    with pytest.raises(InputError, match="given as a QuantoConfig; of a single file"):
        model.from_single_file(
            path, **settings, quantization_config=diffusers.QuantoConfig(weights_dtype="int8")
        )
