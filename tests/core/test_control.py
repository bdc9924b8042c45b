"""ControlNets and T2I-Adapters in a pipeline: what is added, what runs, and what is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import needs_exporter

from perfuse import DiffusionPipeline
from perfuse.contract.spec import Signature, TensorSpec
from perfuse.errors import CheckpointError, InputError
from perfuse.sources import Checkpoint
from perfuse_conformance.checkpoints import (
    adapter_config,
    controlnet_config,
    randomise,
    unet_config,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]

CALL: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "seed": 1}


def picture(seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((16, 16, 3), dtype=np.float32)


def made(name: str, **fields: Any) -> Any:
    import perfuse.models

    if name == "ControlNetModel":
        fields = controlnet_config(unet_config(), **fields)
    else:
        fields = adapter_config(**fields)
    return randomise(getattr(perfuse.models, name)(**fields), 3)


def opened(folder: Path, **parts: Any) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", **parts)


@pytest.fixture(scope="module")
def two(checkpoint: Make) -> DiffusionPipeline:
    """A pipeline with two ControlNets, of which every call is counted in ``counted``."""
    return opened(checkpoint("control"))


@pytest.fixture(scope="module")
def adapted(checkpoint: Make) -> DiffusionPipeline:
    return opened(checkpoint("sd1"), adapter=made("T2IAdapter"))


def counted(pipe: DiffusionPipeline, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The inputs of each call of a component from now on."""
    calls: list[Any] = []
    program = pipe.program(name)
    kind = type(program)

    def call(self: Any, **inputs: Any) -> Any:
        if self is program:
            calls.append(inputs)
        return run(self, **inputs)

    run = kind.__call__
    monkeypatch.setattr(kind, "__call__", call)
    return calls


# The description


def test_a_plain_pipeline_is_as_it_was(checkpoint: Make) -> None:
    folder = checkpoint("sd1")
    pipe, source = opened(folder), Checkpoint.open(folder)
    plain = pipe.component("unet")
    assert plain.signature.input_names == ("sample", "timestep", "encoder_hidden_states")
    assert plain == source.component("unet")
    pipe.controlnet = made("ControlNetModel")
    with_net = pipe.component("unet")
    assert with_net.fingerprint == plain.fingerprint  # the weights are the same
    assert with_net.spec != plain.spec  # and the export's key holds the description too
    assert with_net.signature.input_names[3:] == (
        *(f"down_residual_{i}" for i in range(4)),
        "mid_residual",
    )
    assert pipe.spec.class_name == "StableDiffusionControlNetPipeline"
    assert isinstance(pipe.controlnet, torch.nn.Module)


def test_nets_are_added_replaced_and_kept_with_other_changes(checkpoint: Make) -> None:
    folder, net = checkpoint("sd1"), made("ControlNetModel")
    pipe = opened(folder, vae=None)
    pipe.controlnet = [net, net]
    assert "vae_decoder" not in pipe.spec.components
    assert {"controlnet", "controlnet_1"} <= pipe.spec.components.keys()
    pipe.controlnet = net
    assert "controlnet_1" not in pipe.spec.components
    both = opened(folder, controlnet=net)
    drawn = [one("a", image=picture(), **CALL).images for one in (pipe, both)]
    assert np.array_equal(*drawn)


def test_several_nets_are_one_component(checkpoint: Make) -> None:
    from perfuse import StableDiffusionControlNetPipeline

    net, other = (randomise(made("ControlNetModel"), seed) for seed in (1, 2))
    pipe = opened(checkpoint("sd1"), controlnet=[net, other])
    assert pipe.controlnet.nets == (net, other)
    assert pipe.controlnet.dtype == net.dtype
    assert pipe.components["controlnet"] == pipe.controlnet
    assert "controlnet_1" not in pipe.components
    again = StableDiffusionControlNetPipeline(**pipe.components)
    call = {**CALL, "image": [picture(), picture()]}
    assert np.array_equal(*(one("a", **call).images for one in (pipe, again)))
    pipe.controlnet = pipe.controlnet.nets[1]
    assert pipe.controlnet is other
    alone = opened(checkpoint("sd1"), controlnet=other)
    assert np.array_equal(*(one("a", image=picture(), **CALL).images for one in (pipe, alone)))


def test_dimensions_that_follow_from_others() -> None:
    half = TensorSpec(name="half", dtype="float32", shape=("batch", "height/2"))
    whole = TensorSpec(name="whole", dtype="float32", shape=("batch", "height"))
    signature = Signature(inputs=(whole, half), outputs=())
    assert signature.dims == ("batch", "height")
    assert half.resolve({"batch": 1, "height": 7}) == (1, 4)
    assert half.resolve({"batch": 1}) == (1, "height/2")
    double = TensorSpec(name="double", dtype="float32", shape=("batch", "height*2"))
    assert Signature(inputs=(whole, double), outputs=()).dims == ("batch", "height")
    assert double.resolve({"batch": 1, "height": 7}) == (1, 14)
    right = {"whole": np.zeros((1, 7)), "half": np.zeros((1, 4))}
    assert signature.bind(right, component="net") == {"batch": 1, "height": 7}
    with pytest.raises(InputError, match=r"net takes half of shape"):
        signature.bind({**right, "half": np.zeros((1, 3))}, component="net")


# What runs


def test_a_net_runs_in_its_interval_alone(
    two: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (counted(two, name, monkeypatch) for name in ("controlnet", "controlnet_1"))
    given: dict[str, Any] = {
        "image": [picture(1), picture(2)],
        **CALL,
        "num_inference_steps": 4,
    }
    drawn = two(
        "a", control_guidance_start=[0.0, 0.5], control_guidance_end=[0.5, 1.0], **given
    ).images
    assert (len(first), len(second)) == (2, 2)
    assert all(len(call["sample"]) == 2 for call in first)  # both branches in one call
    unscaled = two("a", controlnet_conditioning_scale=[1.0, 0.0], **given).images
    assert (len(first), len(second)) == (6, 2)
    assert not np.allclose(drawn, unscaled)
    two("a", guess_mode=True, controlnet_conditioning_scale=0.5, **given)
    assert (len(first), len(second)) == (10, 6)
    assert len(first[-1]["sample"]) == 1  # the branch with the prompt alone
    scales = first[-1]["residual_scales"][0].tolist()
    assert scales == pytest.approx(np.logspace(-1, 0, 5) * 0.5)


def test_features_are_computed_once(
    adapted: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(adapted, "adapter", monkeypatch)
    given: dict[str, Any] = {"image": picture(), **CALL}
    whole = adapted("a", **given).images
    half = adapted("a", adapter_conditioning_factor=0.5, **given).images
    nothing = adapted("a", adapter_conditioning_factor=0.0, **given).images
    assert len(calls) == 3
    assert not np.allclose(whole, half)
    assert not np.allclose(half, nothing)


def test_what_a_step_reads_can_be_pickled(two: DiffusionPipeline) -> None:
    assert pickle.loads(pickle.dumps(two.plan.tasks)) == two.plan.tasks


@pytest.mark.export
@pytest.mark.exhaustive
def test_an_export_draws_what_the_checkpoint_draws(
    checkpoint: Make, made_once: Callable[..., Path]
) -> None:
    needs_exporter("onnx")
    pipe = opened(checkpoint("followed"), text_encoder=None, vae=None)
    folder = made_once("exports", "followed-onnx", lambda new: pipe.export(new, to="onnx"))
    other = DiffusionPipeline.from_pretrained(folder)
    states = np.random.default_rng(0).standard_normal((2, 1, 7, 32), dtype=np.float32)
    given: dict[str, Any] = {
        "prompt_embeds": states[0],
        "negative_prompt_embeds": states[1],
        **CALL,
    }
    for height, width in ((16, 16), (18, 22)):  # latents of 9 by 11: their halves are rounded up
        size = {"height": height, "width": width}
        first, same, another = (
            np.asarray(one(image=picture(seed), **size, **given).images)
            for one, seed in ((pipe, 1), (other, 1), (other, 2))
        )
        assert np.abs(first - same).max() <= 1e-4
        assert np.abs(first - another).max() > 1e-3
    with pytest.raises(InputError, match="is exported already"):
        DiffusionPipeline.from_pretrained(folder, controlnet=made("ControlNetModel"))


# What is refused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cross_attention_dim": 48}, "reads text states of width 48, and unet of width 32"),
        (
            {"block_out_channels": [32, 48]},
            "gives down_residual_3 with 48 channels, and unet takes 64 there",
        ),
        ({"layers_per_block": 2}, "it was made for another model"),
    ],
)
def test_a_net_for_another_model(checkpoint: Make, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        opened(checkpoint("sd1"), controlnet=made("ControlNetModel", **fields))
    assert "Use one that was made for this family of checkpoints." in str(caught.value)


def test_an_adapter_for_another_model(checkpoint: Make) -> None:
    with pytest.raises(CheckpointError, match=r"adapter gives adapter_feature_1 with 16 channels"):
        opened(checkpoint("sd1"), adapter=made("T2IAdapter", channels=[32, 16]))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "text-to-image needs image"),
        ({"image": None}, "A picture to follow was expected; got None"),
        ({"image": picture()}, "1 pictures to follow were given; this pipeline has controlnet, c"),
        ({"image": [picture()] * 3}, "3 pictures to follow were given"),
        (
            {"image": [picture(), np.zeros((2, 16, 16, 3))]},
            "2 pictures were given for controlnet_1 and 1 prompts",
        ),
        (
            {"image": [picture()] * 2, "controlnet_conditioning_scale": [1.0]},
            "controlnet_conditioning_scale has 1 values",
        ),
        (
            {"image": [picture()] * 2, "controlnet_conditioning_scale": [1.0, "x"]},
            "controlnet_conditioning_scale must be a number; got 'x'",
        ),
        (
            {"image": [picture()] * 2, "control_guidance_start": 0.6, "control_guidance_end": 0.5},
            "was to run from 0.6 to 0.5",
        ),
        (
            {"image": [picture()] * 2, "control_guidance_end": 1.5},
            "control_guidance_end must be between 0 and 1",
        ),
    ],
)
def test_inputs_that_do_not_fit(two: DiffusionPipeline, inputs: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        two("a", **CALL, **inputs)


def test_a_factor_that_is_no_fraction(adapted: DiffusionPipeline) -> None:
    with pytest.raises(InputError, match="adapter_conditioning_factor must be between 0 and 1"):
        adapted("a", image=picture(), adapter_conditioning_factor=2, **CALL)


def test_no_net_is_left(checkpoint: Make) -> None:
    pipe = opened(checkpoint("control"), controlnet=None, controlnet_1=None)
    with pytest.raises(InputError, match=r"has no ControlNet here; .* --controlnet FOLDER"):
        pipe("a", image=picture(), **CALL)


def test_what_is_no_model(checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .*config\.json"):
        opened(checkpoint("sd1"), controlnet=tmp_path)
    config = {"_class_name": "ControlNetXSAdapter", "conditioning_channels": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="A ControlNetXSAdapter was given as controlnet, which"):
        opened(checkpoint("sd1"), controlnet=tmp_path)
    with pytest.raises(InputError, match=r"controlnet=3 was given; a model with a config"):
        opened(checkpoint("sd1"), controlnet=3)
    with pytest.raises(InputError, match=r"controlnet=\[\] was given"):
        opened(checkpoint("sd1"), controlnet=[])
    with pytest.raises(InputError, match=r"controlnet= was given; DDPMPipeline has"):
        opened(checkpoint("ddpm"), controlnet=made("ControlNetModel"))
