"""Calls taken apart and put together again, and the sizes that a graph is right for."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from perfuse.bridge.calls import Answer, Call
from perfuse.bridge.guards import Guards
from perfuse.errors import UnsupportedError


def function(sample, timestep, added=None, *, flag=True):  # type: ignore[no-untyped-def]
    return sample, timestep, added, flag


def test_tensors_apart_from_the_rest() -> None:
    a, b, c = torch.zeros(2, 3), torch.ones(4), torch.ones(5, 1)
    call = Call.of(function, (a, 7), {"added": {"ids": [b, c]}, "flag": False})
    assert call.names == ("sample", "added_ids_0", "added_ids_1")
    assert call.shapes == ((2, 3), (4,), (5, 1))
    args, kwargs = call.arguments([a + 1, b + 1, c + 1])
    assert torch.equal(args[0], a + 1) and args[1] == 7 and kwargs["flag"] is False
    assert torch.equal(kwargs["added"]["ids"][1], c + 1)


def test_complex_numbers_are_pairs_of_real_ones() -> None:
    turned = torch.polar(torch.ones(3), torch.arange(3.0))
    call = Call.of(function, (torch.zeros(2, 3), 1), {"added": turned.conj()})
    assert call.shapes == ((2, 3), (3, 2)) and call.tensors[1].dtype is torch.float32
    assert torch.equal(call.arguments(call.tensors)[1]["added"], turned.conj())
    plain = Call.of(function, (torch.zeros(2, 3), 1), {"added": torch.view_as_real(turned)})
    assert plain.key != call.key


def test_what_a_graph_is_made_for_is_in_the_key() -> None:
    def key(*args, **kwargs):  # type: ignore[no-untyped-def]
        return Call.of(function, args, kwargs).key

    x = torch.zeros(2, 3)
    same = key(x, 1)
    assert same == key(torch.ones(4, 3), 1)  # other numbers and other sizes are the same graph's
    others = [
        key(x, 2),
        key(x, True),
        key(x, 1.0),
        key(x, 1, flag=False),
        key(x, 1, added=x),
        key(x.half(), 1),
        key(x[0], 1),
        key([x], 1),
        key(sample=x, timestep=1),
    ]
    assert same not in others


def test_an_argument_that_no_graph_takes_is_named() -> None:
    with pytest.raises(UnsupportedError, match="it was given added_a, a ndarray"):
        Call.of(function, (torch.zeros(1), 1), {"added": {"a": np.zeros(2)}})


def test_an_answer_is_put_together_again() -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    given = torch.arange(8.0).reshape(1, 8, 1, 1)
    distribution = DiagonalGaussianDistribution(given)
    output = diffusers.models.modeling_outputs.AutoencoderKLOutput(latent_dist=distribution)
    answer = Answer.of(output)
    again = answer.filled([given * 2])
    assert type(again) is type(output)
    assert torch.equal(again.latent_dist.mean, given[:, :4] * 2)


def test_guards_know_sizes_ranges_and_conditions() -> None:
    guards = Guards(
        shapes=(("s0", 4, "2*s1"), ("s0",)),
        ranges={"s0": (2, 8), "s1": (1, None)},
        conditions=("(t0_2 % 4) == 0", "(1 + (((-1) + t0_2) // 2)) != 1"),
    )
    assert guards.fit(((2, 4, 8), (2,)))
    wrong = [
        ((2, 4, 8), (3,)),  # two sizes that have to be one
        ((2, 5, 8), (2,)),  # a size that is fixed
        ((9, 4, 8), (9,)),  # beyond a range
        ((1, 4, 8), (1,)),
        ((2, 4, 6), (2,)),  # a condition
        ((2, 4), (2,)),  # a rank
        ((2, 4, 8),),
    ]
    assert not any(guards.fit(shapes) for shapes in wrong)


@pytest.mark.parametrize(
    "text", ["__import__('os')", "t0_0.__class__", "(lambda: 1)()", "[1]", "t9_9 == 1", "open"]
)
def test_a_condition_is_arithmetic_and_nothing_else(text: str) -> None:
    guards = Guards(shapes=((2,),), ranges={}, conditions=(text,))
    with pytest.raises(UnsupportedError, match="cannot be checked"):
        guards.fit(((2,),))


def test_guards_of_a_captured_graph() -> None:
    from torch.export import Dim, export

    class Halves(torch.nn.Module):
        def forward(self, *tensors):  # type: ignore[no-untyped-def]
            x, y = tensors
            return x.reshape(x.shape[0], -1, 2).sum(-1) + y[:, None]

    shapes = (({0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO}),)
    program = export(
        Halves(), (torch.ones(3, 8), torch.ones(3)), dynamic_shapes=shapes, strict=False
    )
    guards = Guards.of(program)
    assert guards.fit(((5, 12), (5,))) and guards.fit(((3, 8), (3,)))
    assert not guards.fit(((5, 13), (5,))) and not guards.fit(((5, 12), (4,)))
