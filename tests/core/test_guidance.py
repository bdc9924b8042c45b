"""Guiders: which branches run at a step, and how their predictions become one."""

import pickle
import re
from typing import Any

import numpy as np
import pytest

import perfuse
from perfuse import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    EmbeddedGuidance,
    FrequencyDecoupledGuidance,
    Moment,
    NoGuidance,
    PAGGuidance,
    PerturbedAttentionGuidance,
    SmoothedEnergyGuidance,
)
from perfuse.builtin import perfuse_guiders
from perfuse.errors import InputError
from perfuse.tasks.choosing import find_guider

MOMENT = Moment(index=0, total=10, timestep=999.0)


def guidance(scale: float, rescale: float = 0.0, **more: Any) -> ClassifierFreeGuidance:
    return ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=rescale, **more)


def combined(guider: Any, both: np.ndarray) -> Any:
    """``[without | with the prompt]`` along the batch to one prediction."""
    half = len(both) // 2
    return guider.combine({"negative": both[:half], "positive": both[half:]}, MOMENT)


@pytest.mark.parametrize(("scale", "branches"), [(7.5, 2), (1.0001, 2), (1.0, 1), (0, 1), (-2, 1)])
def test_branches(scale: float, branches: int) -> None:
    assert len(guidance(scale).branches) == branches
    assert len(guidance(scale).running(MOMENT)) == branches
    assert len(EmbeddedGuidance(guidance_scale=scale).branches) == 1
    assert EmbeddedGuidance(guidance_scale=scale).embedded == scale


def test_one_branch_is_left_alone() -> None:
    prediction = np.random.default_rng(0).normal(size=(3, 4, 2, 2))
    for guider in (guidance(1.0), EmbeddedGuidance(), NoGuidance()):
        assert guider.combine({"positive": prediction}, MOMENT) is prediction


def test_two_branches() -> None:
    """Ho & Salimans: away from the unconditional prediction."""
    without = np.array([[1.0, 2.0], [0.0, 0.0]])
    conditional = np.array([[2.0, 0.0], [1.0, -1.0]])
    both = np.concatenate([without, conditional])
    assert combined(guidance(3.0), both).tolist() == [[4.0, -4.0], [3.0, -3.0]]
    # c + 2 (c - u) is u + 3 (c - u)
    original = guidance(2.0, use_original_formulation=True)
    assert combined(original, both).tolist() == [[4.0, -4.0], [3.0, -3.0]]


def test_only_between_two_steps() -> None:
    guider = guidance(3.0, start=0.2, stop=0.5)
    counts = [
        len(guider.running(Moment(index=index, total=10, timestep=0.0))) for index in range(10)
    ]
    assert counts == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    assert len(guider.branches) == 2


def test_rescale_gives_each_item_the_conditional_spread() -> None:
    spread = np.array([1.0, 2.0, 3.0, 5.0]).reshape(4, 1, 1, 1)
    drawn = np.random.default_rng(0).normal(size=(4, 4, 8, 8)) * spread
    full = combined(guidance(7.5, 1.0), drawn)
    for item, conditional in zip(full, drawn[2:], strict=True):
        assert item.std(ddof=1) == pytest.approx(conditional.std(ddof=1))
    plain = combined(guidance(7.5), drawn)
    half = combined(guidance(7.5, 0.5), drawn)
    assert np.allclose(half, (full + plain) / 2)
    assert not np.allclose(full, plain)


def test_torch_and_numpy_agree() -> None:
    torch = pytest.importorskip("torch")
    drawn = np.random.default_rng(0).normal(size=(4, 4, 8, 8)).astype(np.float32)
    guider = guidance(7.5, 0.7)
    tensors = combined(guider, torch.from_numpy(drawn))
    assert isinstance(tensors, torch.Tensor)
    assert np.abs(tensors.numpy() - combined(guider, drawn)).max() < 1e-5


@pytest.mark.parametrize("name", [one.name for one in perfuse_guiders()])
def test_guiders_are_plain_data(name: str) -> None:
    guider = find_guider(name)
    assert pickle.loads(pickle.dumps(guider)) == guider == find_guider(name)
    assert hash(guider) == hash(find_guider(name))
    assert getattr(perfuse, type(guider).__name__) is type(guider)
    names = [branch.name for branch in guider.branches]
    for index in range(10):
        running = guider.running(Moment(index=index, total=10, timestep=999.0 - index))
        assert running
        assert list(running) == [name for name in names if name in running]


def test_what_a_guider_remembers_is_the_runs() -> None:
    """The same guider begins anew with each run."""
    guider = AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=0.5)
    draw = np.random.default_rng(0)
    steps = [
        {n: draw.normal(size=(1, 4, 4, 4)) for n in ("negative", "positive")} for _ in range(2)
    ]

    def run() -> list[Any]:
        memory, found = None, []
        for both in steps:
            out, memory = guider.combine_with_memory(both, MOMENT, memory)
            found.append(out)
        return found

    first, second = run(), run()
    assert np.array_equal(first, second)
    assert np.array_equal(first[0], guider.combine(steps[0], MOMENT))
    assert not np.allclose(first[1], guider.combine(steps[1], MOMENT))


def test_settings_as_text() -> None:
    assert find_guider("fdg:guidance_scales=9+4+2,start=0.1+0.2+0.3") == FrequencyDecoupledGuidance(
        guidance_scales=(9.0, 4.0, 2.0), start=(0.1, 0.2, 0.3)
    )
    assert find_guider("fdg:parallel_weights=0.5") == FrequencyDecoupledGuidance(
        parallel_weights=0.5
    )
    assert find_guider("pag:pag_applied_layers=mid+up_blocks.0") == PAGGuidance(
        pag_applied_layers=("mid", "up_blocks.0")
    )
    axes = AdaptiveProjectedGuidance(adaptive_projected_guidance_norm_dim=(1, 2))
    assert find_guider("apg:adaptive_projected_guidance_norm_dim=1+2") == axes
    with pytest.raises(InputError, match=r"guidance_scales is of type float\+float"):
        find_guider("fdg:guidance_scales=high")


def test_diffusers_configs_name_layers() -> None:
    where = "mid_block.attentions.0.transformer_blocks"
    guider = PerturbedAttentionGuidance(
        perturbed_guidance_config={"fqn": where, "indices": [1], "skip_attention_scores": True}
    )
    layer = guider.perturbed_guidance_layers[0]
    assert re.search(layer, f"{where}.1.attn1")
    assert not re.search(layer, f"{where}.10.attn1")
    assert not re.search(layer, f"up.{where}.1")
    with pytest.raises(InputError, match="name them: fqn"):
        PerturbedAttentionGuidance(perturbed_guidance_config={"indices": [1], "fqn": "auto"})
    with pytest.raises(InputError, match=r"dropout has to be 1\.0"):
        AutoGuidance(auto_guidance_config={"indices": [1], "fqn": where, "dropout": 0.5})


def test_pag_s_scale_falls_with_the_timestep() -> None:
    guider = PAGGuidance(pag_scale=3.0, pag_adaptive_scale=0.01)
    given = {
        name: np.full((1, 1), i, np.float32) for i, name in enumerate(["positive", "perturbed"])
    }
    late = Moment(index=8, total=10, timestep=600.0)
    assert "perturbed" in guider.running(MOMENT)
    assert "perturbed" not in guider.running(late)
    assert guider.combine(given, MOMENT) == pytest.approx(-(3.0 - 0.01))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number; got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"guidance_scale": "7"}, "guidance_scale must be a number; got '7'"),
        ({"guidance_scale": None}, "guidance_scale"),
        ({"guidance_rescale": -0.1}, "guidance_rescale must be between 0 and 1"),
        ({"guidance_rescale": 1.1}, "guidance_rescale"),
        ({"guidance_rescale": True}, "guidance_rescale"),
        ({"start": 0.5, "stop": 0.2}, "start must not be larger than stop"),
        ({"stop": 2}, "stop must be between 0 and 1"),
    ],
)
def test_what_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassifierFreeGuidance(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (AdaptiveProjectedGuidance, {"eta": "1"}, "eta must be a number"),
        (
            AdaptiveProjectedGuidance,
            {"adaptive_projected_guidance_norm_dim": (0, 1)},
            "axis 0, along which the pictures lie",
        ),
        (FrequencyDecoupledGuidance, {"start": (0.0, 0.1, 0.2)}, "start has 3 numbers"),
        (FrequencyDecoupledGuidance, {"guidance_rescale_space": "x"}, "must be data or freq"),
        (PAGGuidance, {"pag_scale": -1.0}, "pag_scale must be at least 0"),
        (PAGGuidance, {"pag_applied_layers": 3}, "parts of the names of layers"),
        (PAGGuidance, {"pag_applied_layers": "("}, "no regular expression"),
        (SmoothedEnergyGuidance, {"seg_blur_sigma": 0.0}, "seg_blur_sigma must be larger than 0"),
        (AutoGuidance, {"dropout": 0.3}, "a random part would be another on each engine"),
        (
            PerturbedAttentionGuidance,
            {"perturbed_guidance_start": 0.5},
            "perturbed_guidance_start must not be larger than perturbed_guidance_stop",
        ),
    ],
)
def test_what_other_guiders_cannot_use(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**settings)


def test_a_pyramid_of_more_levels_than_there_are_sizes() -> None:
    guider = FrequencyDecoupledGuidance(guidance_scales=(3.0,) * 5)
    both = {name: np.ones((1, 4, 8, 8), np.float32) for name in ("negative", "positive")}
    with pytest.raises(InputError, match="5 guidance_scales were given, each for a level"):
        guider.combine(both, MOMENT)
