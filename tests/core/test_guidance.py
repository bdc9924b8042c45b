"""Guiders: which branches run at a step, and how their predictions become one."""

import pickle
from typing import Any

import numpy as np
import pytest

from perfuse import ClassifierFreeGuidance, EmbeddedGuidance, Moment, NoGuidance
from perfuse.errors import InputError

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


def test_guiders_are_plain_data() -> None:
    for guider in (guidance(3.0, start=0.1), EmbeddedGuidance(), NoGuidance()):
        assert pickle.loads(pickle.dumps(guider)) == guider
        assert hash(guider) == hash(guider)


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
