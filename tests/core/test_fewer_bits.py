"""Weights in fewer bits: what a scheme makes of a tensor, what engines make of that, calibration."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import DiffusionPipeline
from perfuse.backend import SCHEMES, Change, Quantized, StoredTensor, packed, quantized
from perfuse.errors import InputError, PerfuseError, WeightsError
from perfuse.run.precisions import read_precision
from perfuse.sources import Manifest

# ── Tensors ─────────────────────────────────────────────────────────────────────────────────────


def _tensor(*shape: int) -> StoredTensor:
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return StoredTensor(dtype="float32", array=values)


@pytest.mark.parametrize("name", [name for name, one in SCHEMES.items() if not one.kept])
@pytest.mark.parametrize("shape", [(48, 128), (20, 12, 3, 3)])
def test_each_number_is_within_half_a_step(name: str, shape: tuple[int, ...]) -> None:
    tensor = _tensor(*shape)
    found = SCHEMES[name].of(tensor, "a.weight")
    wide = found._for_each(found.scale)
    assert (np.abs(found.dequantized.array - tensor.array) <= 0.501 * wide).all()
    # What cannot be cut into groups has eight bits and one scale an output.
    assert found.scheme.bits == (8 if len(shape) == 4 else SCHEMES[name].bits)
    assert found.scale.shape[0] == shape[0]
    turned = found.changed((Change(kind="transpose", sizes=tuple(range(len(shape)))[::-1]),))
    assert turned is not None
    assert np.array_equal(turned.dequantized.array, found.dequantized.array.T)
    assert turned.axis == (0 if found.scheme.group is not None else len(shape) - 1)
    assert found.changed((Change(kind="reshape", sizes=(-1,)),)) is None


def test_four_bits_are_packed_the_first_in_the_lower_half() -> None:
    assert packed(np.array([[1, 2], [15, 0]], np.uint8)).tolist() == [0x21, 0x0F]
    assert packed(np.array([-1, -8, 7], np.int8)).tolist() == [0x8F, 0x07]


def test_matrices_become_integers_and_nothing_else_does() -> None:
    tensors = {
        "a.weight": _tensor(64, 64),
        "a.bias": _tensor(64),
        "small.weight": _tensor(4, 4),
        "norm.weight": _tensor(2048),
        "table": _tensor(64, 64),
    }
    found = quantized(tensors, "int8")
    assert [n for n in found if isinstance(found[n], Quantized)] == ["a.weight"]
    assert found["norm.weight"] is tensors["norm.weight"]
    assert quantized(tensors, "float16") is tensors
    broken = StoredTensor(dtype="float32", array=np.full((64, 64), np.inf, np.float32))
    with pytest.raises(WeightsError, match=r"a.weight was to be stored in 8 bits; .*not finite"):
        quantized({"a.weight": broken}, "int8")["a.weight"]


# ── Precisions as they are written ──────────────────────────────────────────────────────────────


def test_precisions_are_read() -> None:
    assert read_precision(None) == (None, ())
    assert read_precision("bfloat16") == ("bfloat16", ())
    assert read_precision("int8") == (None, ("storage:scheme=int8",))
    assert read_precision("unet=int4_g64+float16, float32") == (
        "float32,unet=float16",
        ("storage:scheme=int4_g64,component=unet",),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int3", "'int3' was asked for; use one of float32.*int8, int8_sym, int4.*int8[+]bfloat16"),
        ("float16+int8", "'float16[+]int8' was asked for"),
        ("unet=", "COMPONENT=PRECISION with each component once"),
        ("unet=int8,unet=int4", "COMPONENT=PRECISION with each component once"),
        ("unett=bfloat16", "this pipeline has no unett, it has text_encoder"),
        ("unett=int8", "component=unett was given, and the pipeline has"),
        ("unet=w8a8", "needs a calibration of it, and no file has one.*perfuse calibrate --precis"),
    ],
)
def test_precisions_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        DiffusionPipeline.from_pretrained(precision=text, backend="onnxruntime").plan  # noqa: B018


def test_what_is_stored_in_few_bits_already_is_not_rounded_again() -> None:
    again = ["storage:scheme=int8,component=unet", "storage:scheme=int4"]
    with pytest.raises(InputError, match="weights of unet are stored as int8 already"):
        DiffusionPipeline.from_pretrained(transforms=again).plan  # noqa: B018


# ── Engines ─────────────────────────────────────────────────────────────────────────────────────


def _predicted(model: Any = None, **settings: Any) -> np.ndarray:
    """What the denoiser of a pipeline, by default the bundled one, predicts of noise."""
    rng = np.random.default_rng(0)
    pipe = DiffusionPipeline.from_pretrained(model, **settings)
    (found,) = pipe.program("unet")(
        sample=rng.standard_normal((2, 4, 8, 8), np.float32),
        timestep=np.full(2, 500, np.float32),
        encoder_hidden_states=rng.standard_normal((2, 16, 64), np.float32),
    ).values()
    return np.asarray(found)


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(((one - other) ** 2).mean() / (other**2).mean()))


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    pytest.importorskip("torch")
    return _predicted(backend="torch:cpu")


@pytest.mark.parametrize(
    ("backend", "scheme", "most"),
    [
        ("openvino:CPU", "int8", 0.05),
        ("onnxruntime", "int4_sym", 0.2),
        pytest.param("openvino:CPU", "int4_sym", 0.2, marks=pytest.mark.exhaustive),
        pytest.param("onnxruntime", "int8", 0.05, marks=pytest.mark.exhaustive),
    ],
)
def test_engines_predict_alike_in_fewer_bits(
    plain: np.ndarray, backend: str, scheme: str, most: float
) -> None:
    pytest.importorskip(backend.partition(":")[0])
    reference = _predicted(backend="torch:cpu", precision=f"unet={scheme}")
    assert 1e-4 < _apart(reference, plain) < most
    found = _predicted(backend=backend, precision=f"unet={scheme}")
    assert _apart(found, reference) < 1e-4


def test_an_export_in_eight_bits_is_whole_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    pipe = DiffusionPipeline.from_pretrained(precision="unet=int8", backend="onnxruntime")
    pipe.export(tmp_path / "out", to="onnx")
    one = Manifest.read(tmp_path / "out").components["unet"]
    assert (one.precision, one.storage) == ("float32", "int8")
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "unet").iterdir())
    whole = pipe.source.component("unet").build.weights.total_bytes  # type: ignore[union-attr]
    assert size < 0.75 * whole  # the bundled model is stored in float16
    again = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert again.approximate == ("storage:scheme=int8,component=unet",)
    assert np.array_equal(
        _predicted(tmp_path / "out"), _predicted(precision="unet=int8", backend="onnxruntime")
    )
    with pytest.raises(InputError, match="stored as int8 already"):
        DiffusionPipeline.from_pretrained(tmp_path / "out", precision="int4").plan  # noqa: B018


@pytest.mark.parametrize(
    "backend",
    [
        "torch:cpu",
        pytest.param("onnxruntime", marks=pytest.mark.exhaustive),
        pytest.param("openvino:CPU", marks=pytest.mark.exhaustive),
    ],
)
def test_a_lora_is_beside_integers(checkpoint: Any, tmp_path: Path, backend: str) -> None:
    """As in a network of the rounded weights with the LoRA added to them, which is not rounded."""
    pytest.importorskip("torch")
    pytest.importorskip(backend.partition(":")[0])
    from diffusers import StableDiffusionPipeline
    from tests.loras import EVERYTHING, factors, write

    theirs = StableDiffusionPipeline.from_pretrained(checkpoint("words"))
    made = factors(theirs, pattern=EVERYTHING, parts=["unet"], size=0.05)
    file = write(tmp_path / "a.safetensors", made, "peft")
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("words"), backend=backend, precision="unet=int4"
    )
    given = {
        one.name: np.random.default_rng(0).normal(size=one.resolve(_SIZES)).astype(np.float32)
        for one in pipe.spec.components["unet"].signature.inputs
    }

    def predicted() -> np.ndarray:
        return np.asarray(pipe.program("unet")(**given)["out_sample"])

    rounded = predicted()
    pipe.load_lora_weights(file, adapter_name="a")
    pipe.set_adapters("a", 0.7)
    found = predicted()
    assert _apart(found, rounded) > 1e-2
    expected = _with_lora(checkpoint("words"), made, 0.7, given)
    assert _apart(found, expected) < 1e-4
    pipe.unload_lora_weights()
    assert np.array_equal(predicted(), rounded)


_SIZES = {"batch": 2, "latent_height": 8, "latent_width": 8, "sequence": 5}


def _with_lora(model: Path, made: Any, strength: float, given: dict[str, Any]) -> np.ndarray:
    """Of the UNet whose weights are those of four bits, and then have the LoRA added in float32."""
    import torch

    pipe = DiffusionPipeline.from_pretrained(model, backend="torch:cpu")
    module = pipe.component("unet").build()
    scheme = SCHEMES["int4"]
    for name, weight in module.named_parameters():
        stored, plain = StoredTensor.of(weight), name.removeprefix("model.")
        if scheme.fits(name, tuple(weight.shape)):
            weight.data = torch.from_numpy(scheme.of(stored, name).dequantized.array)
        if (one := made.get(("unet", plain.removesuffix(".weight")))) is not None:
            down, up = (one[key].reshape(len(one[key]), -1) for key in ("down", "up"))
            added = strength * float(one["alpha"]) / len(down) * (up @ down)
            weight.data = weight.data + torch.from_numpy(added.reshape(weight.shape)).float()
    with torch.inference_mode():
        (found,) = module(*(torch.from_numpy(one) for one in given.values()))
    return np.asarray(found)


# ── Calibration ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    from perfuse.run.calibrating import calibrate
    from perfuse.sources.calibrations import write_calibrations

    path = tmp_path_factory.mktemp("calibrated") / "unet.json"
    pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")
    inputs = [{"prompt": "a red circle"}]
    write_calibrations(calibrate(pipe, {"unet": "w8a8"}, inputs, steps=3, limit=0.05), path)
    return path


def _w8a8(path: Path) -> list[str]:
    return [f"storage:scheme=w8a8,component=unet,calibration={path}"]


def test_layers_stay_until_the_limit(calibrated: Path) -> None:
    from perfuse.sources.calibrations import read_calibrations

    found = read_calibrations(str(calibrated))["unet"]
    assert 0 < found.error <= 0.05
    assert 0 < len(found.kept) < len(found.ranges) / 2
    assert (found.prompts, found.steps) == (("a red circle",), 3)
    for low, high in found.ranges.values():
        step = (high - low) / 255
        assert low <= 0 <= high
        assert abs(low / step - round(low / step)) < 1e-6


@pytest.mark.exhaustive
def test_both_in_eight_bits(calibrated: Path, plain: np.ndarray) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    reference = _predicted(backend="torch:cpu", transforms=_w8a8(calibrated))
    assert 1e-3 < _apart(reference, plain) < 0.3
    found = _predicted(backend="openvino:CPU", transforms=_w8a8(calibrated))
    assert _apart(found, reference) < 0.03  # where a number lies between two steps, engines differ
    found = _predicted(backend="onnxruntime", transforms=_w8a8(calibrated))
    assert (
        1e-3 < _apart(found, plain) < _apart(reference, plain)
    )  # its convolutions are not rounded


def test_a_calibration_is_of_one_model_and_one_scheme(calibrated: Path, tmp_path: Path) -> None:
    text = calibrated.read_text("utf-8")
    mark = text.split('"vectors": {')[1].split('"')[3]
    other = tmp_path / "other.json"
    other.write_text(text.replace(mark, "0" * 16), "utf-8")
    for path, scheme, said in (
        (other, "w8a8", "the calibration is of another model"),
        (calibrated, "int8", "the calibration is for w8a8"),
    ):
        transform = f"storage:scheme={scheme},component=unet,calibration={path}"
        with pytest.raises(PerfuseError, match=said):
            _predicted(backend="torch:cpu", transforms=[transform])
    other.write_text("{}", "utf-8")
    with pytest.raises(InputError, match="is no file of perfuse calibrate"):
        DiffusionPipeline.from_pretrained(transforms=_w8a8(other)).plan  # noqa: B018


def test_a_calibration_needs_steps_and_a_component() -> None:
    pytest.importorskip("torch")
    from perfuse.run.calibrating import calibrate

    pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")
    with pytest.raises(InputError, match="A calibration of 1 step was asked for"):
        calibrate(pipe, {"unet": "w8a8"}, [{"prompt": "a red circle"}], steps=1, limit=0.05)
    with pytest.raises(InputError, match="A calibration of unett was asked for"):
        calibrate(pipe, {"unett": "int8"}, [{"prompt": "a red circle"}], steps=2, limit=0.05)


def test_calibrate_writes_over_nothing_but_a_calibration(tmp_path: Path) -> None:
    """Said before any work."""
    from click.testing import CliRunner

    from perfuse.cli import main

    path = tmp_path / "mine.txt"
    path.write_text("mine")
    given = ["calibrate", "--precision", "unet=w8a8", "--output", str(path)]
    result = CliRunner().invoke(main, given)
    assert (result.exit_code, path.read_text()) == (2, "mine")
    assert "it is there, and no calibration" in result.stderr
