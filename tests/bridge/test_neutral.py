"""Where perfuse has a network of its own, one graph takes every size; what was changed is captured as it is."""

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
from perfuse.bridge.stand_in import StandIn
from perfuse_conformance.bridged.measure import pipeline_of
from perfuse_conformance.bridged.parts import clip
from perfuse_conformance.bridged.recipe import recipes

pytestmark = pytest.mark.export

Make = Callable[[str], Path]


@pytest.fixture
def unet(checkpoint: Make, tmp_path: Path) -> Any:
    module = diffusers.UNet2DModel.from_pretrained(checkpoint("tiny") / "unet")
    return perfuse.accelerate(module, "onnxruntime", store=ArtifactStore(tmp_path))


def equals(unet: Any, size: int = 8, batch: int = 1, timestep: int = 500, **given: Any) -> bool:
    generator = torch.Generator().manual_seed(size)
    sample = torch.randn(batch, unet.config.in_channels, size, size, generator=generator)
    at = torch.tensor(timestep)
    with torch.no_grad():
        found = unet(sample, at, **given)
        expected = type(unet).forward(unet, sample, at, **given)
    return torch.allclose(found[0], expected[0], atol=1e-5)


def test_one_graph_for_every_size(unet: Any) -> None:
    assert equals(unet) and equals(unet, 16, 2) and equals(unet, 8, 3, timestep=3)
    (row,) = unet.perfuse.report()
    assert (row.graphs, row.own_graphs, row.calls, row.torch_calls) == (1, 1, 3, 0)
    assert "1 graphs, perfuse's own" in str(row)
    assert equals(unet, return_dict=False)  # another way to call it


def test_the_graph_is_the_one_that_the_checkpoint_has(checkpoint: Make, tmp_path: Path) -> None:
    """Weights are bound to it where they lie: nothing is captured twice, and none is written."""
    native = perfuse.DiffusionPipeline.from_pretrained(
        checkpoint("tiny"), backend="onnxruntime", store=ArtifactStore(tmp_path)
    )
    native(num_inference_steps=1, seed=0)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    pipe = diffusers.DiffusionPipeline.from_pretrained(checkpoint("tiny"))
    perfuse.accelerate(pipe, "onnxruntime", store=ArtifactStore(tmp_path))
    assert equals(pipe.unet)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_large_call_is_compared_at_a_small_size(
    unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    usual = StandIn._answer

    def watched(self: StandIn, call: Any) -> Any:
        asked.append(call.shapes[0])
        return usual(self, call)

    monkeypatch.setattr(StandIn, "_answer", watched)
    assert equals(unet, 32, 2)
    assert asked == [(2, unet.config.in_channels, 16, 16)]


def test_changed_weights(unet: Any) -> None:
    assert equals(unet)
    with torch.no_grad():
        unet.conv_in.weight.mul_(1.2)
    assert equals(unet)
    (row,) = unet.perfuse.report()
    assert (row.graphs, row.own_graphs, row.torch_calls) == (2, 2, 0)


def test_a_class_whose_code_was_replaced_is_captured_as_it_is(
    unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(unet.mid_block)
    usual = kind.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            usual(self, *args, **kwargs) * 1.00001
        )  # too little for the check of the first answer

    monkeypatch.setattr(kind, "forward", scaled)
    assert equals(unet)
    (row,) = unet.perfuse.report()
    assert (row.graphs, row.own_graphs) == (1, 0)


def test_a_layer_that_was_put_in_is_captured_as_it_is(unet: Any) -> None:
    unet.conv_out = torch.nn.Sequential(unet.conv_out, torch.nn.Tanh())
    assert equals(unet)
    (row,) = unet.perfuse.report()
    assert (row.graphs, row.own_graphs, row.torch_calls) == (1, 0, 0)


def test_a_text_encoder_of_transformers(tmp_path: Path) -> None:
    """One graph for every length, with or without all hidden states; the module stays as it was."""
    made = clip(projected=True)
    made.save_pretrained(tmp_path / "encoder")
    # What was read from a file knows of it.
    encoder = type(made).from_pretrained(tmp_path / "encoder").train()
    perfuse.accelerate(encoder, "onnxruntime", store=ArtifactStore(tmp_path))

    def same(batch: int, tokens: int, **asked: Any) -> bool:
        ids = torch.randint(2, 9, (batch, tokens), generator=torch.Generator().manual_seed(tokens))
        with torch.no_grad():
            found = encoder(ids, **asked)
            expected = type(encoder).forward(encoder, ids, **asked)
        states = zip(found.hidden_states or (), expected.hidden_states or (), strict=True)
        pairs = [(found.text_embeds, expected.text_embeds), (found[1], expected[1]), *states]
        return type(found) is type(expected) and all(
            torch.allclose(a, b, atol=1e-5) for a, b in pairs
        )

    assert same(2, 7) and same(1, 16) and same(3, 4, attention_mask=None)
    (row,) = encoder.perfuse.report()
    assert (row.graphs, row.own_graphs, row.torch_calls) == (2, 2, 0)  # two ways to call it
    assert same(2, 7, output_hidden_states=True) and same(2, 9, output_hidden_states=True)
    (row,) = encoder.perfuse.report()
    assert (row.graphs, row.own_graphs, row.torch_calls) == (3, 3, 0)
    assert encoder.training
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[:, 5:] = 0
    assert same(2, 7, attention_mask=mask)  # perfuse's graph takes none: captured as it is
    (row,) = encoder.perfuse.report()
    assert (row.graphs, row.own_graphs, row.torch_calls) == (4, 3, 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "name",
    [
        "FluxPipeline",
        "StableDiffusion3Pipeline",
        "SanaPipeline",
        "Lumina2Pipeline",
        "ZImagePipeline",
    ],
)
def test_transformers(name: str, engine: str, tmp_path: Path) -> None:
    """Diffusers' call becomes that of perfuse's network: lists, masks and positions with it."""
    made, pipe = pipeline_of(next(one for one in recipes() if one.name == name))
    given = {key: value for key, value in made.call.items() if value is not torch.Generator}

    def draw() -> Any:
        return pipe(**given, generator=torch.Generator().manual_seed(0))[0]

    expected = draw()
    perfuse.accelerate(pipe, engine, store=ArtifactStore(tmp_path))
    assert abs(draw() - expected).max() < 2 / 255
    assert abs(draw() - expected).max() < 2 / 255
    rows = {row.name: row for row in pipe.perfuse.report()}
    denoiser = rows["transformer"]
    assert denoiser.torch_calls == 0
    assert denoiser.own_graphs == denoiser.graphs
    for row in rows.values():
        if row.class_name == "T5EncoderModel":
            assert row.own_graphs == row.graphs == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["sd1-small", "sdxl", "lcm"])
def test_pipelines(kind: str, checkpoint: Make, tmp_path: Path) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(checkpoint(kind), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def draw(**given: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return torch.from_numpy(
            pipe(
                "red", num_inference_steps=2, generator=generator, output_type="np", **given
            ).images
        )

    sizes = [(16, 16), (16, 24), (24, 24)]
    expected = [draw(height=height, width=width) for height, width in sizes]
    perfuse.accelerate(pipe, "openvino", store=ArtifactStore(tmp_path))
    for (height, width), image in zip(sizes, expected, strict=True):
        assert float((draw(height=height, width=width) - image).abs().max()) < 2 / 255
    rows = {row.name: row for row in pipe.perfuse.report()}
    assert rows["unet"].own_graphs == rows["unet"].graphs == 1
    assert rows["vae_decode"].own_graphs == rows["vae_decode"].graphs == 1
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    found = draw(height=16, width=16)
    pipe.perfuse.restore()
    assert float((found - draw(height=16, width=16)).abs().max()) < 2 / 255
