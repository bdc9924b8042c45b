"""The pipeline: opened, placed, its parts replaced, run step by step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    ExecutionReport,
    Placement,
    Program,
    Step,
    Target,
)
from perfuse.errors import (
    BackendNotFoundError,
    DeviceNotFoundError,
    ExecutionError,
    InputError,
    UnsupportedError,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]

GIVEN: dict[str, Any] = {"num_inference_steps": 3, "seed": 0, "output_type": "np"}


@pytest.fixture
def pipe(checkpoint: Make) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(checkpoint("sd1"), backend="torch:cpu")


@pytest.fixture(scope="module")
def drawn(checkpoint: Make) -> np.ndarray:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"), backend="torch:cpu")
    images: np.ndarray = pipe("a red circle", **GIVEN).images
    return images


# ── Targets and placements ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "backend", "device"),
    [
        ("torch", "torch", None),
        ("openvino:GPU", "openvino", "GPU"),
        ("torch:cuda:1", "torch", "cuda:1"),
        (" torch:cpu ", "torch", "cpu"),
        ("coreml:CPU_AND_NE", "coreml", "CPU_AND_NE"),
    ],
)
def test_target(text: str, backend: str, device: str | None) -> None:
    target = Target.parse(text)
    assert (target.backend, target.device) == (backend, device)
    assert str(target) == text.strip()
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize("text", ["", " ", ":", ":cpu", "torch:", "torch: "])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(InputError, match=r"BACKEND\[:DEVICE\]"):
        Target.parse(text)


def test_placement() -> None:
    one = Placement.parse("openvino:GPU")
    assert str(one["unet"]) == str(one["anything"]) == "openvino:GPU"
    parts = Placement.parse("unet=openvino:GPU, vae_decoder=torch:cuda:1")
    assert str(parts["unet"]) == "openvino:GPU"
    assert str(parts["vae_decoder"]) == "torch:cuda:1"
    assert str(parts["text_encoder"]) == "torch"
    both = Placement.parse("unet=torch, openvino:CPU")
    assert str(both["text_encoder"]) == "openvino:CPU"
    for placement in (one, parts, both):
        assert Placement.parse(str(placement)) == placement


@pytest.mark.parametrize(
    "text", ["", "unet=", "=torch", "torch,,", "unet=torch:", "torch,openvino"]
)
def test_what_is_no_placement(text: str) -> None:
    with pytest.raises(InputError):
        Placement.parse(text)


def test_unknown_parts_are_said_before_any_work(checkpoint: Make) -> None:
    folder = checkpoint("sd1")
    with pytest.raises(BackendNotFoundError, match="'warp'"):
        DiffusionPipeline.from_pretrained(folder, backend="warp")
    with pytest.raises(InputError, match="unett.*unet"):
        DiffusionPipeline.from_pretrained(folder, backend="unett=torch")
    with pytest.raises(InputError, match="'float12'.*float16"):
        DiffusionPipeline.from_pretrained(folder, precision="float12")
    with pytest.raises(InputError, match="unett= was given.*unet"):
        DiffusionPipeline.from_pretrained(folder, unett=3)


def test_unknown_device_and_option(checkpoint: Make) -> None:
    folder = checkpoint("sd1")
    with pytest.raises(DeviceNotFoundError, match="'warp9'.*cpu"):
        DiffusionPipeline.from_pretrained(folder, backend="torch:warp9")("red", **GIVEN)
    with pytest.raises(InputError, match="magic.*compile"):
        DiffusionPipeline.from_pretrained(folder, options={"magic": "true"})("red", **GIVEN)


def test_nothing_is_loaded_before_it_is_needed(copy_of: Make) -> None:
    folder = copy_of("sd1")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    pipe = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    assert "unet=torch:cpu" in repr(pipe)
    assert pipe.spec.default_size == (16, 16)


@pytest.mark.export
def test_a_placement_on_two_backends(checkpoint: Make, drawn: np.ndarray) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    target = "vae_decoder=onnxruntime:cpu,torch:cpu"
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"), backend=target)
    assert np.abs(pipe("a red circle", **GIVEN).images - drawn).max() < 1e-4
    assert "onnx" in pipe.program("vae_decoder").report().engine
    assert "torch" in pipe.program("unet").report().engine


# ── Replaced parts ──────────────────────────────────────────────────────────────────────────────


def test_the_scheduler(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert np.abs(pipe("a red circle", **GIVEN).images - drawn).max() > 1e-3


@pytest.mark.slow
def test_a_module_in_place_of_another(
    checkpoint: Make, pipe: DiffusionPipeline, drawn: np.ndarray
) -> None:
    import perfuse.models

    pipe("a red circle", **GIVEN)
    other = perfuse.models.UNet2DConditionModel.from_pretrained(checkpoint("sd1") / "unet")
    pipe.unet = other
    assert pipe.unet is other
    assert (pipe("a red circle", **GIVEN).images == drawn).all()
    with torch.no_grad():
        other.conv_out.weight.mul_(0.5)
    assert np.abs(pipe("a red circle", **GIVEN).images - drawn).max() > 1e-3


def test_a_module_that_is_changed_in_place(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    assert pipe.unet is pipe.unet
    assert (pipe("a red circle", **GIVEN).images == drawn).all()
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)
    assert np.abs(pipe("a red circle", **GIVEN).images - drawn).max() > 1e-3


@pytest.mark.slow
def test_components_given_when_opened(checkpoint: Make, drawn: np.ndarray) -> None:
    import perfuse.models

    folder = checkpoint("sd1")
    unet = perfuse.models.UNet2DConditionModel.from_pretrained(folder / "unet")
    pipe = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", unet=unet)
    assert pipe.unet is unet
    assert (pipe("a red circle", **GIVEN).images == drawn).all()


def test_two_halves_of_one_module(pipe: DiffusionPipeline) -> None:
    """The autoencoder is one model, of which two components are made."""
    assert type(pipe.vae).__name__ == "AutoencoderKL"
    assert {"vae_encoder", "vae_decoder"} <= set(pipe.spec.components)


class Zeros(Program):
    """A denoiser that sees no noise."""

    def __init__(self, signature: Any) -> None:
        self.signature = signature
        self.calls: list[Any] = []
        self.closed = False

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        self.calls.append({name: tuple(array.shape) for name, array in inputs.items()})
        return {"out_sample": np.zeros(inputs["sample"].shape, np.float32)}

    def report(self) -> ExecutionReport:
        return ExecutionReport(device="cpu", precision="float32", engine="none")

    def close(self) -> None:
        self.closed = True


def test_a_program_of_the_user_s(pipe: DiffusionPipeline) -> None:
    zeros = Zeros(pipe.spec.components["unet"].signature)
    pipe.unet = zeros
    images = pipe("a red circle", **GIVEN).images
    assert np.isfinite(images).all()
    assert len(zeros.calls) == 3
    assert zeros.calls[0]["sample"] == (2, 4, 8, 8)
    pipe("a red circle", guidance_scale=1.0, **GIVEN)
    assert zeros.calls[-1]["sample"] == (1, 4, 8, 8)


def test_attributes_that_are_not_there(pipe: DiffusionPipeline) -> None:
    with pytest.raises(AttributeError, match="'unett'.*unet"):
        _ = pipe.unett
    assert not hasattr(pipe, "controlnet")
    pipe.unett = 3
    assert pipe.unett == 3


def test_a_component_that_is_taken_out(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    decoder, encoder = pipe.vae, pipe.text_encoder
    pipe.vae = None
    assert pipe.vae is None
    with pytest.raises(InputError, match="no latent decoder.*output_type='latent'"):
        pipe("a red circle", **GIVEN)
    assert pipe("a red circle", **{**GIVEN, "output_type": "latent"}).images.shape == (1, 4, 8, 8)
    pipe.vae, pipe.text_encoder = decoder, None
    with pytest.raises(InputError, match="needs text_encoder for this, and has unet"):
        pipe("a red circle", **GIVEN)
    pipe.text_encoder = encoder
    assert (pipe("a red circle", **GIVEN).images == drawn).all()


@pytest.mark.slow
def test_without_a_component_from_the_beginning(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"), vae=None, text_encoder=None)
    assert list(pipe.spec.components) == ["unet"]
    states = np.zeros((1, 77, 32), np.float32)
    given = {**GIVEN, "output_type": "latent", "prompt_embeds": states}
    assert pipe(**given, negative_prompt_embeds=states).images.shape == (1, 4, 8, 8)


def test_a_scheduler_of_diffusers(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(dict(ours.config))
    assert type(pipe.scheduler) is EulerDiscreteScheduler
    theirs = pipe("a red circle", **GIVEN).images
    pipe.scheduler = ours
    assert (pipe("a red circle", **GIVEN).images == theirs).all()
    with pytest.raises(InputError, match="must be a scheduler.*got 'euler'"):
        pipe.scheduler = "euler"


def test_devices_and_dtypes(pipe: DiffusionPipeline) -> None:
    assert pipe.to("cpu").placement == pipe.to(torch.device("cpu")).placement
    assert str(pipe.placement) == "torch:cpu"
    assert pipe.to(torch.bfloat16).precision == "bfloat16"
    assert pipe.to("cpu", torch.float32).precision == "float32"
    with pytest.raises(InputError, match="'float64'.*float16"):
        pipe.to(torch.float64)
    with pytest.raises(InputError, match=r"pipe.to\(7\) was called; give a target"):
        pipe.to(7)
    with pytest.raises(BackendNotFoundError, match="'warp'"):
        pipe.to("warp")


# ── Running ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_stream(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    events = [
        (event.step, event.done, event.total) for event in pipe.stream("a red circle", **GIVEN)
    ]
    names = [name for name, _, _ in events]
    assert names.count("denoise") == 3
    assert [event for event in events if event[0] == "denoise"][-1] == ("denoise", 3, 3)
    assert names.index("encode_prompt") < names.index("denoise") < names.index("decode")
    *_, last = pipe.stream("a red circle", **GIVEN)
    assert (last.state["images"] == drawn).all()


def test_stopping_and_going_on(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    running = pipe.stream("a red circle", **GIVEN)
    previews = []
    for event in running:
        if event.step == "denoise":
            previews.append(np.asarray(event.state["samples"][0]).copy())
            if event.done == 2:
                break
    running.close()
    assert len(previews) == 2
    assert np.abs(previews[0] - previews[1]).max() > 0.01
    assert (pipe("a red circle", **GIVEN).images == drawn).all()


@pytest.mark.slow
def test_two_runs_at_once_do_not_mix(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    first, second = pipe.stream("a red circle", **GIVEN), pipe.stream("blue", **GIVEN)
    states: list[Any] = [None, None]
    for left, right in zip(first, second, strict=True):
        states = [left.state, right.state]
    assert (states[0]["images"] == drawn).all()
    assert np.abs(states[1]["images"] - drawn).max() > 1e-4


def test_a_step_of_the_user_s(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    def invert(tools: Any, decoded: Any) -> dict[str, Any]:
        return {"decoded": -decoded}

    step = Step(name="invert", outputs=("decoded",), run=invert)
    pipe.task = pipe.task.insert(step, after="decode")
    assert np.abs(pipe("a red circle", **GIVEN).images - (1 - drawn)).max() < 1e-6


def test_seeds_in_the_result(pipe: DiffusionPipeline) -> None:
    latent = {"num_inference_steps": 1, "output_type": "latent"}
    assert pipe("red", seed=5, **latent).seeds == (5,)
    assert pipe(["red", "blue"], seed=[5, 6], **latent).seeds == (5, 6)
    assert pipe("red", generator=torch.Generator(), **latent).seeds == (None,)
    (fresh,) = pipe("red", **latent).seeds
    assert isinstance(fresh, int)


def test_portable_noise(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    portable = pipe("a red circle", noise_mode="portable", **GIVEN).images
    assert np.abs(portable - drawn).max() > 1e-3
    assert (pipe("a red circle", noise_mode="portable", **GIVEN).images == portable).all()
    with pytest.raises(InputError, match="'loud'"):
        pipe("a red circle", noise_mode="loud", **GIVEN)


def test_to_and_close(pipe: DiffusionPipeline, drawn: np.ndarray) -> None:
    program = pipe.program("unet")
    assert pipe.program("unet") is program
    assert pipe.to("torch:cpu") is pipe
    with pytest.raises(ExecutionError, match="unet was closed"):
        program(sample=np.zeros((1, 4, 8, 8), np.float32))
    assert (pipe("a red circle", **GIVEN).images == drawn).all()
    pipe.close()
    assert (pipe("a red circle", **GIVEN).images == drawn).all()


def test_to_somewhere_unknown_changes_nothing(pipe: DiffusionPipeline) -> None:
    for target in ("warp", "unett=torch", "torch:"):
        with pytest.raises((InputError, BackendNotFoundError)):
            pipe.to(target)
        assert str(pipe.placement) == "torch:cpu"


def test_half_precision(checkpoint: Make, drawn: np.ndarray) -> None:
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("sd1"), backend="torch:cpu", precision="bfloat16"
    )
    images = pipe("a red circle", **GIVEN).images
    assert images.dtype == np.float32
    assert 0 < np.abs(images - drawn).max()
    assert np.abs(images - drawn).mean() < 0.1
    assert pipe.program("unet").report().precision == "bfloat16"


def test_an_autoencoder_that_overflows_in_float16_stays_in_float32(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("sdxl"), backend="torch:cpu", precision="float16"
    )
    forced = bool(pipe.spec.components["vae_decoder"].config.get("force_upcast"))
    report = pipe.program("vae_decoder").report()
    assert report.precision == ("float32" if forced else "float16")
    assert pipe.program("unet").report().precision == "float16"


def test_a_backend_that_says_no(checkpoint: Make) -> None:
    pytest.importorskip("onnxruntime")
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("sd1"), backend="onnxruntime:cpu", precision="bfloat16"
    )
    with pytest.raises(UnsupportedError, match="bfloat16"):
        pipe("red", **GIVEN)
