"""Guidance: how many branches run, and how their predictions become one."""

from typing import Any

import numpy as np
import pytest

from perfuse import Guidance
from perfuse.errors import InputError


@pytest.mark.parametrize(
    ("scale", "embedded", "branches"),
    [(7.5, False, 2), (1.0001, False, 2), (1.0, False, 1), (0, False, 1), (-2, False, 1)]
    + [(7.5, True, 1)],
)
def test_branches(scale: float, embedded: bool, branches: int) -> None:
    assert Guidance(scale=scale, embedded=embedded).branches == branches


def test_one_branch_is_left_alone() -> None:
    prediction = np.random.default_rng(0).normal(size=(3, 4, 2, 2))
    assert Guidance(scale=1.0).combine(prediction) is prediction


def test_two_branches() -> None:
    """Ho & Salimans: away from the unconditional prediction, which comes first in the batch."""
    without = np.array([[1.0, 2.0], [0.0, 0.0]])
    conditional = np.array([[2.0, 0.0], [1.0, -1.0]])
    combined = Guidance(scale=3.0).combine(np.concatenate([without, conditional]))
    assert combined.tolist() == [[4.0, -4.0], [3.0, -3.0]]


def test_rescale_gives_each_item_the_conditional_spread() -> None:
    drawn = np.random.default_rng(0).normal(size=(4, 4, 8, 8)) * [
        [[[1]]],
        [[[2]]],
        [[[3]]],
        [[[5]]],
    ]
    full = Guidance(scale=7.5, rescale=1.0).combine(drawn)
    for item, conditional in zip(full, drawn[2:], strict=True):
        assert item.std(ddof=1) == pytest.approx(conditional.std(ddof=1))
    plain = Guidance(scale=7.5).combine(drawn)
    half = Guidance(scale=7.5, rescale=0.5).combine(drawn)
    assert np.allclose(half, (full + plain) / 2)
    assert not np.allclose(full, plain)


def test_torch_and_numpy_agree() -> None:
    torch = pytest.importorskip("torch")
    drawn = np.random.default_rng(0).normal(size=(4, 4, 8, 8)).astype(np.float32)
    guidance = Guidance(scale=7.5, rescale=0.7)
    tensors = guidance.combine(torch.from_numpy(drawn))
    assert isinstance(tensors, torch.Tensor)
    assert np.abs(tensors.numpy() - guidance.combine(drawn)).max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": float("nan")}, "guidance_scale must be a finite number; got nan"),
        ({"scale": float("inf")}, "guidance_scale"),
        ({"scale": "7"}, "guidance_scale must be a number; got '7'"),
        ({"scale": None}, "guidance_scale"),
        ({"rescale": -0.1}, "guidance_rescale must be between 0 and 1"),
        ({"rescale": 1.1}, "guidance_rescale"),
        ({"rescale": True}, "guidance_rescale"),
    ],
)
def test_what_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Guidance(**settings)
