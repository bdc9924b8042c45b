"""Guiders against the classes of ``diffusers.guiders``: whole runs of random predictions."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest

import perfuse
from perfuse import Guider, Moment

torch = pytest.importorskip("torch")
guiders = pytest.importorskip("diffusers.guiders")
from diffusers.guiders import frequency_decoupled_guidance as theirs_fdg

STEPS = 8
SHAPE = (2, 4, 16, 8)


@pytest.fixture(autouse=True)
def kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers' frequency-decoupled guidance takes its pyramid from kornia, which is not installed."""
    monkeypatch.setattr(theirs_fdg, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(theirs_fdg, "upsample_and_blur_func", pyrup)
    monkeypatch.setattr(theirs_fdg, "build_laplacian_pyramid_func", laplacian)


@pytest.fixture(autouse=True)
def norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers' magnitude-aware guidance asks a norm over three axes of ``torch.norm``, which has two."""
    monkeypatch.setattr(torch, "norm", torch.linalg.vector_norm)


def blurred(x: Any) -> Any:
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps[None]).expand(x.shape[1], 1, 5, 5)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    return torch.nn.functional.conv2d(padded, kernel, groups=x.shape[1])


def resized(x: Any, factor: float) -> Any:
    size = [int(side * factor) for side in x.shape[-2:]]
    return torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pyrup(x: Any) -> Any:
    return blurred(resized(x, 2))


def laplacian(x: Any, levels: int) -> list[Any]:
    found = []
    for _ in range(levels - 1):
        smaller = resized(blurred(x), 0.5)
        found.append(x - pyrup(smaller))
        x = smaller
    return [*found, x]


def predictions(step: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(step)
    common = draw.normal(size=SHAPE)
    drawn = {name: common + 0.5 * draw.normal(size=SHAPE) for name in ("negative", "positive")}
    drawn["perturbed"] = common + 0.3 * draw.normal(size=SHAPE)
    return {name: array.astype(np.float32) for name, array in drawn.items()}


#: Our branches to the names of theirs.
NAMES = {"positive": "pred_cond", "negative": "pred_uncond"}
#: Guiders that run a worse version of the network have a third.
THIRD = {
    "PerturbedAttentionGuidance": "pred_cond_skip",
    "SkipLayerGuidance": "pred_cond_skip",
    "SmoothedEnergyGuidance": "pred_cond_seg",
}
#: What Diffusers' guiders need besides, and ours have a default for: the layers of the network.
LAYERS: dict[str, dict[str, Any]] = {
    "AutoGuidance": {"auto_guidance_layers": [0], "dropout": 1.0},
    "PerturbedAttentionGuidance": {"perturbed_guidance_layers": [0]},
    "SkipLayerGuidance": {"skip_layer_guidance_layers": [0]},
    "SmoothedEnergyGuidance": {"seg_guidance_layers": [0]},
}


def theirs(guider: Any, third: str) -> list[np.ndarray]:
    found = []
    for step in range(STEPS):
        guider.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(999 - step))
        data = {n: (torch.zeros(1), torch.zeros(1)) for n in ("encoder_hidden_states",)}
        wanted = [batch.__guidance_identifier__ for batch in guider.prepare_inputs(data)]
        names = {theirs: ours for ours, theirs in {**NAMES, "perturbed": third}.items()}
        given = predictions(step)
        out = guider.forward(**{n: torch.from_numpy(given[names[n]]) for n in wanted})
        found.append(out.pred.numpy())
    return found


def ours(guider: Guider, *, tensors: bool) -> list[np.ndarray]:
    found = []
    memory = None
    for step in range(STEPS):
        moment = Moment(index=step, total=STEPS, timestep=999.0 - step)
        given = {name: predictions(step)[name] for name in guider.running(moment)}
        if tensors:
            given = {name: torch.from_numpy(array) for name, array in given.items()}
        out, memory = guider.combine_with_memory(given, moment, memory)
        assert isinstance(out, torch.Tensor) == tensors
        found.append(np.asarray(out))
    assert all(array.dtype == np.float32 for array in found)
    return found


BETWEEN = {"start": 0.2, "stop": 0.8}
CASES = [
    ("ClassifierFreeGuidance", {"guidance_scale": 4.0}),
    ("ClassifierFreeGuidance", {"guidance_rescale": 0.7, "use_original_formulation": True}),
    ("ClassifierFreeGuidance", {"enabled": False}),
    ("ClassifierFreeGuidance", BETWEEN),
    ("AdaptiveProjectedGuidance", {}),
    (
        "AdaptiveProjectedGuidance",
        {"adaptive_projected_guidance_momentum": -0.5, "eta": 0.0, **BETWEEN},
    ),
    (
        "AdaptiveProjectedGuidance",
        {
            "adaptive_projected_guidance_momentum": 0.75,
            "adaptive_projected_guidance_norm_dim": (1,),
            "adaptive_projected_guidance_rescale": 0.5,
            "eta": 0.3,
            "use_original_formulation": True,
            "guidance_rescale": 0.5,
        },
    ),
    (
        "AdaptiveProjectedGuidance",
        {"adaptive_projected_guidance_norm_dim": -1, "adaptive_projected_guidance_rescale": 0.0},
    ),
    ("AdaptiveProjectedMixGuidance", {}),
    (
        "AdaptiveProjectedMixGuidance",
        {"adaptive_projected_guidance_start_step": 2, "guidance_rescale": 0.3, "eta": 0.4},
    ),
    ("ClassifierFreeZeroStarGuidance", {}),
    ("ClassifierFreeZeroStarGuidance", {"zero_init_steps": 3, "guidance_rescale": 0.0, **BETWEEN}),
    ("TangentialClassifierFreeGuidance", {}),
    ("TangentialClassifierFreeGuidance", {"use_original_formulation": True, **BETWEEN}),
    ("MagnitudeAwareGuidance", {}),
    ("MagnitudeAwareGuidance", {"alpha": 0.5, "use_original_formulation": True}),
    ("FrequencyDecoupledGuidance", {}),
    (
        "FrequencyDecoupledGuidance",
        {"guidance_scales": (9.0, 5.0, 2.0), "guidance_rescale": 0.4, "parallel_weights": 0.5},
    ),
    (
        "FrequencyDecoupledGuidance",
        {
            "guidance_rescale": (0.4, 0.1),
            "guidance_rescale_space": "freq",
            "use_original_formulation": True,
        },
    ),
    ("AutoGuidance", {"guidance_scale": 2.0, **BETWEEN}),
    ("PerturbedAttentionGuidance", {"perturbed_guidance_stop": 0.9, "guidance_rescale": 0.2}),
    (
        "PerturbedAttentionGuidance",
        {"perturbed_guidance_stop": 1.0, "guidance_scale": 1.0},
    ),
    ("SkipLayerGuidance", {"skip_layer_guidance_stop": 0.5, **BETWEEN}),
    (
        "SkipLayerGuidance",
        {"skip_layer_guidance_scale": 0.0, "use_original_formulation": True},
    ),
    ("SmoothedEnergyGuidance", {"start": 0.5, "use_original_formulation": True}),
    ("SmoothedEnergyGuidance", {"enabled": False}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize("tensors", [False, True], ids=["numpy", "torch"])
def test_a_run(name: str, settings: dict[str, Any], tensors: bool) -> None:
    peer = getattr(guiders, name)(**{**LAYERS.get(name, {}), **settings})
    expected = theirs(peer, THIRD.get(name, "none"))
    found = ours(getattr(perfuse, name)(**settings), tensors=tensors)
    plain = [predictions(step)["positive"] for step in range(STEPS)]
    guides = settings.get("enabled", True)
    assert (np.abs(np.array(expected) - plain).max() > 1e-3) == guides
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert np.abs(one - other).max() < 2e-5 * max(1.0, np.abs(other).max()), f"step {step}"


#: What ours have a default for, and Diffusers' only for other networks: which layers there are.
OWN = ("layers", "config", "dropout")


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_settings_are_theirs(name: str) -> None:
    """By the same names, with the same defaults."""
    peer = inspect.signature(getattr(guiders, name).__init__).parameters
    expected = {n: one.default for n, one in peer.items() if n != "self"}
    found = {field.name: field.default for field in dataclasses.fields(getattr(perfuse, name))}
    assert set(found) == set(expected)
    for field, value in found.items():
        if not field.endswith(OWN):
            theirs = expected[field]
            assert value == (tuple(theirs) if isinstance(theirs, list) else theirs)


def test_the_pyramid_is_that_of_kornia() -> None:
    """The coarsest level as kornia 0.9.0 computes it: ``build_laplacian_pyramid(x, 2)[1]``."""
    from perfuse.tasks.guiders.fdg import pyramid, summed

    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) ** 1.5
    levels = pyramid(x, 2)
    assert levels[1].flatten() == pytest.approx([12.03506, 15.671137, 29.236036, 34.410904])
    assert np.abs(levels[0] - laplacian(torch.from_numpy(x), 2)[0].numpy()).max() < 1e-5
    odd = np.random.default_rng(0).normal(size=(1, 2, 10, 7)).astype(np.float32)
    assert np.abs(summed(pyramid(odd, 3)) - odd).max() < 1e-6
