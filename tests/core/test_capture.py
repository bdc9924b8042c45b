"""Capture: one code path for every exporter, and no change to what it captures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perfuse.backend import Component
from perfuse.capture import build, capture, example_inputs, replace_tensors
from perfuse.errors import ExportError
from perfuse.sources.checkpoint import Checkpoint

pytestmark = pytest.mark.export


@pytest.fixture
def text_encoder(checkpoint: Callable[[str], Path]) -> Component:
    return Checkpoint.open(checkpoint("sd1")).component("text_encoder")


@pytest.fixture
def vae_encoder(checkpoint: Callable[[str], Path]) -> Component:
    return Checkpoint.open(checkpoint("sd1")).component("vae_encoder")


def test_examples_fit_the_signature_and_share_no_size(vae_encoder: Component) -> None:
    (sample,) = example_inputs(vae_encoder, torch.float16)
    assert sample.dtype == torch.float16
    assert len(set(sample.shape)) == 4


def test_the_captured_program_computes_the_same(vae_encoder: Component) -> None:
    program = capture(vae_encoder)
    sample = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 130, 258)))
    with torch.no_grad():
        (wanted,) = build(vae_encoder)(sample.float())
        (got,) = program.module()(sample.float())
    torch.testing.assert_close(got, wanted)


def test_dimensions_are_those_of_the_signature(vae_encoder: Component) -> None:
    program = capture(vae_encoder)
    (node,) = [n for n in program.graph.nodes if n.name == "sample"]
    batch, channels, height, width = node.meta["val"].shape
    assert channels == 3
    assert all(isinstance(size, torch.SymInt) for size in (batch, height, width))
    # A multiple of two: the graph knows that a height is even.
    assert str(height.node.expr).startswith("2*") and str(width.node.expr).startswith("2*")


def test_fixed_dimensions_are_numbers(vae_encoder: Component) -> None:
    static = {"batch": 1, "height": 16, "width": 32}
    program = capture(replace(vae_encoder, static=static))
    (node,) = [n for n in program.graph.nodes if n.name == "sample"]
    assert tuple(node.meta["val"].shape) == (1, 3, 16, 32)
    assert all(isinstance(size, int) for size in node.meta["val"].shape)


def test_capture_in_float16_leaves_the_users_module_alone(text_encoder: Component) -> None:
    module = build(text_encoder)
    own = replace(text_encoder, build=lambda: module, fingerprint=None)
    program = capture(own, torch.float16)
    floats = [t for t in program.state_dict.values() if t.is_floating_point()]
    assert floats and all(tensor.dtype == torch.float16 for tensor in floats)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_replaced_tensors_keep_their_ties_and_share_no_memory() -> None:
    module: Any = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    module[1].weight = module[0].weight
    copy: Any = replace_tensors(module, torch.zeros_like)
    assert copy[0].weight is copy[1].weight
    assert copy[0].weight is not module[0].weight
    assert not copy[0].bias.any() and module[0].bias.any()


def test_without_a_module_there_is_nothing_to_capture(text_encoder: Component) -> None:
    with pytest.raises(ExportError, match=r"text_encoder.*exported artifact.*checkpoint"):
        capture(replace(text_encoder, build=None))


def test_a_module_that_cannot_be_captured_is_named(text_encoder: Component) -> None:
    class Branches(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> Any:
            states = torch.zeros(*input_ids.shape, 32)
            return (states, states, states[:, 0]) if input_ids.sum() > 3 else None

    with pytest.raises(ExportError, match=r"text_encoder \(CLIPTextModel\).*torch.export raised"):
        capture(replace(text_encoder, build=Branches))
