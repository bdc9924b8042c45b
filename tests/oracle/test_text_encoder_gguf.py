"""Text encoders as GGUF files in a checkpoint's folder, with the names that the package gguf has for them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")

from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

from perfuse import DiffusionPipeline
from perfuse.errors import WeightsError

exhaustive = pytest.mark.exhaustive
Make = Callable[[str], Path]

CALL: dict[str, Any] = {
    "prompt": "a red circle",
    "height": 32,
    "width": 32,
    "num_inference_steps": 1,
    "seed": 0,
    "output_type": "np",
}
#: Checkpoint to its text encoder's folder, and llama.cpp's name of the architecture.
KINDS = {
    "flux": ("text_encoder_2", gguf.MODEL_ARCH.T5ENCODER),
    "chroma": ("text_encoder", gguf.MODEL_ARCH.T5ENCODER),
    "z-image": ("text_encoder", gguf.MODEL_ARCH.QWEN3),
}


def write(folder: Path, arch: Any, kind: str = "Q8_0") -> None:
    """Put a component's weights into a GGUF file, and the same numbers into safetensors beside the folder."""
    (file,) = folder.glob("*.safetensors")
    state, kept = load_file(file), {}
    names = gguf.get_tensor_name_map(arch, 99)
    writer = gguf.GGUFWriter(folder / f"encoder-{kind}.gguf", gguf.MODEL_ARCH_NAMES[arch])
    code, packed = gguf.GGMLQuantizationType[kind], 0
    for key, tensor in state.items():
        other, values = names.get_name(key, (".weight", ".bias")), tensor.float().numpy()
        assert other is not None, key
        if values.ndim < 2 or values.shape[-1] % 32 or "rel_b" in other:
            writer.add_tensor(other, values)
            kept[key] = tensor.float()
            continue
        packed += 1
        stored = quantize(values, code)
        writer.add_tensor(other, stored, raw_dtype=code)
        kept[key] = torch.from_numpy(dequantize(stored, code))
    assert packed > 2
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("flux", "torch:cpu"),
        ("z-image", "torch:cpu"),
        pytest.param("chroma", "torch:cpu", marks=exhaustive),
        pytest.param("flux", "onnxruntime:cpu", marks=exhaustive),
        pytest.param("flux", "openvino:CPU", marks=exhaustive),
        pytest.param("z-image", "onnxruntime:cpu", marks=exhaustive),
        pytest.param("z-image", "openvino:CPU", marks=exhaustive),
    ],
)
def test_drawn(checkpoint: Make, tmp_path: Path, kind: str, backend: str) -> None:
    """As with the same numbers in safetensors, to the bit; and not as with the numbers before."""
    pytest.importorskip(backend.partition(":")[0])
    part, arch = KINDS[kind]
    plain = Path(shutil.copytree(checkpoint(kind), tmp_path / "plain"))
    write(plain / part, arch)
    folder = Path(shutil.copytree(plain, tmp_path / "gguf"))
    (plain / part / "encoder-Q8_0.gguf").unlink()
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    drawn = [
        DiffusionPipeline.from_pretrained(model, backend=backend)(**CALL).images
        for model in (folder, plain, checkpoint(kind))
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 0


def test_files_that_cannot_be_read(checkpoint: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("z-image"), tmp_path / "one"))
    part = folder / "text_encoder"
    write(part, gguf.MODEL_ARCH.QWEN3)
    for file in part.glob("*.safetensors"):
        file.unlink()
    shutil.copy(part / "encoder-Q8_0.gguf", part / "other.gguf")
    with pytest.raises(WeightsError, match="one of them can be its weights"):
        DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")(**CALL)
    (part / "encoder-Q8_0.gguf").unlink()
    (part / "other.gguf").unlink()
    writer = gguf.GGUFWriter(part / "of-gemma.gguf", "gemma2")
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match="is of the architecture 'gemma2'; t5"):
        DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")(**CALL)
