"""GGUF files: dequantised as the ``gguf`` package does, and as ComfyUI's converter shapes them."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.single_files import make_folder, original_tensors, unet_names

from perfuse import DiffusionPipeline
from perfuse.errors import InputError, WeightsError
from perfuse.sources.single_file import SingleFile

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
PREFIX = "model.diffusion_model."


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "gguf":
            raise ImportError(name)
        return found(name, *arguments, **named)

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"needs the package gguf.*pip install 'perfuse\[gguf\]'"):
        SingleFile.open(tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def folder(made_once: Any) -> Path:
    return made_once("single-files", "sd1", lambda folder: make_folder(folder, "sd1"))


def write(path: Path, tensors: dict[str, Any], kind: str) -> dict[str, Any]:
    """A GGUF file as ComfyUI's converter writes it; return what is expected to be read."""
    gguf = pytest.importorskip("gguf")
    from gguf.quants import dequantize, quantize

    code = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[code]
    writer, expected = gguf.GGUFWriter(path, "sd1"), {}
    for name, tensor in tensors.items():
        values = tensor.numpy()
        if values.ndim < 2 or values.size % block:
            writer.add_tensor(name, values)
            expected[name] = values
            continue
        writer.add_array(f"comfy.gguf.orig_shape.{name}", values.shape)
        rows = values.reshape(-1, block)
        if kind.endswith("_K"):  # the package reads these, and does not write them
            stored = np.random.default_rng(0).integers(0, 40, (len(rows), size), np.uint8)
        else:
            stored = quantize(rows, code)
        writer.add_tensor(name, stored, raw_dtype=code)
        expected[name] = dequantize(stored, code).reshape(values.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q6_K", "Q5_K", "Q4_K"])
def test_a_unet(kind: str, folder: Path, tmp_path: Path) -> None:
    from perfuse.models import UNet2DConditionModel

    tensors = original_tensors(folder, "sd1")
    unet = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    expected = write(tmp_path / "unet.gguf", unet, kind)
    state = UNet2DConditionModel.from_single_file(tmp_path / "unet.gguf").state_dict()
    names = unet_names(list(state), 1)
    assert sorted(names.values()) == sorted(expected)
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[names[name]])


def test_a_whole_pipeline(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    tensors = original_tensors(folder, "sd1")
    expected = write(path, tensors, "Q8_0")
    pipe = DiffusionPipeline.from_single_file(
        path, tokenizer_from=folder, precision="float16", backend="torch:cpu"
    )
    stored = sum(t.numel() * 4 for name, t in tensors.items() if name.startswith(PREFIX))
    assert pipe.source.weight_bytes()["unet"] < stored / 2
    assert pipe.unet.dtype == torch.float16
    first = expected[f"{PREFIX}time_embed.0.weight"].astype(np.float16)
    np.testing.assert_array_equal(pipe.unet.time_embedding.linear_1.weight.numpy(), first)
    with pytest.raises(InputError, match="weights of unet are stored as q8_0 already"):
        DiffusionPipeline.from_single_file(path, tokenizer_from=folder, precision="int8").plan  # noqa: B018
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="is damaged, or of a kind that gguf cannot read"):
        DiffusionPipeline.from_single_file(path, tokenizer_from=folder).unet  # noqa: B018
