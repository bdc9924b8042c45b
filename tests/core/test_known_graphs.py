"""Graphs that come along: what they are, that they are used, and that they are those made here."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.single_files import unet_names
from tests.test_torch_free import BLOCKED, run

from perfuse import ArtifactStore, Checkpoint, DiffusionPipeline
from perfuse.backend import Component
from perfuse.errors import ExportError
from perfuse.known import GRAPHS, make
from perfuse.models.config import ModelConfig
from perfuse.models.registry import original, own
from perfuse.plugins import resolve
from perfuse.run import bound, graphs
from perfuse.run.graph_sets import GraphSet
from perfuse.shapes import BUNDLED, CHECKPOINT

Make = Callable[[str], Path]

GIVEN = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
SHIPPED = GraphSet(folder=GRAPHS)
#: Those that CI makes anew; `make conformance` does with all.
CHECKED = [
    *((of, "text_encoder", format) for of in BUNDLED for format in ("onnx", "openvino")),
    *(("shapes", "unet", format) for format in ("onnx", "openvino")),
    *(("shapes-flow", "transformer", format) for format in ("onnx", "openvino")),
    ("shapes", "vae_encoder", "openvino"),
    ("Stable Diffusion 1", "vae_encoder", "onnx"),
]
BACKENDS = ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]


def known(of: str, name: str) -> Component:
    found = (one for said, one, _ in make.configurations() if said == of and one.name == name)
    return next(found)


def refuse(*_: Any) -> None:
    raise ExportError("a graph was to be made")


def test_every_configuration_has_its_graphs_and_there_are_no_others() -> None:
    wanted = {graphs.graph_file(one, format, SHIPPED) for _, one, format in make.components()}
    assert wanted == set(GRAPHS.iterdir())
    assert sum(path.stat().st_size for path in GRAPHS.iterdir()) < 2_000_000


@pytest.mark.export
@pytest.mark.parametrize(("of", "name", "format"), CHECKED)
def test_they_are_those_that_are_made_here(of: str, name: str, format: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxscript"}.get(format, format))
    (path,) = make.made(GraphSet(folder=tmp_path), f"{of}: {name}, {format}")
    assert make.differing(path, GRAPHS / path.name) == []


@pytest.mark.export
@pytest.mark.exhaustive
def test_all_are_those_that_are_made_here(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    anew = list(make.made(GraphSet(folder=tmp_path)))
    assert {path.name for path in anew} == {path.name for path in GRAPHS.iterdir()}
    assert not {path.name for path in anew if make.differing(path, GRAPHS / path.name)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "model", ["shapes", pytest.param("shapes-flow", marks=pytest.mark.exhaustive)]
)
def test_the_bundled_models_draw_without_torch(model: str, backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    given = ("generate", "a red circle", "--model", model, "--steps", 4, "--seed", 5)
    others = {"onnxruntime", "openvino"} - {backend}
    output = tmp_path / "picture.png"
    # Without --backend: the engine that is there.
    done = run(",".join([BLOCKED, *others]), *given, "--output", output, PERFUSE_CACHE=tmp_path)
    assert done.returncode == 0, done.stderr
    pytest.importorskip("torch")
    pipe = DiffusionPipeline.from_pretrained(model, backend="torch:cpu")
    wanted = pipe("a red circle", num_inference_steps=4, seed=5).images[0]
    drawn, expected = (np.asarray(image).astype(int) for image in (Image.open(output), wanted))
    assert expected.std() > 5
    assert np.abs(drawn - expected).max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lora_on_a_checkpoint_without_torch(backend: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    pytest.importorskip(backend)
    numbers = np.random.default_rng(0)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"
    factors = {
        f"{layer}.lora_down.weight": numbers.normal(size=(4, 64)).astype(np.float32),
        f"{layer}.lora_up.weight": numbers.normal(size=(96, 4)).astype(np.float32),
        f"{layer}.alpha": np.array(2, np.float32),
    }
    file, output = tmp_path / "style.safetensors", tmp_path / "picture.png"
    save_file(factors, file)
    given = ("generate", "a red circle", "--lora", f"{file}:0.5", "--backend", backend)
    given = (*given, "--steps", 4, "--seed", 5, "--output", output)
    done = run(BLOCKED, *given, PERFUSE_CACHE=tmp_path)
    assert done.returncode == 0, done.stderr
    pytest.importorskip("torch")
    pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")
    plain = pipe("a red circle", num_inference_steps=4, seed=5).images[0]
    pipe.load_lora_weights(file, adapter_name="style")
    pipe.set_adapters("style", 0.5)
    wanted = pipe("a red circle", num_inference_steps=4, seed=5).images[0]
    images = (Image.open(output), wanted, plain)
    drawn, expected, without = (np.asarray(image).astype(int) for image in images)
    assert np.abs(expected - without).max() > 20
    assert np.abs(drawn - expected).max() <= 2


def other(folder: Path, change: Callable[[str, Any], tuple[str, Any]]) -> Path:
    """A copy of the bundled model with other tensors, or other names of them."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(CHECKPOINT, folder)
    for file in folder.rglob("*.safetensors"):
        tensors = dict(change(name, one) for name, one in load_file(file).items())
        file.unlink()
        save_file(tensors, file)
    return folder


def older(name: str, tensor: Any) -> tuple[str, Any]:
    """As Diffusers wrote an autoencoder before 0.12."""
    for new, old in {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }.items():
        if "mid_block.attentions.0" in name and "transformer" not in name and f".{new}." in name:
            wide = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
            return name.replace(new, old), wide
    return name, tensor


def test_another_checkpoint_of_a_known_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(graphs, "_make", refuse)
    changes = {
        "half": lambda name, one: (name, (one * 0.9).astype(np.float16)),
        "old": older,
        "prefixed": lambda name, one: (
            name
            if name.startswith("text_model.") or "embeddings" not in name
            else f"text_model.{name}",
            one,
        ),
    }
    for which, change in changes.items():
        folder = other(tmp_path / which, change)
        drawn = [
            DiffusionPipeline.from_pretrained(
                folder,
                backend=backend,
                store=ArtifactStore(tmp_path / "store"),
                precision="float32",
            )("a red circle", **GIVEN).images
            for backend in ("onnxruntime:cpu", "torch:cpu")
        ]
        assert np.abs(drawn[0] - drawn[1]).max() < 1e-3


def test_what_does_not_fit_is_said_without_torch(tmp_path: Path) -> None:
    def cut(name: str, one: Any) -> tuple[str, Any]:
        return (f"{name}_", one) if name == "conv_in.weight" else (name, one)

    folder = other(tmp_path / "other", cut)
    given = ("--model", folder, "--steps", 2, "--output", tmp_path / "picture.png")
    done = run(BLOCKED, "generate", "a red circle", *given, PERFUSE_CACHE=tmp_path)
    assert done.returncode == 1
    assert "missing: conv_in.weight; unexpected: conv_in.weight_" in done.stderr


def test_what_torch_alone_reads_is_said_without_it(tmp_path: Path) -> None:
    folder = other(tmp_path / "other", lambda name, one: (name, one.astype(np.float64)))
    given = ("--model", folder, "--steps", 2, "--output", tmp_path / "picture.png")
    done = run(BLOCKED, "generate", "a red circle", *given, PERFUSE_CACHE=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "stored in a way that needs torch" in line and "pip install 'perfuse[torch]'" in line


def test_configs_that_mean_the_same_have_one_graph() -> None:
    component = known("Stable Diffusion XL refiner", "unet")
    first = graphs.graph_file(component, "onnx", SHIPPED)

    def changed(**fields: Any) -> Path | None:
        spec = dataclasses.replace(component.spec, config={**component.spec.config, **fields})
        return graphs.graph_file(dataclasses.replace(component, spec=spec), "onnx", SHIPPED)

    assert changed(sample_size=128, upcast_attention=None, mid_block_scale_factor=1.0) == first
    assert changed(cross_attention_dim=[1280] * 4, _name_or_path="somewhere") == first
    assert changed(transformer_layers_per_block=[1, 4, 4, 9]) != first
    assert changed(norm_eps=1e-6) != first


def test_every_architecture_s_config_has_a_normal_form() -> None:
    for architecture in own():
        if architecture.config:
            fields: Any = resolve(architecture.config)
            assert issubclass(fields, ModelConfig)
            assert set(architecture.beside_graph) <= {
                field.name for field in dataclasses.fields(fields)
            }


@pytest.mark.parametrize("of", ["Stable Diffusion 1", "Stable Diffusion 2", "Stable Diffusion XL"])
def test_single_files_have_the_graphs_of_folders(of: str) -> None:
    """What the tensors of a single file tell is the configuration of a folder."""
    pytest.importorskip("torch")
    component = known(of, "unet")
    build: Any = make.hollow(component).build
    names = unet_names(list(build.weights.shapes), 2)
    found = original("unet", {names[n]: shape for n, shape in build.weights.shapes.items()})
    assert found is not None
    told = dataclasses.replace(
        component, spec=dataclasses.replace(component.spec, config=found[1].config)
    )
    files = [graphs.graph_file(one, "onnx", SHIPPED) for one in (component, told)]
    assert files[0] == files[1]


def test_a_damaged_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component = Checkpoint.open(CHECKPOINT).component("text_encoder")
    path = graphs.graph_file(component, "onnx", SHIPPED)
    assert path is not None
    content = path.read_bytes()
    damaged = GraphSet(folder=tmp_path / "damaged")
    damaged.folder.mkdir()
    monkeypatch.setattr(graphs, "_make", refuse)
    middle = len(content) // 2
    for cut in (content[:-40], b"", content[:middle] + b"\0\0\0\0" + content[middle + 4 :]):
        (damaged.folder / path.name).write_bytes(cut)
        monkeypatch.setattr(graphs, "graph_sets", lambda: (damaged, SHIPPED))
        assert bound(component, "onnx", ArtifactStore(tmp_path / str(len(cut)))) is not None
        monkeypatch.setattr(graphs, "graph_sets", lambda: (damaged,))
        with pytest.raises(ExportError, match=r"damaged.*Install perfuse again.*to be made"):
            bound(component, "onnx", ArtifactStore(tmp_path / "other"))


def command(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perfuse.cli", *map(str, arguments)],
        env={**os.environ, "PERFUSE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )


def test_what_is_known_is_listed(tmp_path: Path) -> None:
    listed = json.loads(command("graphs", "list", "--json", cache=tmp_path).stdout)["graphs"]
    assert len(listed) == len(list(GRAPHS.iterdir()))
    assert {"shapes", "Stable Diffusion 1"} <= {one["of"] for one in listed}
    assert {one["from"] for one in listed} == {"comes along"}


@pytest.mark.export
@pytest.mark.exhaustive
def test_graphs_of_one_s_own(checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    tiny, cache = checkpoint("tiny"), tmp_path / "cache"
    command("graphs", "add", tiny, "--to", "onnx", cache=cache)
    listed = json.loads(command("graphs", "list", "--json", cache=cache).stdout)["graphs"]
    own = [one for one in listed if one["from"] == "added"]
    assert [(one["component"], one["format"]) for one in own] == [("unet", "onnx")]
    assert {"shapes", "Stable Diffusion 1"} <= {one["of"] for one in listed}
    output = tmp_path / "picture.png"
    given = ("--model", tiny, "--backend", "onnxruntime", "--steps", 2, "--output", output)
    done = run(BLOCKED, "generate", *given, PERFUSE_CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert output.is_file()
