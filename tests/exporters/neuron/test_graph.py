"""The operators that the Neuron compiler is given in place of PyTorch's: the same results."""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

from perfuse.backend import Component
from perfuse.models.registry import describe
from perfuse.sources.checkpoint import Checkpoint
from perfuse_exporters.neuron.graph import Traced, attention, core_graph, first_largest, nearest
from perfuse_exporters.neuron.layout import input_names


@pytest.mark.parametrize("masked", ["no", "bool", "float", "causal", "scaled"])
def test_attention_is_torchs_own(masked: str) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    given = {
        "no": {},
        "bool": {"attn_mask": torch.rand(5, 7) > 0.3},
        "float": {"attn_mask": torch.randn(2, 1, 5, 7)},
        "causal": {"is_causal": True},
        "scaled": {"scale": 0.7},
    }[masked]
    expected = F.scaled_dot_product_attention(query, key, value, **given)
    torch.testing.assert_close(attention(query, key, value, **given), expected)


def test_attention_refuses_what_it_would_compute_otherwise() -> None:
    one = torch.randn(1, 1, 2, 4)
    with pytest.raises(NotImplementedError, match="dropout"):
        attention(one, one, one, dropout_p=0.1)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
@pytest.mark.parametrize("arguments", [{"dim": -1}, {"dim": 0}, {"dim": 1, "keepdim": True}, {}])
def test_the_first_of_the_largest_is_argmax(dtype: torch.dtype, arguments: dict[str, int]) -> None:
    x = torch.tensor([[3, 7, 7, 1], [0, 0, 0, 0], [-5, -9, -5, -5]], dtype=dtype)
    found = first_largest(x, **arguments)
    assert found.dtype == torch.int64
    torch.testing.assert_close(found, x.argmax(**arguments))


@pytest.mark.parametrize("size", [(6, 10), (3, 5), (9, 5)])
def test_nearest_is_torchs_own(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 3, 5)
    assert torch.equal(nearest(x, size), F.interpolate(x, size=size, mode="nearest"))


class _Model(torch.nn.Module):
    """Uses each of the three, and a size that is no multiple."""

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        odd = F.interpolate(sample, size=(5, 7), mode="nearest")
        even = F.interpolate(odd, scale_factor=2, mode="nearest")
        rows = F.scaled_dot_product_attention(even, even, even)
        return (rows * rows.argmax(dim=-1, keepdim=True),)


def _component(checkpoint: Callable[[str], Path], kind: str, name: str) -> Component:
    return Checkpoint.open(checkpoint(kind)).component(name)


def test_a_traced_component_computes_what_the_component_computes(
    checkpoint: Callable[[str], Path],
) -> None:
    """In the structure that optimum-neuron's pipelines read."""
    text = _component(checkpoint, "words", "text_encoder")
    assert text.build is not None
    module, ids = text.build(), torch.tensor([[3, 1, 12, 13, 13]])
    last, penultimate, pooled = module(ids)
    found = Traced(module, text)(ids)
    torch.testing.assert_close(found[0], last)
    torch.testing.assert_close(found[1], pooled)
    torch.testing.assert_close(found[2][-2], penultimate)
    decoder = _component(checkpoint, "words", "vae_decoder")
    assert decoder.build is not None
    module, latent = decoder.build(), torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(Traced(module, decoder)(latent)["sample"], module(latent)[0])


def test_added_conditions_come_last() -> None:
    config = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 256,
        "time_cond_proj_dim": 16,
    }
    (spec,) = describe("UNet2DConditionModel", "unet", "unet", config)
    assert spec.signature.input_names[-1] == "timestep_cond"
    assert input_names(spec) == (
        "sample",
        "timestep",
        "encoder_hidden_states",
        "timestep_cond",
        "text_embeds",
        "time_ids",
    )
    arrays = {name: torch.full((1,), float(i)) for i, name in enumerate(input_names(spec))}
    traced = Traced(_Echo(), Component(spec=spec))
    found = traced(*arrays.values())
    assert [float(one) for one in found] == [float(arrays[n]) for n in spec.signature.input_names]


class _Echo(torch.nn.Module):
    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return inputs


@pytest.mark.export
def test_the_core_graph_has_none_of_the_three() -> None:
    program = torch.export.export(_Model(), (torch.randn(1, 2, 3, 3),), strict=False)
    graph = core_graph(program)
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("upsample_nearest2d" in name for name in names) == 1  # the size that is no multiple
    assert not [name for name in names if "argmax" in name or "attention" in name or "any" in name]
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(graph.module()(x), program.module()(x))
