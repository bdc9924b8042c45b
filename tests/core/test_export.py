"""Exports on the way: reused where nothing changed, made anew where something did."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import Artifact, ArtifactStore, Checkpoint, DiffusionPipeline, exported
from perfuse.backend import Component
from perfuse.errors import ExportError, InputError
from perfuse.progress import Progress, reporting
from perfuse.run.export import _fingerprint

pytestmark = pytest.mark.export

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

Make = Callable[[str], Path]

GIVEN = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}


def draw(folder: Path, store: ArtifactStore, backend: str = "onnxruntime:cpu") -> np.ndarray:
    pipe = DiffusionPipeline.from_pretrained(folder, backend=backend, store=store)
    drawn: np.ndarray = pipe(**GIVEN).images
    return drawn


def change_weights(folder: Path) -> None:
    """Other numbers in a file of the same size."""
    from safetensors.numpy import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: array * np.float32(0.5) for name, array in load_file(path).items()}
    size = path.stat().st_size
    save_file(tensors, path, metadata={"format": "pt"})
    assert path.stat().st_size == size


def test_made_once_for_whatever_weights(copy_of: Make, tmp_path: Path) -> None:
    """Nothing stale is used, and what does not depend on the weights is not made again."""
    folder, store, made = copy_of("tiny"), ArtifactStore(tmp_path / "store"), list[Progress]()

    def report(progress: Progress) -> None:
        if progress.stage == "export" and progress.seconds is not None:
            made.append(progress)

    with reporting(report):
        first = draw(folder, store)
        assert [progress.subject for progress in made] == ["unet"]
        assert "onnx" in made[0].message
        assert (draw(folder, store) == first).all()
        assert len(made) == 1
        change_weights(folder)
        second = draw(folder, store)
        assert len(made) == 1
    assert np.abs(first - second).max() > 0.01
    assert np.abs(second - draw(folder, store, "torch:cpu")).max() < 1e-3
    assert len(store.entries()) == 1


def test_what_ran_before_is_not_exported_again(checkpoint: Make, tmp_path: Path) -> None:
    said: list[str] = []
    store = ArtifactStore(tmp_path / "store")
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), store=store)
    with reporting(lambda progress: said.append(progress.message)):
        fresh = pipe.export(tmp_path / "fresh", to="onnx")
        assert "Making the graph of unet for onnx (float32)" in said
        said.clear()
        expected = draw(checkpoint("tiny"), store)
        copied = pipe.export(tmp_path / "copied", to="onnx")
    assert "Writing unet for onnx" in said and "Capturing unet" not in said
    files = [path.relative_to(fresh) for path in sorted(fresh.rglob("*")) if path.is_file()]
    assert files == [
        path.relative_to(copied) for path in sorted(copied.rglob("*")) if path.is_file()
    ]
    assert all((fresh / one).read_bytes() == (copied / one).read_bytes() for one in files)
    assert np.array_equal(draw(copied, ArtifactStore(tmp_path / "none")), expected)


@pytest.mark.exhaustive
def test_a_module_that_the_user_changed(checkpoint: Make, tmp_path: Path) -> None:
    """What runs is the changed one, on every backend; and the checkpoint's export stays its own."""
    store = ArtifactStore(tmp_path / "store")
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("tiny"), backend="onnxruntime:cpu", store=store
    )
    before = pipe(**GIVEN).images
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)
    pipe.unet = pipe.unet
    after = pipe(**GIVEN).images
    assert np.abs(before - after).max() > 0.01
    plain = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    plain.unet = pipe.unet
    assert np.abs(plain(**GIVEN).images - after).max() < 1e-3
    assert np.abs(draw(checkpoint("tiny"), store) - before).max() == 0


def test_a_module_of_the_same_weights_and_another_config(checkpoint: Make) -> None:
    """Frequencies turned around are no weight, and another graph."""
    import perfuse.models

    prints = set()
    for changed in ({}, {}, {"flip_sin_to_cos": False}, {"freq_shift": 1}, {"norm_eps": 1e-3}):
        pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
        weights = pipe.unet.state_dict()
        config = json.loads((checkpoint("tiny") / "unet" / "config.json").read_text("utf-8"))
        pipe.unet = perfuse.models.UNet2DModel.from_config({**config, **changed})
        pipe.unet.load_state_dict(weights)
        prints.add(_fingerprint(pipe.component("unet")))
    assert len(prints) == 4


def test_a_module_of_the_same_weights_and_another_forward(checkpoint: Make) -> None:
    class Halved(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x / 2

    halves = Halved

    class Halved(torch.nn.Module):  # type: ignore[no-redef]
        def forward(self, x: Any) -> Any:
            return x / 3

    spec = Checkpoint.open(checkpoint("tiny")).component("unet").spec
    prints = [_fingerprint(Component(spec=spec, build=build)) for build in (halves, Halved, halves)]
    assert prints[0] == prints[2] != prints[1]


def test_damage_in_the_cache_is_said(checkpoint: Make, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    component = Checkpoint.open(checkpoint("tiny")).component("unet")
    main = exported(component, "onnx", store)
    assert main.is_file()
    main.unlink()
    with pytest.raises(ExportError, match="damaged.*perfuse cache clear"):
        exported(component, "onnx", store)
    (record,) = store.root.glob("*/main-file.json")
    for text in ("", "3", "{}", '{"main": 3}'):
        record.write_text(text)
        with pytest.raises(ExportError, match="damaged.*perfuse cache clear"):
            exported(component, "onnx", store)
    store.clear()
    assert exported(component, "onnx", store).is_file()


def test_an_artifact_s_file_is_used_as_it_is(checkpoint: Make, tmp_path: Path) -> None:
    """With its scheduler, its tokenizers, and what says where it came from."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    from perfuse import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    folder = pipe.export(tmp_path / "out", to="onnx")
    artifact, store = Artifact.open(folder), ArtifactStore(tmp_path / "store")
    assert exported(artifact.component("unet"), "onnx", store) == folder / "unet" / "model.onnx"
    assert not store.root.exists()
    assert artifact.spec.scheduler["_class_name"] == "DDIMScheduler"
    saved = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    assert saved["_class_name"] == "DDIMScheduler"
    assert artifact.manifest.source["model"] == str(checkpoint("tiny"))
    assert {"perfuse", "torch", "onnx"} <= set(artifact.manifest.tools)
    listed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(artifact.manifest.files) == listed - {"perfuse.json"}
    assert np.abs(draw(folder, store) - pipe(**GIVEN).images).max() < 1e-3
    with pytest.raises(ExportError, match="unet.*artifact"):
        exported(artifact.component("unet"), "openvino", store)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"batch": 0}, "batch.*0"),
        ({"batch": -1}, "batch"),
        ({"height": 0}, "height 0"),
        ({"width": 1.5}, "width 1.5"),
    ],
)
def test_sizes_that_cannot_be_fixed(
    checkpoint: Make, tmp_path: Path, sizes: dict[str, int], words: str
) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    with pytest.raises(InputError, match=words):
        pipe.export(tmp_path / "out", to="onnx", **sizes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"options": {"palettize": "6"}}, "onnx exporter was given the option palettize; it has"),
        ({"options": {"unet.palettize": "6"}}, "option palettize"),
        (
            {"options": {"vae.palettize": "6"}},
            "vae.palettize was given; this pipeline has the components unet",
        ),
        ({"sizes": [(16, 16)], "height": 16}, "either sizes, or one height"),
    ],
)
def test_options_and_sizes_that_there_are_not(
    checkpoint: Make, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    with pytest.raises(InputError, match=words):
        pipe.export(tmp_path / "out", to="onnx", **given)
    assert not (tmp_path / "out").exists()


def test_a_format_of_any_size_takes_no_list(checkpoint: Make, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    with pytest.raises(InputError, match="onnx, whose files take any size.*Leave sizes out"):
        pipe.export(tmp_path / "out", to="onnx", sizes=[(16, 16), (16, 32)])
    one = Artifact.open(pipe.export(tmp_path / "out", to="onnx", sizes=[(16, 32)]))
    assert one.manifest.components["unet"].static == {"height": 16, "width": 32}
