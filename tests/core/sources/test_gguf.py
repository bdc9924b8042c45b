"""GGUF files: dequantised as the ``gguf`` package does, and as ComfyUI's converter shapes them."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.single_files import make_folder, original_tensors, unet_names

from perfuse import DiffusionPipeline
from perfuse.contract.original import View
from perfuse.contract.quantized import Blocks
from perfuse.errors import InputError, WeightsError
from perfuse.sources.gguf_blocks import KINDS
from perfuse.sources.gguf_file import GgufFile
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


# ── Blocks as they are ──────────────────────────────────────────────────────────────────────────

#: Where blocks of a kind that the package does not write have numbers in half precision.
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def drawn(kind: str, rows: int) -> tuple[Any, tuple[int, int]]:
    """Random blocks of a kind, four a row, and the shape of the matrix."""
    gguf = pytest.importorskip("gguf")
    from gguf.quants import quantize

    code, rng = gguf.GGMLQuantizationType[kind], np.random.default_rng(0)
    length, size = gguf.GGML_QUANT_SIZES[code]
    shape = rows, 4 * length
    if kind not in HALVES:
        return quantize(rng.standard_normal(shape).astype(np.float32), code), shape
    stored = rng.integers(0, 256, (4 * rows, size), np.uint8)
    for at in HALVES[kind]:
        halves = (0.01 * rng.standard_normal((len(stored), 1))).astype(np.float16)
        stored[:, at : at + 2] = halves.view(np.uint8)
    return stored.reshape(rows, -1), shape


def one_matrix(path: Path, stored: Any, kind: str) -> Path:
    """A GGUF file with a matrix ``a`` of these blocks."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "of-no-matter")
    writer.add_tensor("a", stored, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_integers(kind: str, tmp_path: Path) -> None:
    """With a scale, and for some an offset, for each group: the numbers of the ``gguf`` package."""
    pytest.importorskip("gguf")
    from gguf.quants import dequantize

    stored, shape = drawn(kind, 8)
    file = GgufFile(one_matrix(tmp_path / "a.gguf", stored, kind))
    expected = dequantize(stored, file._tensors["a"].tensor_type)
    for view, part in (
        (View(stored="a", shape=shape), expected),
        (View(stored="a", shape=(3, shape[1]), rows=(2, 5)), expected[2:5]),
        (View(stored="a", shape=shape, swapped=True), np.roll(expected, 4, 0)),
    ):
        found = file.tensor(view)
        assert isinstance(found, Blocks)
        assert found.shape == view.shape
        assert np.array_equal(found.array, part)
        integers = found.quantized
        limit = 2 ** (integers.scheme.bits - 1)
        assert -limit <= integers.codes.min() <= integers.codes.max() < limit
        np.testing.assert_allclose(
            integers.dequantized.array, part, rtol=0, atol=1e-7 * np.abs(part).max()
        )
    turned = file.tensor(View(stored="a", shape=shape[::-1], transposed=True))
    assert not isinstance(turned, Blocks)
    assert np.array_equal(turned.array, expected.T)


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K"])
def test_blocks_that_are_damaged(kind: str, tmp_path: Path) -> None:
    stored, shape = drawn(kind, 8)
    stored[3, 0:2] = np.array([np.inf], np.float16).view(np.uint8)
    file = GgufFile(one_matrix(tmp_path / "a.gguf", stored, kind))
    found = file.tensor(View(stored="a", shape=shape))
    assert isinstance(found, Blocks)
    with pytest.raises(WeightsError, match=r"a.gguf is damaged.*scales are not finite"):
        found.quantized  # noqa: B018
    path = one_matrix(tmp_path / "b.gguf", stored, kind)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"b.gguf is damaged"):
        GgufFile(path)


def test_other_blocks_are_numbers(tmp_path: Path) -> None:
    stored, shape = drawn("TQ2_0", 8)
    file = GgufFile(one_matrix(tmp_path / "a.gguf", stored, "TQ2_0"))
    assert not isinstance(file.tensor(View(stored="a", shape=shape)), Blocks)
