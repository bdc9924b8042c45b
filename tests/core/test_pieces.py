"""Cutting a graph into pieces, and which of them stay in memory."""

import pytest

from perfuse.contract.pieces import Node, Turns, cut, kept_of, most_of

#: Three layers with a weight each, and a residual of the first.
LAYERS = (
    Node(reads=("x", "w1"), makes=("a",)),
    Node(reads=("w2",), makes=("turned",)),
    Node(reads=("a", "turned"), makes=("b",)),
    Node(reads=("x",), makes=("size",), measures=True),
    Node(reads=("b", "size", "w3"), makes=("c",)),
    Node(reads=("c", "a", "size"), makes=("y",)),
)
SIZES = {"w1": 4, "w2": 6, "w3": 4}


def pieces(most: int) -> list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], int]]:
    found = cut(LAYERS, sizes=SIZES, inputs=["x"], outputs=["y"], most=most)
    return [(one.inputs, one.outputs, one.weights, one.size) for one in found]


def test_a_graph_that_fits_is_one_piece() -> None:
    assert pieces(14) == [(("x",), ("y",), ("w1", "w2", "w3"), 14)]


def test_values_cross_cuts_and_what_follows_from_weights_and_shapes_does_not() -> None:
    assert pieces(6) == [
        (("x",), ("a",), ("w1",), 4),
        (("a",), ("b",), ("w2",), 6),
        (("x", "b", "a"), ("y",), ("w3",), 4),
    ]
    found = cut(LAYERS, sizes=SIZES, inputs=["x"], outputs=["y"], most=6)
    assert [one.nodes for one in found] == [(0,), (1, 2), (3, 4, 5)]


def test_one_operation_may_be_larger_than_a_piece() -> None:
    assert [one[3] for one in pieces(1)] == [4, 6, 4]
    assert [one[3] for one in pieces(10)] == [10, 4]


def test_an_output_that_follows_from_weights_alone_is_made_once() -> None:
    nodes = (Node(reads=("w1",), makes=("y",)), Node(reads=("x", "w2"), makes=("z",)))
    found = cut(nodes, sizes=SIZES, inputs=["x"], outputs=["y", "z"], most=6)
    assert [one.outputs for one in found] == [("y",), ("z",)]


def test_the_first_pieces_stay() -> None:
    assert kept_of([5, 5, 5, 5], 20) == 4 and kept_of([5, 5, 5, 5], 19) == 2
    assert kept_of([5, 5, 5, 5], 9) == 0 and kept_of([5, 1, 9], 14) == 1
    assert most_of(SIZES, 14) == 14 and most_of(SIZES, 12) == 3


def test_the_others_take_turns() -> None:
    turns: Turns[int] = Turns([5, 5, 5, 5], 15, name="unet")
    loaded: list[int] = []

    def take(number: int) -> int:
        return turns.take(number, lambda: loaded.append(number) or number)  # type: ignore[func-returns-value]

    for _ in range(2):
        assert [take(number) for number in (0, 1, 2, 2, 3)] == [0, 1, 2, 2, 3]
    assert loaded == [0, 1, 2, 3, 2, 3]
    assert turns.details["pieces"] == 4 and turns.details["kept"] == 2
    turns.close()
    assert take(0) == 0 and loaded[-1] == 0


def test_a_piece_that_cannot_be_loaded_leaves_the_others() -> None:
    turns: Turns[str] = Turns([5, 5], 5, name="unet")

    def fails() -> str:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        turns.take(0, fails)
    assert turns.take(0, lambda: "there") == "there"
