"""Graphs apart from weights: one program, ``model.pte``, for every checkpoint of a configuration."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import perfuse.models
import pytest
import torch
from perfuse import DiffusionPipeline
from perfuse.backend import Component, Target
from perfuse.errors import ArtifactError
from perfuse.plugins import host
from perfuse.sources import ArtifactStore, Checkpoint
from safetensors.numpy import save_file
from torch import nn

from perfuse_executorch.exporter import ExecuTorchExporter
from perfuse_executorch.weights import DATA, read_layout

Make = Callable[[str], Path]
STATIC = {"batch": 2, "height": 8, "width": 6}


def inputs_of(component: Component) -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = {one.name: one.resolve(STATIC) for one in component.spec.signature.inputs}
    found = {
        name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }
    return {**found, "timestep": np.array([946.5, 13.0], np.float32)}


def distance(found: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value."""
    one, other = (np.asarray(values["out_sample"]) for values in (found, wanted))
    return float(np.abs(one - other).max() / np.abs(other).max())


def of(folder: Path, **settings: Any) -> Component:
    return dataclasses.replace(Checkpoint.open(folder).component("unet"), static=STATIC, **settings)


@pytest.fixture(scope="module")
def other(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest checkpoint, with other weights."""
    from perfuse_conformance.checkpoints import randomise

    folder = tmp_path_factory.mktemp("other") / "tiny"
    shutil.copytree(checkpoint("tiny"), folder)
    unet = perfuse.models.UNet2DModel.from_pretrained(folder, subfolder="unet")
    randomise(unet, 5).save_pretrained(folder / "unet")
    return folder


def on(component: Component, store: ArtifactStore, backend: str = "executorch") -> Any:
    return host().backend(backend).prepare(component, Target(backend=backend), store)


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("float16", marks=pytest.mark.exhaustive)]
)
def test_a_second_checkpoint_is_bound(
    checkpoint: Make,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    store = ArtifactStore(tmp_path / "cache")
    first, second = (of(folder, precision=precision) for folder in (checkpoint("tiny"), other))
    given = inputs_of(first)
    before = on(first, store)(**given)
    (graph,) = store.root.rglob("model.pte")
    assert graph.with_name(DATA).stat().st_size < read_layout(graph).size / 2
    there = {file: file.stat().st_mtime_ns for file in store.root.rglob("*") if file.is_file()}
    monkeypatch.setattr(ExecuTorchExporter, "export", None)
    monkeypatch.setattr(ExecuTorchExporter, "export_graph", None)
    after = on(second, store)(**given)
    again = on(first, store)(**given)
    assert {f: f.stat().st_mtime_ns for f in store.root.rglob("*") if f.is_file()} == there
    limit = 5e-6 if precision == "float32" else 1e-2
    for component, found in ((first, before), (second, after)):
        wanted = on(dataclasses.replace(component, precision="float32"), store, "torch")(**given)
        assert distance(found, wanted) < limit
    assert np.array_equal(before["out_sample"], again["out_sample"])
    assert distance(after, before) > 0.1


class Named(nn.Module):
    """A layer whose name has capitals, as the modulations of Z-Image have."""

    def __init__(self) -> None:
        super().__init__()
        self.adaLN = nn.Linear(STATIC["width"], STATIC["width"])

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.adaLN(sample),)


def test_weights_with_capitals_in_their_names_are_apart(checkpoint: Make, tmp_path: Path) -> None:
    _, weights = ExecuTorchExporter().export_graph(of(checkpoint("tiny"), build=Named), tmp_path)
    assert {one.tensor for one in weights.constants.values()} == {"adaLN.weight", "adaLN.bias"}


def test_folders_and_adapters(checkpoint: Make, tmp_path: Path) -> None:
    """An export has its weights beside the program, and takes LoRAs without another export."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    pipe.export(tmp_path / "out", to="executorch", height=8, width=8, batch=1)
    [folder] = [file.parent for file in (tmp_path / "out").rglob("model.pte")]
    assert {"model.pte", "model.ptd", "model.json", "weights.json"} <= {
        f.name for f in folder.iterdir()
    }
    random = np.random.default_rng(0)
    module = pipe.unet
    layer, shape = next(
        (name, one.weight.shape)
        for name, one in module.named_modules()
        if isinstance(one, nn.Conv2d) and one.weight.shape[1] > 3
    )
    file = tmp_path / "one.safetensors"
    name = f"lora_unet_{layer.replace('.', '_')}"
    save_file(
        {
            f"{name}.lora_down.weight": random.normal(size=(2, *shape[1:])).astype(np.float32),
            f"{name}.lora_up.weight": random.normal(size=(shape[0], 2, 1, 1)).astype(np.float32),
        },
        file,
    )
    drawn = {}
    call: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    for model, backend in ((checkpoint("tiny"), "torch:cpu"), (tmp_path / "out", "executorch")):
        one = DiffusionPipeline.from_pretrained(model, backend=backend)
        before = one(**call).images
        one.load_lora_weights(file)
        drawn[backend] = before, one(**call).images
        one.unload_lora_weights()
        assert np.array_equal(one(**call).images, before)
    for theirs, ours in zip(*drawn.values(), strict=True):
        assert np.abs(theirs - ours).max() < 1e-4
    assert np.abs(drawn["executorch"][0] - drawn["executorch"][1]).max() > 1e-3


def test_a_folder_without_its_weights(checkpoint: Make, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    pipe.export(tmp_path / "out", to="executorch", height=8, width=8, batch=1)
    (data,) = (tmp_path / "out").rglob("model.ptd")
    whole = data.read_bytes()
    for content, says in (
        (whole[:-4] + b"\0\0\0\1", "is not the file that was exported"),
        (None, "model.ptd"),
    ):
        data.unlink()
        if content is not None:
            data.write_bytes(content)
        with pytest.raises(ArtifactError, match=says):
            DiffusionPipeline.from_pretrained(tmp_path / "out", backend="executorch")(
                num_inference_steps=1
            )


def test_weights_inside(checkpoint: Make, tmp_path: Path) -> None:
    """One file, for who has a place for one."""
    component = of(checkpoint("tiny"), options={"weights": "inside"})
    main = ExecuTorchExporter().export(component, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.pte"]
    with torch.no_grad():
        weights = sum(p.numel() for p in component.build().parameters()) if component.build else 0
    assert main.stat().st_size > weights
