"""How accelerated modules are run: an engine's options, transforms, methods that a user has replaced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse import ArtifactStore
from perfuse.errors import InputError

pytestmark = pytest.mark.export

Make = Callable[[str], Path]


@pytest.fixture
def unet(checkpoint: Make) -> Any:
    return diffusers.UNet2DModel.from_pretrained(checkpoint("tiny") / "unet")


def called(unet: Any) -> Any:
    sample = torch.randn(
        1, unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        return unet(sample, torch.tensor(500)).sample


@pytest.mark.exhaustive
def test_a_transform_rewrites_the_network_that_it_is_for(checkpoint: Make, tmp_path: Path) -> None:
    module = diffusers.UNet2DConditionModel.from_pretrained(checkpoint("sd1") / "unet")
    torch.manual_seed(0)
    sample, words = torch.randn(1, 4, 8, 8), torch.randn(1, 5, module.config.cross_attention_dim)

    def answer() -> Any:
        with torch.no_grad():
            return module(sample, torch.tensor(500), words).sample

    scales = {"s1": 0.5, "s2": 0.2, "b1": 1.4, "b2": 1.6}
    plain = answer()
    for block in module.up_blocks:  # as a pipeline's enable_freeu does
        for name, value in scales.items():
            setattr(block, name, value)
    expected = answer()
    for block in module.up_blocks:
        for name in scales:
            delattr(block, name)
    text = "freeu:" + ",".join(f"{name}={value}" for name, value in scales.items())
    perfuse.accelerate(
        module, "onnxruntime", store=ArtifactStore(tmp_path), strict=True, transforms=[text]
    )
    found = answer()
    (row,) = module.perfuse.report()
    assert row.transforms == (text,) and f"rewritten by {text}" in str(row)
    assert (plain - expected).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_transform_that_fits_nothing_is_told(unet: Any, tmp_path: Path) -> None:
    expected = called(unet)
    text = "storage:component=text_encoder"
    perfuse.accelerate(unet, "onnxruntime", store=ArtifactStore(tmp_path), transforms=text)
    torch.testing.assert_close(called(unet), expected, rtol=1e-4, atol=1e-5)
    assert str(unet.perfuse).endswith(f"{text}: it rewrote nothing so far")


def test_options_of_the_engine(unet: Any, tmp_path: Path) -> None:
    import onnxruntime

    asked: list[int] = []
    session = onnxruntime.InferenceSession

    class Session(session):  # type: ignore[misc, valid-type]
        def __init__(self, path: str, settings: Any, **given: Any) -> None:
            asked.append(settings.intra_op_num_threads)
            super().__init__(path, settings, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", Session)
        perfuse.accelerate(
            unet,
            "onnxruntime",
            store=ArtifactStore(tmp_path),
            options={"module.threads": "3"},
            strict=True,
        )
        called(unet)
    assert asked == [3]
    for wrong, words in (
        ({"treads": "3"}, "treads"),
        ({"threads": "many"}, "many"),
        ({"unet.threads": "3"}, "unet is neither a backend nor a component"),
    ):
        with pytest.raises(InputError, match=words):
            perfuse.accelerate(unet, "onnxruntime", options=wrong)


def test_a_method_of_the_user_s_own_is_left_alone(unet: Any, tmp_path: Path) -> None:
    usual = unet.forward
    own = unet.forward = lambda *args, **kwargs: usual(*args, **kwargs)
    with pytest.raises(InputError, match="its forward was replaced on the object"):
        perfuse.accelerate(unet, "onnxruntime", strict=True)
    perfuse.accelerate(unet, "onnxruntime", store=ArtifactStore(tmp_path))
    assert unet.forward is own
    (row,) = unet.perfuse.report()
    assert str(row).endswith(
        "torch, because its forward was replaced on the object before; what that "
        "does is not captured"
    )


def test_another_pipeline_of_the_same_models_is_run_on_its_own(
    checkpoint: Make, tmp_path: Path
) -> None:
    opened = diffusers.DDPMPipeline.from_pretrained(checkpoint("tiny"))
    first = perfuse.accelerate(opened, "onnxruntime", store=ArtifactStore(tmp_path))
    with perfuse.patch_diffusers():
        second = diffusers.DDIMPipeline.from_pipe(first)
    assert second.perfuse is not first.perfuse
    other = diffusers.UNet2DModel.from_pretrained(checkpoint("tiny") / "unet")
    second.unet = other  # the first pipeline has its own still
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
        pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=1, output_type="np")
        (row,) = pipe.perfuse.report()
        assert (row.torch_calls, row.graphs) == (0, 1)
